"""Products of rows in groups, as mixtures of experts compute them."""

from __future__ import annotations

import torch
import transformers.integrations.moe  # registers its operator  # noqa: F401
from torch import nn

from tests.support.build_here import build_here
from tests.support.models import error_of, exported
from torch2engine.core.config import BuildConfig
from torch2engine.core.spec import Axis
from torch2engine.exporter.decompositions.grouped_products import GROUPED_PRODUCTS


class Experts(nn.Module):
    """Rows sorted by their experts, of which one has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 16))

    def forward(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        order = experts.argsort(stable=True)
        counts = (experts.unsqueeze(-1) == torch.arange(4)).sum(0)
        return torch.ops.transformers.grouped_mm_fallback(x[order], self.weight, counts.cumsum(0).to(torch.int32))


def test_each_row_meets_the_matrix_of_its_group() -> None:
    """Any number of rows, and groups without rows; TensorRT-RTX builds it."""
    sample = (torch.randn(6, 8), torch.tensor([0, 3, 1, 3, 0, 1]))
    axis = Axis("rows", 2, 6, 10)
    artifact, examples = exported(Experts(), sample, {"x": {0: axis}, "experts": {0: axis}})
    assert error_of(artifact, examples) < 1e-5
    build_here(artifact, config=BuildConfig(flavour="tensorrt_rtx"), cache=False)


def test_pytorchs_own_operator_is_the_same_product() -> None:
    """Rows of each group times its matrix; a row of another group may be infinite."""
    x = torch.randn(5, 8)
    x[4, 0] = torch.inf
    weight = torch.randn(3, 8, 2)
    result = GROUPED_PRODUCTS["_grouped_mm"](x, weight, torch.tensor([2, 2, 5], dtype=torch.int32))
    assert torch.equal(result[:4], torch.cat((x[:2] @ weight[0], x[2:4] @ weight[2])))
    assert not result[4].isfinite().any()
    assert GROUPED_PRODUCTS["_grouped_mm"](x, weight) is NotImplemented

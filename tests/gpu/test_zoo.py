"""Known architectures through deploy(), float32 and half, against PyTorch, with the model in training all the while.

Enters: random weights and inputs. Leaves: parity figures. Apart because each test deploys a whole network.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import ZOO
from torch2engine.testing import assert_parity


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model and of the random generators that a deploy might move."""
    return {
        "tensors": {
            name: (id(tensor), tensor.detach().clone()) for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "random": (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(),
            random.getstate(),
            np.random.get_state()[1].copy(),
        ),
    }


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    return np.array_equal(left, right)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
@pytest.mark.parametrize("name", ZOO)
def test_deploy_of_known_architecture(name: str, half: bool, figure: Callable[[str, float], None]) -> None:
    """The engine answers like PyTorch at min, opt, max and between, and the model in training stays bit for bit."""
    make, sample, axes = ZOO[name]
    model = make().half() if half else make()
    model.train()
    next(model.parameters()).grad = torch.randn_like(next(model.parameters()))
    inputs = {key: value.half() if half and value.is_floating_point() else value for key, value in sample(2).items()}
    before = _state(model)

    module = t2e.deploy(model, inputs, axes)

    assert _same(before, _state(model))
    assert module.report is not None and module.report.passed
    _, engine = module.report.parity
    cases = {row.case for row in engine.rows}
    assert cases == {"min", "opt", "max", "random"}
    worst = max(row.rel_l2 for row in engine.rows)
    figure(f"{name}{'.half' if half else ''}.parity.rel_l2", worst)
    assert module.precision == ("fp16" if half else "fp32")
    assert worst <= (1e-2 if half else 1e-3)

    fresh = {key: value.half() if half and value.is_floating_point() else value for key, value in sample(3).items()}
    model.eval()
    assert_parity(model, module, fresh, precision=module.precision)

"""torchvision's suppression of boxes is traced without branches, and its functions are put back afterwards.

torchvision's compiled operators do not load beside a CPU build of torch. So a module of its name stands here, with its
function for few boxes and for many, and with an operator in PyTorch; `tests/gpu` has the real ones.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch._library.fake_impl import FakeImplCtx

import torch2engine as t2e
from torch2engine.exporter.box_suppression import suppression_without_branches

MANY = 12


@torch.library.custom_op("torch2engine_test::nms", mutates_args=())
def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The boxes that no better one overlaps, best first."""
    kept: list[int] = []
    sides = boxes[:, 2:] - boxes[:, :2]
    for place in scores.argsort(descending=True).tolist():
        common = torch.minimum(boxes[place, 2:], boxes[kept, 2:]) - torch.maximum(boxes[place, :2], boxes[kept, :2])
        shared = common.clamp(min=0).prod(1)
        if not (shared / (sides[place].prod() + sides[kept].prod(1) - shared) > iou_threshold).any():
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64)


@nms.register_fake
def _(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    size = torch.library.get_ctx().create_unbacked_symint()  # as torchvision does: "2 or more"
    return boxes.new_empty(size, dtype=torch.int64)


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppress within each class; with a branch on the number of boxes, as torchvision has it."""
    if boxes.numel() > MANY:
        kept = [places[nms(boxes[places], scores[places], iou_threshold)] for places in _places_by_class(idxs)]
        return torch.cat(kept)[scores[torch.cat(kept)].argsort(descending=True)]
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    return nms(boxes + (idxs * (boxes.max() + 1))[:, None], scores, iou_threshold)


def _places_by_class(idxs: torch.Tensor) -> list[torch.Tensor]:
    return [torch.where(idxs == one)[0] for one in idxs.unique()]


@pytest.fixture
def boxes_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What stands in the place of `torchvision.ops.boxes`."""
    module = ModuleType("torchvision.ops.boxes")
    vars(module).update(nms=nms, batched_nms=batched_nms)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "torchvision.ops", raising=False)
    return module


class Detector(nn.Module):
    """Boxes, scores and classes of those cells whose score is high enough, without the overlapping ones."""

    def __init__(self, boxes_module: ModuleType) -> None:
        super().__init__()
        self.boxes_module = boxes_module
        self.network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))

    def forward(self, cells: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cells [N, 8] and a least score [1] → boxes [K, 4], scores [K] and classes [K]."""
        found = self.network(cells)
        boxes = torch.cat([found[:, :2], found[:, :2] + found[:, 2:4].exp()], 1)
        high = torch.where(found[:, 4] > least)[0]
        boxes, scores, classes = boxes[high], found[high, 4], (found[high, 5] > 0).long()
        kept = self.boxes_module.batched_nms(boxes, scores, classes, 0.3)
        return boxes[kept], scores[kept], classes[kept]


@pytest.fixture
def detector(boxes_module: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return Detector(boxes_module).eval()


def test_detector_is_deployed_around_its_suppression(detector: nn.Module) -> None:
    """No box, one box and many boxes are the model's own; what stays in PyTorch are the choices alone."""
    cells = torch.randn(40, 8)
    by_score = detector.network(cells)[:, 4].sort(descending=True).values.detach()
    leasts = {0: by_score[:1] + 1, 1: by_score[:2].mean(0, keepdim=True), 40: by_score[-1:] - 1}
    module = t2e.deploy(detector, (cells, leasts[40]), runtime="onnxruntime", fallback=True)
    assert {obstacle.operator for obstacle in module.obstacles} == {"aten.where", "torch2engine_test.nms"}
    for least in leasts.values():
        with torch.no_grad():
            expected = detector(cells, least)
            torch.testing.assert_close(module(cells, least), expected, rtol=1e-4, atol=1e-5)
    assert len(expected[0]) > MANY / 4  # the model takes its branch for many boxes, and suppresses some
    assert len(expected[0]) < 40


def test_functions_are_put_back_after_an_error_too(boxes_module: ModuleType) -> None:
    """Both of torchvision's names and torch's function are what they were; without torchvision nothing is imported."""
    described = FakeImplCtx.create_unbacked_symint

    def fail_inside() -> None:
        with suppression_without_branches():
            assert boxes_module.batched_nms is not batched_nms
            assert FakeImplCtx.create_unbacked_symint is not described
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail_inside()
    assert boxes_module.batched_nms is batched_nms
    assert FakeImplCtx.create_unbacked_symint is described
    del sys.modules["torchvision.ops.boxes"]
    with suppression_without_branches():
        assert "torchvision.ops.boxes" not in sys.modules

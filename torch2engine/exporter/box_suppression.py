"""torchvision's suppression of overlapping boxes, traced without its branches on how many boxes there are.

Enters: a model that is about to be traced. Leaves: a program with the operator `torchvision::nms`, which may keep any
number of boxes. Separate because it replaces functions of torchvision and torch for the time of an export.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._library.fake_impl import FakeImplCtx

from torch2engine.exporter.replaced_function import replaced

__all__ = ["suppression_without_branches"]

_HOLDERS = ("torchvision.ops.boxes", "torchvision.ops")  # the detectors read the first, users the second


@contextmanager
def suppression_without_branches() -> Generator[None]:
    """Trace `batched_nms` as one call of `nms`, for any number of boxes.

    For many boxes torchvision calls `nms` once for each class. For fewer it moves the boxes of each class to a place of
    their own, and calls it once. Both keep the same boxes; only the second has a form without branches.

    torchvision (0.28) describes the result of `nms` to a tracer by a function of torch that means "2 or more". The
    program would refuse a picture with fewer boxes. Here it means any number.

    torchvision is not imported.
    """
    with ExitStack() as stack:
        for name in _HOLDERS:
            stack.enter_context(replaced(sys.modules.get(name), "batched_nms", lambda _: _suppress_by_class))
        stack.enter_context(replaced(FakeImplCtx, "create_unbacked_symint", lambda _: _any_number))
        yield


def _suppress_by_class(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """The boxes that remain when no class suppresses boxes of another, in the order of their scores.

    Args:
        boxes: [N, 4], also with N = 0.
        scores: [N].
        idxs: [N], the class of each box.
        iou_threshold: boxes that overlap a better one by more than this are suppressed.

    Returns:
        int64 [kept].
    """
    nms: Callable[..., torch.Tensor] = sys.modules[_HOLDERS[0]].nms
    farthest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # without boxes there is no maximum
    offsets = idxs.to(boxes) * (farthest + 1)
    return nms(boxes + offsets[:, None], scores, iou_threshold)


def _any_number(context: Any, *, min: int = 0, max: int | None = None) -> torch.SymInt:
    return context.new_dynamic_size(min=min, max=max)

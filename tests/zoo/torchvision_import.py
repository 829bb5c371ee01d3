"""torchvision beside any build of PyTorch.

Enters: nothing. Leaves: torchvision, imported. Apart because timm needs it too. PyPI's torchvision is made for CUDA:
beside a CPU build of torch its compiled operators do not load, and its import fails at the first operator that it
describes. These get a declaration without a kernel, so that every model without them works.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch

__all__ = ["import_torchvision"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DESCRIBED_AT_IMPORT = ("nms", "qnms")


def import_torchvision() -> Any:
    """Import torchvision, with declarations in place of compiled operators that do not load."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        return _import_with_declarations()
    return torchvision


def _import_with_declarations() -> ModuleType:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in _DESCRIBED_AT_IMPORT:
        torch.library.define(f"torchvision::{operator}", _SCHEMA)
    import torchvision

    return torchvision

"""An ONNX file as one change makes it for the builder, and the layers that TensorRT-RTX reads after all changes.

Enters: a path. Leaves: the changed model, or the kinds of layers. Separate because every change of the file before the
parser has a test of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx

from torch2engine.builder import plan
from torch2engine.trt.bindings import find_tensorrt

__all__ = ["changed_by", "layers_of"]


def changed_by(change: Callable[[Any, Path], Any | None], path: Path) -> bytes | None:
    """What a change makes of a file; None if it leaves the file alone."""
    model = change(onnx.load(str(path), load_external_data=False), path.parent)
    return None if model is None else model.SerializeToString()


def layers_of(path: Path, precision: str = "fp32", refittable: bool = False) -> list[str]:
    """The kinds of layers that TensorRT-RTX reads from a file."""
    rt = find_tensorrt("tensorrt_rtx")
    builder = rt.api.Builder(rt.logger)  # must outlive the network
    request = SimpleNamespace(onnx_path=str(path), refittable=refittable, precision=precision, attention="node")
    network = plan._parse(plan._PlanBuild(rt, cast("Any", request), rt.log.mark()), builder)
    return [network.get_layer(index).type.name for index in range(network.num_layers)]

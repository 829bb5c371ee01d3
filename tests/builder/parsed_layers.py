"""The layers that TensorRT-RTX reads from an ONNX file, after what the builder changes in it.

Enters: a path. Leaves: the kinds of layers. Separate because every change of the file before the parser has a test of
it.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch2engine.builder import plan
from torch2engine.trt.library import find_tensorrt

__all__ = ["layers_of"]


def layers_of(path: Path, precision: str = "fp32", refittable: bool = False) -> list[str]:
    """The kinds of layers that TensorRT-RTX reads from a file."""
    rt = find_tensorrt("tensorrt_rtx")
    builder = rt.api.Builder(rt.logger)  # must outlive the network
    request = SimpleNamespace(onnx_path=str(path), refittable=refittable, precision=precision)
    network = plan._parse(plan._PlanBuild(rt, cast("Any", request), rt.log.mark()), builder)
    return [network.get_layer(index).type.name for index in range(network.num_layers)]

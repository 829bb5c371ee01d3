"""An ONNX file as one change makes it for the builder, and the layers that TensorRT-RTX reads after all changes.

Enters: a path. Leaves: the changed model, or the kinds of layers. Separate because every change of the file before the
parser has a test of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx

from torch2engine.builder import plan
from torch2engine.core.config import BuildConfig
from torch2engine.trt.bindings import find_tensorrt

__all__ = ["changed_by", "layers_of", "network_of"]


def changed_by(change: Callable[[Any, Path], Any | None], path: Path) -> bytes | None:
    """What a change makes of a file; None if it leaves the file alone."""
    model = change(onnx.load(str(path), load_external_data=False), path.parent)
    return None if model is None else model.SerializeToString()


@contextmanager
def network_of(path: Path, precision: str = "fp32", refittable: bool = False, attention: str = "") -> Generator[Any]:
    """The network that TensorRT-RTX reads from a file, for the body.

    Args:
        path: of an ONNX file.
        precision: "fp32" or "tf32".
        refittable: whether its weights can be replaced.
        attention: "node" or "products"; "" for what `BuildConfig` takes by itself.
    """
    rt = find_tensorrt("tensorrt_rtx")
    builder = rt.api.Builder(rt.logger)  # must outlive the network
    form = attention or BuildConfig(refittable=refittable).attention_form
    request = SimpleNamespace(onnx_path=str(path), refittable=refittable, precision=precision, attention=form)
    yield plan._parse(plan._PlanBuild(rt, cast("Any", request), rt.log.mark()), builder)


def layers_of(path: Path, precision: str = "fp32", refittable: bool = False) -> list[str]:
    """The kinds of layers that TensorRT-RTX reads from a file."""
    with network_of(path, precision, refittable) as network:
        return [network.get_layer(index).type.name for index in range(network.num_layers)]

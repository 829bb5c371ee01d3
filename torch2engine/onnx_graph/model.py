"""ONNX models on disk, whatever their size, and where their nodes come from.

Enters: a path or a ModelProto. Leaves: the other. Apart from the ways to change a model because all of them need this.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from torch2engine.core.errors import ExportError, InstallationError

__all__ = [
    "MODULE_KEY",
    "SOURCE_KEY",
    "bare",
    "floats",
    "load",
    "modules",
    "origins",
    "put_weights",
    "quietly",
    "restore_origins",
    "save",
    "types",
]

MODULE_KEY, SOURCE_KEY = "torch2engine.module", "torch2engine.source"  # as `export` writes them
_TALKATIVE = ("modelopt", "modelopt.onnx", "modelopt.onnx.autocast", "onnx_graphsurgeon", "onnxslim")
# Protobuf holds 2 GiB; the graph itself needs room beside the weights.
_EXTERNAL_ABOVE_BYTES = 1_800_000_000


def load(path: Path) -> Any:
    """The model with its weights: onnx.ModelProto."""
    import onnx

    return onnx.load(str(path))


def save(model: Any, path: Path) -> None:
    """Write a model, its weights beside it where protobuf can't hold them; whole, or not at all.

    Tensors inside keep their types and lose their shapes: ONNX's shape inference names unknown sizes anew each time,
    and where it ran twice one name stands for two sizes, of which ONNX Runtime believes that they are equal.
    """
    import onnx

    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")

    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    part = path.with_name(f"{path.name}.part")
    try:
        # The data keeps its name, which the model holds.
        onnx.save_model(
            model,
            str(part),
            save_as_external_data=weights > _EXTERNAL_ABOVE_BYTES,
            location=f"{path.name}.data",
        )
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def put_weights(source: Path, target: Path, weights: Mapping[str, NDArray[Any]]) -> None:
    """Write a model with other values for some of its weights.

    Args:
        source, target: ONNX files.
        weights: name -> values of the weight's shape, which become its type.
    """
    from onnx import helper, numpy_helper

    model = load(source)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].astype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save(model, target)


def bare(model: Any) -> Any:
    """A copy of the main graph without the large weights' values, for inference: protobuf can't pass on 2 GiB."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for part in ("node", "input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        # Types and shapes tell enough; small ones may be shapes themselves.
        small = tensor if len(tensor.raw_data) <= 1024 else onnx.TensorProto(name=tensor.name, dims=tensor.dims)
        copy.graph.initializer.add().CopyFrom(small)
        copy.graph.initializer[-1].data_type = tensor.data_type
    copy.graph.name = "bare"
    return copy


def types(model: Any) -> dict[str, int]:
    """Element type of every tensor of the main graph; the exporters don't write down every one, so it is inferred."""
    import onnx

    graph = cast("Any", onnx).shape_inference.infer_shapes(bare(model)).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def floats(model: Any) -> set[str]:
    """Names of float32 tensors, weights too."""
    from onnx import TensorProto

    return {name for name, number in types(model).items() if number == TensorProto.FLOAT}


def origins(model: Any) -> dict[str, tuple[str, str]]:
    """Node name -> (torch module path, source line)."""
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        props = {prop.key: prop.value for prop in node.metadata_props}
        found[node.name] = (props.get(MODULE_KEY, ""), props.get(SOURCE_KEY, ""))
    return found


def modules(model: Any) -> dict[str, str]:
    """Node name -> torch module path."""
    return {name: module for name, (module, _) in origins(model).items()}


def restore_origins(model: Any, known: Mapping[str, tuple[str, str]]) -> None:
    """Write where nodes come from on a changed model; new nodes take it from the next known one that reads them."""
    readers: dict[str, list[Any]] = {}
    makers: dict[str, Any] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        for name in node.output:
            makers[name] = node
    settled = {id(node): known[node.name] for node in model.graph.node if node.name in known}
    for node in reversed(model.graph.node):
        if id(node) in settled:
            continue
        near = [reader for name in node.output for reader in readers.get(name, ())]
        near += [makers[name] for name in node.input if name in makers]
        settled[id(node)] = next((settled[id(other)] for other in near if id(other) in settled), ("", ""))
    for node in model.graph.node:
        kept = [prop for prop in node.metadata_props if prop.key not in (MODULE_KEY, SOURCE_KEY)]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        for key, value in zip((MODULE_KEY, SOURCE_KEY), settled[id(node)], strict=True):
            node.metadata_props.add(key=key, value=value)


@contextmanager
def quietly(what: str) -> Generator[None]:
    """Run ModelOpt without its remarks.

    Args:
        what: it does, for the error.

    Raises:
        InstallationError: ModelOpt, or something that it needs, is not installed.
        ExportError: it failed.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # AutoCast logs to the root logger too, which would give it a handler for good
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("modelopt.onnx.autocast")  # which sets its level
            levels = [logger.level for logger in loggers]
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            try:
                yield
            finally:
                for logger, level in zip(loggers, levels, strict=True):
                    logger.setLevel(level)
    except ImportError as error:
        raise InstallationError(
            "nvidia-modelopt",
            got=f"{what} needs it, and it can't be imported ({error})",
            fix="pip install 'torch2engine[quantize]'",
        ) from error
    except (InstallationError, ExportError):
        raise
    except Exception as error:
        raise ExportError(
            what,
            got=f"ModelOpt failed: {type(error).__name__}: {error}",
            fix="keep the modules that it stumbles over in Precision(keep_fp32=[...])",
        ) from error
    finally:
        root.removeHandler(silent)

"""A captured call → `OnnxArtifact`: trace, decompose, translate, optimise, name, verify.

Enters: a captured call. Leaves: model.onnx with the signature's names. Its dynamic dimensions have the axes' names, and
each node has its torch module and source line. Separate because it guards against all known ways in which the exporters
change a model without an error.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from torch2engine.artifact.file_access import write_file
from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.live_parameters import encode_live_values
from torch2engine.core.constants import EXTERNAL_ABOVE_BYTES
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.spec import Signature
from torch2engine.core.wording import quote
from torch2engine.exporter.axis_symbols import check_output_axes, find_axis_symbols, output_specs
from torch2engine.exporter.export_context import export_context
from torch2engine.exporter.onnx_names import drop_saturation, name_axes, name_tensors, record_origins
from torch2engine.exporter.torch_program import lowest_precision
from torch2engine.exporter.trace import trace
from torch2engine.exporter.translate import TranslatedModel, translate_to_onnx
from torch2engine.onnx_graph.axis_flow.analysis import find_influences
from torch2engine.onnx_graph.model_bytes import take_pieces

__all__ = ["export_onnx"]

_IN_PIECES_BYTES = 2**30  # of weights; torch.onnx decides itself how it writes more of them
_OTHER_VERSION = "install another version of torch"


def export_onnx(captured: CapturedCall, refittable: bool = False) -> OnnxArtifact:
    """Export to ONNX; run it inside `undisturbed(model)`.

    Args:
        captured: the captured call.
        refittable: write to weights.json how the ONNX graph's weights follow from parameters and buffers. The form of
            the graph then does not depend on their values.

    Returns:
        an artifact in a scratch folder: model.onnx, with model.onnx.data beside it above 2 GB.

    Raises:
        DynamicAxisError: the model pins an axis, or holds only for a part of its range; names the user's line.
        ExportError: torch can't trace the model, or its ONNX graph does not have the signature.
        UnsupportedOperatorError: operators without an ONNX form.
    """
    with _own_cycles_collected():
        return _export(captured, refittable)


def _export(captured: CapturedCall, refittable: bool) -> OnnxArtifact:
    model = captured.reference.model
    with export_context(model) as quantized_precision:
        traced = trace(captured)
        captured = traced.captured
        symbols = find_axis_symbols(traced)
        outputs = output_specs(traced, captured.signature)
        signature = replace(captured.signature, outputs=outputs)
        check_output_axes(signature, captured.output_axes)
        if quantized_precision and refittable:
            raise _not_refittable(quantized_precision)
        precision = quantized_precision or lowest_precision(traced.program) or captured.precision
        translated = translate_to_onnx(traced.program, precision, model if refittable else None)
        onnx_graph = translated.onnx_program.model.graph
        if quantized_precision:
            drop_saturation(onnx_graph)
        _write_names(onnx_graph, signature, symbols, model)
        _require_live_inputs_read(onnx_graph, signature)
        folder = scratch_folder()
        with disk_errors(folder.path):
            _save(translated, Path(folder.path))
    onnx_model = _verified_model(Path(folder.path) / "model.onnx", signature)
    return OnnxArtifact(
        folder.path,
        owner=folder,
        signature=signature,
        profiles=captured.profiles,
        precision=precision,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
        influences=find_influences(onnx_model, signature),
        live_values=encode_live_values(signature.live_inputs, captured.sample[len(signature.call_inputs) :]),
    )


@contextmanager
def _own_cycles_collected() -> Generator[None]:
    """Collect the reference cycles that the body leaves.

    torch's exported programs are such cycles; they hold the model, its weights and the sample. What was there before is
    set aside, since looking through it as well takes most of the time.
    """
    sets_aside = gc.get_freeze_count() == 0  # the user's own gc.freeze() does the same, and stays
    if sets_aside:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if sets_aside:
            gc.unfreeze()


def _not_refittable(precision: str) -> InputError:
    return InputError(
        "BuildConfig.refittable",
        got=f"True for a model with {precision} quantisers of its own",
        allowed="a model whose weights are in the graph as they are",
        fix="leave refittable out",
    )


def _write_names(onnx_graph: Any, signature: Signature, symbols: dict[str, str], model: nn.Module) -> None:
    """Write the signature's names, the axes' names and every node's origin into the ONNX graph."""
    name_tensors(onnx_graph, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
    name_axes(onnx_graph, symbols, [spec.shape for spec in (*signature.inputs, *signature.outputs)])
    record_origins(onnx_graph, _forward_source(model))


def _require_live_inputs_read(onnx_graph: Any, signature: Signature) -> None:
    """Refuse a live parameter that the graph does not read: its value would be a constant, or have no effect.

    Raises:
        ExportError: names it.
    """
    values = {value.name: value for value in onnx_graph.inputs}
    for spec in signature.live_inputs:
        if not values[spec.name].uses() and values[spec.name] not in onnx_graph.outputs:
            raise ExportError(
                f"live parameter '{spec.name}'",
                got="a forward that does not read it, or reads a copy of it that was made before",
                allowed="a parameter or buffer that forward reads by its name",
                fix="leave it out of live_parameters, or read self's attribute in forward",
            )


def _forward_source(model: nn.Module) -> str:
    """ "FILE:LINE" of the model's forward; its class's name where the source is unknown."""
    try:
        return f"{inspect.getsourcefile(type(model))}:{inspect.getsourcelines(type(model).forward)[1]}"
    except (OSError, TypeError):
        return type(model).__qualname__


def _save(translated: TranslatedModel, folder: Path) -> None:
    """Write model.onnx, and weights.json for a model that can be refitted.

    An ONNXProgram reads the live weights when it is saved, so it is saved at once.
    """
    onnx_program = translated.onnx_program
    weights = [value.const_value for value in onnx_program.model.graph.initializers.values()]
    weight_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    if weight_bytes > min(_IN_PIECES_BYTES, EXTERNAL_ABOVE_BYTES):
        onnx_program.save(
            str(folder / "model.onnx"),
            include_initializers=True,
            keep_initializers_as_inputs=False,
            external_data=weight_bytes > EXTERNAL_ABOVE_BYTES,
        )
    else:
        with (folder / "model.onnx").open("xb") as file:
            file.writelines(take_pieces(onnx_program.model_proto))
    if translated.weights is not None:
        write_file(folder / WEIGHTS, translated.weights.program().to_json())


def _verified_model(path: Path, signature: Signature) -> Any:
    """Read the file back: a valid model, with the signature's inputs and outputs, symbolic where it says so.

    Returns:
        the ModelProto, without external weights.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "torch.onnx", got=f"an invalid graph: {quote(error)}", allowed="a valid one", fix=_OTHER_VERSION
        ) from error
    onnx_model = onnx.load(str(path), load_external_data=False)
    onnx_graph = onnx_model.graph
    inputs = [(value.name, _shape(value)) for value in onnx_graph.input]
    outputs = [value.name for value in onnx_graph.output]
    expected_inputs = [(spec.name, list(spec.shape)) for spec in signature.inputs]
    expected_outputs = [spec.name for spec in signature.outputs]
    if inputs != expected_inputs or outputs != expected_outputs:
        raise ExportError(
            "torch.onnx",
            got=f"a file with inputs {inputs} and outputs {outputs}",
            allowed=f"inputs {expected_inputs} and outputs {expected_outputs}",
            fix=_OTHER_VERSION,
        )
    return onnx_model


def _shape(value: Any) -> Sequence[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

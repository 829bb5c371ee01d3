"""An ONNX file from anywhere → a checked copy, and the signature of its graph.

Enters: a path. Leaves: a copy of the file that nobody else changes, and its inputs and outputs as a `Signature`.
Separate because only this file reads ONNX that torch2engine did not write, and it trusts nothing in it.
"""

from __future__ import annotations

import keyword
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx as _typed_onnx

from torch2engine.artifact.files import disk_errors
from torch2engine.artifact.onnx_outline import ONNX_DTYPES
from torch2engine.core.errors import ArtifactError, DtypeError
from torch2engine.core.foreign_files import cure_for_path
from torch2engine.core.spec import Dim, Parameter, Signature, TensorSpec, Tree
from torch2engine.core.wording import quote, with_article
from torch2engine.onnx_graph.walk import walk_model_tensors

__all__ = ["ForeignSignature", "check_onnx_file", "copy_model", "read_signature"]

# onnx's own annotations are incomplete
onnx = cast("Any", _typed_onnx)


def check_onnx_file(path: Path) -> None:
    """Refuse a file that is missing or no valid ONNX model.

    Raises:
        ArtifactError: with onnx's reason.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ArtifactError(f"'{path}'", path=str(path), got=what, allowed="an ONNX file", fix=_cure_for(path))
    try:
        # By path, because there is no other way above 2 GB, and external data are found relative to it.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError, OSError) as error:
        raise ArtifactError(
            f"'{path}'",
            path=str(path),
            got=quote(error),
            allowed="a valid ONNX model",
            fix=_cure_for(path),
        ) from error


def _cure_for(path: Path) -> str:
    """Say what to do with a path that is no ONNX file."""
    if path.suffix == ".onnx" or not path.exists():
        return (
            "export it again, or upgrade onnx if the file is newer than it"
            if path.is_file()
            else "give the path of one"
        )
    if path.is_dir():
        return f"if torch2engine saved it, build torch2engine.OnnxArtifact.load({str(path)!r})"
    return cure_for_path(path) or "export the model to ONNX first"


def copy_model(path: Path, target: Path) -> Any:
    """Copy a model and its external data, and return it without these.

    Raises:
        ArtifactError: external data are missing, or lie outside the model's folder. Or there is no room for the copy.
    """
    model = onnx.load(str(path), load_external_data=False)
    external = [tensor for tensor in walk_model_tensors(model) if onnx.external_data_helper.uses_external_data(tensor)]
    if not external:
        with disk_errors(target.parent):
            shutil.copyfile(path, target)
        return model
    try:
        for tensor in external:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ArtifactError(
            f"'{path}'",
            path=str(path),
            got=quote(error),
            allowed="external data in the model's folder",
            fix="copy the model together with its data files, or export it again",
        ) from error
    # One file beside the model, whatever the names and number of the originals.
    with disk_errors(target.parent):
        onnx.save_model(
            model,
            str(target),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{target.name}.data",
            convert_attribute=True,
        )
    return onnx.load(str(target), load_external_data=False)


@dataclass(frozen=True)
class ForeignSignature:
    """The inputs and outputs of an ONNX file.

    Args:
        signature: without axes, whose ranges the file does not have.
        axis_places: {name of each dynamic axis of an input: where it is, for messages}.
    """

    signature: Signature
    axis_places: Mapping[str, str]


def read_signature(model: Any, path: Path) -> ForeignSignature:
    """Read the inputs and outputs of an ONNX file.

    Raises:
        ArtifactError: one name stands for several of them.
        DtypeError: one of them is no tensor.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    names = [value.name for value in (*inputs, *graph.output)]
    for name in names:
        if names.count(name) > 1:
            raise ArtifactError(
                f"'{path}'",
                path=str(path),
                got=f"the name '{name}' for more than one input or output",
                allowed="a name for each",
                fix="put an Identity node before the output and name its result otherwise",
            )
    axis_names = _AxisNames()
    input_specs = tuple(_tensor_spec(value, f"input '{value.name}'", axis_names) for value in inputs)
    axis_places = dict(axis_names.places)
    output_specs = tuple(_tensor_spec(value, f"output '{value.name}'", axis_names) for value in graph.output)
    parameters = tuple(Parameter(spec.name, "positional", Tree("tensor")) for spec in input_specs)
    leaves = (Tree("tensor"),) * len(output_specs)
    result = leaves[0] if len(leaves) == 1 else Tree("dict", tuple(spec.name for spec in output_specs), leaves)
    return ForeignSignature(Signature(input_specs, output_specs, (), parameters, result), axis_places)


class _AxisNames:
    """Gives each dimension name of ONNX, which may be any text, an identifier as the axis's name."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self._name_of: dict[str, str] = {}

    def axis_name(self, onnx_name: str, key: str, place: str) -> str:
        """The axis's name: the same for the same key, and another for another key."""
        if key not in self._name_of:
            name = re.sub(r"\W", "_", onnx_name, flags=re.ASCII)
            if not name.isidentifier() or keyword.iskeyword(name):
                name = f"_{name}"
            stem = name
            number = 1
            while name in self.places:
                number += 1
                name = f"{stem}_{number}"
            self._name_of[key] = name
            self.places[name] = place
        return self._name_of[key]


def _tensor_spec(value: Any, subject: str, axis_names: _AxisNames) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        content = str(kind or "nothing").removesuffix("_type")
        raise DtypeError(
            subject,
            name=value.name,
            got=with_article(content),
            allowed="a tensor, since TensorRT takes nothing else",
            fix="export the model with tensors for inputs and outputs",
        )
    tensor = value.type.tensor_type
    member = str(onnx.TensorProto.DataType.Name(tensor.elem_type))
    dtype = ONNX_DTYPES.get(int(tensor.elem_type), member.lower())
    shape: list[Dim] = []
    for position, dim in enumerate(tensor.shape.dim):
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
            continue
        unnamed = f"{value.name}_dim_{position}"
        onnx_name = str(dim.dim_param) or unnamed
        key = f"named {onnx_name}" if dim.dim_param else f"unnamed {unnamed}"
        shape.append(axis_names.axis_name(onnx_name, key, f"dimension {position} of {subject}"))
    return TensorSpec(value.name, dtype, tuple(shape))

"""What `build` is given → a model on disk with its signature, profiles and precision.

Enters: an OnnxArtifact, or the path of an ONNX file from anywhere (tf2onnx's output, say). Leaves: `Source`; a file
has become an artifact by then, its signature read from the graph, its bytes a copy that nobody else changes. Beside
`build` because only here is ONNX read that torch2engine did not write, and nothing in it may be believed.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import onnx as _typed_onnx

from torch2engine.artifact.manifest import canonical
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.config import PRECISIONS, choice
from torch2engine.core.errors import ArtifactError, DtypeError, DynamicAxisError, InputError
from torch2engine.core.spec import Axis, Dim, Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.onnx_graph.walk import subgraphs, walk_tensors
from torch2engine.trt.library import IO_DTYPES

__all__ = ["Profiles", "Source", "fingerprint", "resolve", "without_values"]

Ranges: TypeAlias = "Profile | Mapping[str, Sequence[int]]"
Profiles: TypeAlias = "Ranges | Sequence[Ranges] | None"

# onnx's own annotations are incomplete
onnx = cast("Any", _typed_onnx)

# ONNX's names of element types -> PyTorch's, where lower case alone does not do
_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT8E4M3FN": "float8_e4m3fn",
    "FLOAT8E4M3FNUZ": "float8_e4m3fnuz",
    "FLOAT8E5M2": "float8_e5m2",
    "FLOAT8E5M2FNUZ": "float8_e5m2fnuz",
    "FLOAT8E8M0": "float8_e8m0fnu",
    "FLOAT4E2M1": "float4_e2m1fn_x2",
}


@dataclass(frozen=True)
class Source:
    """A model that is ready to be built."""

    artifact: OnnxArtifact
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str


def resolve(source: object, profiles: Profiles, precision: str | None) -> Source:
    """Settle what is to be built.

    Args:
        source: an OnnxArtifact or the path of an ONNX file.
        profiles: (min, opt, max) for every dynamic axis, one or several; None means the artifact's own.
        precision: "fp32" or "tf32"; None means the artifact's own, and "fp32" for a file.

    Raises:
        InputError: neither an artifact nor a path, or an unknown precision.
        ArtifactError: a file that is missing, not ONNX, or a graph that can't be called like a function of tensors.
        DtypeError: an input or output of a dtype that TensorRT can't take.
        DynamicAxisError: a dynamic dimension without a range, or a range without such a dimension.
    """
    if precision is not None:
        choice("precision", precision, PRECISIONS)
    if isinstance(source, (str, Path)):
        return _adopt(Path(source), profiles, precision or "fp32")
    if not isinstance(source, OnnxArtifact):
        raise InputError(
            "build's source",
            got=f"a {type(source).__name__}",
            allowed="an OnnxArtifact or the path of an ONNX file",
            fix="for a torch module use deploy, or export it first",
        )
    signature = source.signature
    _check_dtypes(signature)
    settled = source.profiles
    if profiles is not None:
        places = {
            dim: f"dimension {position} of input '{spec.name}'"
            for spec in reversed(signature.inputs)
            for position, dim in reversed(list(enumerate(spec.shape)))
            if isinstance(dim, str)
        }
        steps = {axis.name: axis.multiple_of for axis in signature.axes}
        settled = _as_profiles(profiles, places)
        axes = tuple(_axis(axis.name, settled, steps[axis.name]) for axis in signature.axes)
        signature = replace(signature, axes=axes)
    if precision is not None and source.precision not in PRECISIONS:
        raise InputError(
            "precision",
            got=repr(precision),
            allowed=f"the graph's dtypes make it {source.precision!r}",
            fix="leave precision out, or export the model again",
        )
    return Source(source, signature, settled, precision or source.precision)


def _adopt(path: Path, profiles: Profiles, precision: str) -> Source:
    _check_file(path)
    owner = scratch_folder()
    model = _copy(path, Path(owner.path) / "model.onnx")
    signature, places = _read_signature(model, path)
    _check_dtypes(signature)
    settled = _as_profiles(profiles, places)
    signature = replace(signature, axes=tuple(_axis(name, settled) for name in places))
    producer = f"{model.producer_name} {model.producer_version}".strip()
    versions = {"onnx": str(onnx.__version__)} | ({"producer": producer} if producer else {})
    artifact = OnnxArtifact(
        owner.path, owner=owner, signature=signature, profiles=settled, precision=precision, versions=versions
    )
    return Source(artifact, signature, settled, precision)


def _check_dtypes(signature: Signature) -> None:
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.dtype not in IO_DTYPES:
                floating = spec.dtype.startswith("float")
                raise DtypeError(
                    f"{what} '{spec.name}'",
                    name=spec.name,
                    got=f"dtype is {spec.dtype}",
                    allowed="TensorRT takes " + ", ".join(IO_DTYPES),
                    fix="export the model in float32, e.g. after model.float()"
                    if floating
                    else f"cast the {what} in the model, integers to int32 or int64",
                )


def _as_profiles(profiles: Profiles, places: Mapping[str, str]) -> tuple[Profile, ...]:
    """Check profiles against the dynamic axes (name -> where it is, for the message)."""
    given: Sequence[Ranges] = ()
    if profiles is not None:
        given = [profiles] if isinstance(profiles, (Profile, Mapping)) else profiles
    settled = [
        one if isinstance(one, Profile) else Profile(cast("Mapping[str, tuple[int, int, int]]", one)) for one in given
    ]
    for profile in settled or [Profile({})]:
        missing = [name for name in places if name not in profile.ranges]
        unknown = [name for name in profile.ranges if name not in places]
        if missing:
            example = ", ".join(f"'{name}': (1, 8, 32)" for name in places)
            raise DynamicAxisError(
                "profiles",
                axis=missing[0],
                got="no range for " + ", ".join(f"axis '{name}' ({places[name]})" for name in missing),
                allowed="every dynamic axis needs (min, opt, max)",
                fix=f"e.g. profiles={{{example}}}",
            )
        if unknown:
            valid = ", ".join(f"'{name}'" for name in places)
            raise DynamicAxisError(
                "profiles",
                axis=unknown[0],
                got="a range for " + ", ".join(f"'{name}'" for name in unknown),
                allowed=f"the dynamic axes are {valid}" if places else "the model has no dynamic axis",
                fix="use those names" if places else "leave profiles out",
            )
    return tuple(settled) or (Profile({}),)


def _axis(name: str, profiles: Sequence[Profile], multiple_of: int = 1) -> Axis:
    ranges = [profile.ranges[name] for profile in profiles]
    for low, opt, high in ranges:
        Axis(name, low, opt, high, multiple_of)
    low, high = min(low for low, _, _ in ranges), max(high for _, _, high in ranges)
    return Axis(name, low, ranges[0][1], high, multiple_of)


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise ArtifactError(f"'{path}'", path=str(path), got=what, fix="give the path of an ONNX file")
    try:
        # By path: above 2 GB there is no other way, and external data are found relative to it.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ArtifactError(
            f"'{path}'",
            path=str(path),
            got=f"it is no valid ONNX model ({reason})",
            fix="export it again, or upgrade onnx if the file is newer than it",
        ) from error


def _copy(path: Path, target: Path) -> Any:
    """Copy the model and return it without its external data."""
    model = onnx.load(str(path), load_external_data=False)
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in walk_tensors(model.graph)):
        # One file beside the model, whatever the names and number of the originals.
        onnx.save_model(
            onnx.load(str(path)),
            str(target),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{target.name}.data",
            convert_attribute=True,
        )
    else:
        shutil.copyfile(path, target)
    return model


def _read_signature(model: Any, path: Path) -> tuple[Signature, dict[str, str]]:
    """The signature without its axes, and where each dynamic axis is."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    names = [value.name for value in (*inputs, *graph.output)]
    for name in names:
        if names.count(name) > 1:
            raise ArtifactError(
                f"'{path}'",
                path=str(path),
                got=f"the name '{name}' stands for more than one input or output",
                fix="put an Identity node before the output and name its result otherwise",
            )
    axes = _AxisNames()
    specs = tuple(_spec(value, f"input '{value.name}'", axes) for value in inputs)
    places = dict(axes.places)
    outputs = tuple(_spec(value, f"output '{value.name}'", axes) for value in graph.output)
    parameters = tuple(Parameter(spec.name, "positional", Tree("tensor")) for spec in specs)
    leaves = (Tree("tensor"),) * len(outputs)
    output = leaves[0] if len(outputs) == 1 else Tree("dict", tuple(spec.name for spec in outputs), leaves)
    return Signature(specs, outputs, (), parameters, output), places


class _AxisNames:
    """Identifiers for ONNX's dimension names, which may be anything; one for one."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def name(self, wanted: str, key: str, place: str) -> str:
        if key not in self._names:
            name = re.sub(r"\W", "_", wanted, flags=re.ASCII)
            if not name.isidentifier() or keyword.iskeyword(name):
                name = f"_{name}"
            stem, number = name, 1
            while name in self.places:
                number += 1
                name = f"{stem}_{number}"
            self._names[key] = name
            self.places[name] = place
        return self._names[key]


def _spec(value: Any, subject: str, axes: _AxisNames) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = str(kind or "nothing").removesuffix("_type")
        raise DtypeError(
            subject,
            name=value.name,
            got=f"it holds {what}, no tensor",
            allowed="TensorRT takes tensors",
            fix="export the model with tensors for inputs and outputs",
        )
    tensor = value.type.tensor_type
    member = str(onnx.TensorProto.DataType.Name(tensor.elem_type))
    shape: list[Dim] = []
    for position, dim in enumerate(tensor.shape.dim):
        if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
            continue
        unnamed = f"{value.name}_dim_{position}"
        wanted = str(dim.dim_param) or unnamed
        key = f"named {wanted}" if dim.dim_param else f"unnamed {unnamed}"
        shape.append(axes.name(wanted, key, f"dimension {position} of {subject}"))
    return TensorSpec(value.name, _DTYPES.get(member, member.lower()), tuple(shape))


def fingerprint(artifact: OnnxArtifact, refittable: bool = False) -> dict[str, str]:
    """What TensorRT reads of a model, as SHA-256 by file: without remarks such as source lines, which it does not.

    Args:
        artifact: the model.
        refittable: whoever takes the engine refits it, so the values of weights that it can replace don't matter.
    """
    files = artifact.manifest()["files"]
    found = {name: entry["sha256"] for name, entry in files.items()}
    model = onnx.load(str(artifact.onnx_path), load_external_data=refittable)
    _strip(model)
    for function in model.functions:
        _strip(function)
        _strip_nodes(function.node)
    _strip_graph(model.graph)
    if refittable:  # external data are in the model by now
        found = {WEIGHTS: hashlib.sha256(_emptied(model, artifact)).hexdigest()}
    found[artifact.onnx_path.name] = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return found


def without_values(artifact: OnnxArtifact) -> dict[str, str]:
    """A refittable model as SHA-256 by file, remarks included, without the values of weights that can be replaced."""
    model = onnx.load(str(artifact.onnx_path))
    program = _emptied(model, artifact)
    files = {WEIGHTS: program, artifact.onnx_path.name: model.SerializeToString(deterministic=True)}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _emptied(model: Any, artifact: OnnxArtifact) -> bytes:
    """Take the values of replaceable weights out of a model; how they follow from the module's."""
    program = json.loads(artifact.read(WEIGHTS))
    del program["fingerprint"]  # of values
    for tensor in model.graph.initializer:
        if tensor.name in program["weights"]:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type))
    return canonical(program)


def _strip(part: Any) -> None:
    part.ClearField("doc_string")
    del part.metadata_props[:]


def _strip_graph(graph: Any) -> None:
    _strip(graph)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _strip(value)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        _strip(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
        for graph in subgraphs(node):
            _strip_graph(graph)

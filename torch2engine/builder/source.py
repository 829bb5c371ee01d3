"""The argument of `build` → a model on disk with its signature, profiles and precision.

Enters: an OnnxArtifact, or the path of an ONNX file from anywhere (tf2onnx's output, say). Leaves: `BuildSource`, in
which a file has become an artifact. Separate because only this file decides which profiles are built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, cast

import onnx

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.builder.onnx_file import check_onnx_file, copy_model, read_signature
from torch2engine.core.config import require_choice
from torch2engine.core.errors import DtypeError, DynamicAxisError, InputError
from torch2engine.core.precisions import FLOAT32_PRECISIONS, LOW_PRECISIONS, precision_word
from torch2engine.core.spec import Axis, Profile, Signature
from torch2engine.core.wording import kind_of
from torch2engine.onnx_graph.axis_flow.analysis import find_influences
from torch2engine.onnx_graph.tensor_types import graph_precision
from torch2engine.trt.bindings import IO_DTYPES

__all__ = ["BuildSource", "Profiles", "make_build_source"]

Ranges: TypeAlias = "Profile | Mapping[str, Sequence[int]]"
Profiles: TypeAlias = "Ranges | Sequence[Ranges] | None"


@dataclass(frozen=True)
class BuildSource:
    """A model that is ready to be built.

    Args:
        artifact: its files.
        signature: its inputs and outputs, with the ranges of `profiles`.
        profiles: the optimization profiles to build for; at least one.
        precision: "fp32" or "tf32", or what the ONNX graph's own dtypes make it.
    """

    artifact: OnnxArtifact
    signature: Signature
    profiles: tuple[Profile, ...]
    precision: str


def make_build_source(source: object, profiles: Profiles = None, precision: str | None = None) -> BuildSource:
    """Find out what is to be built.

    Args:
        source: an OnnxArtifact or the path of an ONNX file.
        profiles: (min, opt, max) for every dynamic axis, one or several; None means the artifact's own.
        precision: "fp32" or "tf32"; None means the artifact's own, and for a file what its dtypes make it.

    Raises:
        InputError: neither an artifact nor a path, or an unknown precision.
        ArtifactError: a file that is missing, not ONNX, or a graph that can't be called like a function of tensors.
        DtypeError: an input or output of a dtype that TensorRT can't take.
        DynamicAxisError: a dynamic dimension without a range, or a range without such a dimension.
    """
    if precision is not None:
        _check_builder_precision(precision)
    if isinstance(source, (str, Path)):
        return _import_onnx_file(Path(source), profiles, precision)
    if not isinstance(source, OnnxArtifact):
        raise InputError(
            "build's source",
            got=kind_of(source),
            allowed="an OnnxArtifact or the path of an ONNX file",
            fix="for a torch module use deploy, or export it first",
        )
    source = source.in_private_folder()
    signature = source.signature
    _check_dtypes(signature)
    checked_profiles = source.profiles
    if profiles is not None:
        checked_profiles = _checked_profiles(profiles, _axis_places(signature))
        axes = tuple(_axis_over(axis.name, checked_profiles, axis.multiple_of) for axis in signature.axes)
        signature = replace(signature, axes=axes)
    return BuildSource(source, signature, checked_profiles, _precision_of(source.precision, precision))


def _check_builder_precision(precision: object) -> None:
    """Refuse a precision that the builder does not have; export writes lower ones into the graph."""
    word = precision_word(precision)
    if word in LOW_PRECISIONS:
        raise InputError(
            "precision",
            got=repr(precision),
            allowed=f"one of {', '.join(map(repr, FLOAT32_PRECISIONS))}, the builder's own",
            fix=f"export the model in it, torch2engine.export(..., precision={word!r}), and build that",
        )
    require_choice("precision", precision, FLOAT32_PRECISIONS, meant=word)


def _precision_of(from_dtypes: str, precision: str | None) -> str:
    """The precision of an engine whose graph has this one; only float32 leaves the builder a choice."""
    if precision is not None and from_dtypes not in FLOAT32_PRECISIONS:
        raise InputError(
            "precision",
            got=repr(precision),
            allowed=f"{from_dtypes!r}, which the graph's dtypes make it",
            fix="leave precision out, or export the model again",
        )
    return precision or from_dtypes


def _axis_places(signature: Signature) -> dict[str, str]:
    """{axis: its first place among the inputs}, for messages."""
    places: dict[str, str] = {}
    for spec in reversed(signature.inputs):  # backwards, so that the first place remains
        for position, dim in reversed(list(enumerate(spec.shape))):
            if isinstance(dim, str) and dim.isidentifier():
                places[dim] = f"dimension {position} of input '{spec.name}'"
    return places


def _import_onnx_file(path: Path, profiles: Profiles, precision: str | None) -> BuildSource:
    """Make an artifact of an ONNX file from elsewhere."""
    check_onnx_file(path)
    owner = scratch_folder()
    model = copy_model(path, Path(owner.path) / "model.onnx")
    foreign = read_signature(model, path)
    _check_dtypes(foreign.signature)
    checked_profiles = _checked_profiles(profiles, foreign.axis_places)
    axes = tuple(_axis_over(name, checked_profiles) for name in foreign.axis_places)
    signature = replace(foreign.signature, axes=axes)
    found_precision = _precision_of(graph_precision(model), precision)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    versions = {"onnx": str(onnx.__version__)} | ({"producer": producer} if producer else {})
    artifact = OnnxArtifact(
        owner.path,
        owner=owner,
        signature=signature,
        profiles=checked_profiles,
        precision=found_precision,
        versions=versions,
        influences=find_influences(model, signature),
    )
    return BuildSource(artifact, signature, checked_profiles, found_precision)


def _check_dtypes(signature: Signature) -> None:
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.dtype not in IO_DTYPES:
                floating = spec.dtype.startswith("float")
                raise DtypeError(
                    f"{what} '{spec.name}'",
                    name=spec.name,
                    got=f"dtype {spec.dtype}",
                    allowed="one of " + ", ".join(IO_DTYPES) + ", which TensorRT takes",
                    fix="export the model in float32, e.g. after model.float()"
                    if floating
                    else f"cast the {what} in the model, integers to int32 or int64",
                )


def _checked_profiles(profiles: Profiles, places: Mapping[str, str]) -> tuple[Profile, ...]:
    """The given profiles, checked against the dynamic axes.

    Args:
        profiles: one, several, or None.
        places: {axis: where it is, for the message}.
    """
    given: Sequence[Ranges] = ()
    if profiles is not None:
        given = [profiles] if isinstance(profiles, (Profile, Mapping)) else profiles
    checked = [
        ranges if isinstance(ranges, Profile) else Profile(cast("Mapping[str, tuple[int, int, int]]", ranges))
        for ranges in given
    ]
    for profile in checked or [Profile({})]:
        missing = [name for name in places if name not in profile.ranges]
        unknown = [name for name in profile.ranges if name not in places]
        if missing:
            example = ", ".join(f"'{name}': (1, 8, 32)" for name in places)
            raise DynamicAxisError(
                "profiles",
                axis=missing[0],
                got="no range of " + ", ".join(f"axis '{name}' ({places[name]})" for name in missing),
                allowed="(min, opt, max) for every dynamic axis",
                fix=f"e.g. profiles={{{example}}}",
            )
        if unknown:
            valid = ", ".join(f"'{name}'" for name in places)
            raise DynamicAxisError(
                "profiles",
                axis=unknown[0],
                got="a range for " + ", ".join(f"'{name}'" for name in unknown),
                allowed=f"ranges of {valid}" if places else "none, since the model has no dynamic axis",
                fix="leave out the others" if places else "leave profiles out",
            )
    return tuple(checked) or (Profile({}),)


def _axis_over(name: str, profiles: Sequence[Profile], multiple_of: int = 1) -> Axis:
    """An axis that ranges over all profiles; its opt is the first profile's."""
    ranges = [profile.ranges[name] for profile in profiles]
    for low, opt, high in ranges:
        Axis(name, low, opt, high, multiple_of)  # refuses numbers that contradict each other
    smallest = min(low for low, _, _ in ranges)
    largest = max(high for _, _, high in ranges)
    _, first_opt, _ = ranges[0]
    return Axis(name, smallest, first_opt, largest, multiple_of)

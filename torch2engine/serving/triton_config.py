"""A signature and its profiles → the text of Triton's config.pbtxt.

Enters: an artifact's facts and the name of a backend of Triton. Leaves: the text, or the reason why Triton can't serve
the model. Separate because nothing here touches a file. The rules are those of Triton and of its backends for TensorRT
and ONNX Runtime, as of 2026. All that they could guess is written out, since they take dimension 0 for a batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import InputError
from torch2engine.core.spec import Dim, Profile, Signature, TensorSpec
from torch2engine.trt.bindings import IO_DTYPES

__all__ = ["BACKENDS", "Scheduling", "config_text", "without_comments"]

# As Triton's backend for ONNX Runtime numbers them; without a number it takes the highest level.
_OPTIMIZER_LEVELS = {"ENABLE_EXTENDED": 1, "DISABLE_ALL": 2}
_ORDINARY_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|b?float16|float32|float64")


@dataclass(frozen=True)
class _Backend:
    """What one backend of Triton does.

    Args:
        title: its library's name.
        kind: where its instances run.
        dtypes: those of its inputs and outputs, if they are fewer than Triton's own.
        takes_scalars: whether tensors may have no dimension.
        names_profiles: whether the configuration names the optimization profiles.
    """

    title: str
    kind: str
    dtypes: tuple[str, ...] | None
    takes_scalars: bool
    names_profiles: bool


BACKENDS = {
    "tensorrt": _Backend("TensorRT", "KIND_GPU", IO_DTYPES, takes_scalars=False, names_profiles=True),
    "onnxruntime": _Backend("ONNX Runtime", "KIND_AUTO", None, takes_scalars=True, names_profiles=False),
}
"""By the name that a configuration gives them."""


@dataclass(frozen=True)
class Scheduling:
    """How Triton gives work to a model.

    Args:
        instances: on each GPU.
        max_wait_s: how long a request waits for others, in seconds.
    """

    instances: int = 1
    max_wait_s: float = 0.0


@dataclass(frozen=True)
class _Batching:
    """How requests are merged.

    Args:
        max_batch_size: rows that go together; 0 for requests that are answered alone.
        preferred: sizes that the profiles are tuned for.
        note: which requests are merged, or why none are.
    """

    max_batch_size: int
    preferred: tuple[int, ...]
    note: str


def config_text(
    artifact: EngineArtifact | OnnxArtifact,
    name: str,
    backend: str,
    scheduling: Scheduling = Scheduling(),
    files: Mapping[str, str] | None = None,
    optimizer: str = "ENABLE_ALL",
) -> str:
    """Write the configuration of a model.

    Args:
        artifact: an engine or an exported model.
        name: of the model.
        backend: a name of `BACKENDS`.
        scheduling: how work is given to it.
        files: compute capability, as "8.0", -> the plan for it; None for one plan.
        optimizer: the level of ONNX Runtime's optimiser, as `optimizer_level` gives it.

    Raises:
        InputError: Triton or its backend can't serve such a model.
    """
    signature = artifact.signature
    rules = BACKENDS[backend]
    _check_tensors(signature, rules)
    profiles = _outermost(artifact.profiles)
    batching = _plan_batching(artifact, [artifact.profiles[index] for index in profiles])
    group = f"count: {scheduling.instances} kind: {rules.kind}"
    if rules.names_profiles and profiles not in ([], [0]):  # without a name, Triton takes the first
        group += f" profile: [ {', '.join(_quoted(str(index)) for index in profiles)} ]"
    lines = [
        f"# {artifact.precision}; {batching.note}",
        f"name: {_quoted(name)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {batching.max_batch_size}",
        *_tensor_lines("input", signature.inputs, artifact, batching),
        *_tensor_lines("output", signature.outputs, artifact, batching),
        f"instance_group [ {{ {group} }} ]",
    ]
    if batching.max_batch_size > 1:
        sizes = ", ".join(map(str, batching.preferred))
        wait = f"max_queue_delay_microseconds: {round(scheduling.max_wait_s * 1e6)}"
        lines.append(f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] {wait} }}")
    if optimizer in _OPTIMIZER_LEVELS:
        lines.append(f"optimization {{ graph {{ level: {_OPTIMIZER_LEVELS[optimizer]} }} }}")
    for capability, file in (files or {}).items():
        lines.append(f"cc_model_filenames [ {{ key: {_quoted(capability)} value: {_quoted(file)} }} ]")
    return "\n".join(lines) + "\n"


def without_comments(text: str) -> list[str]:
    """The lines of a configuration that say something to Triton."""
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _check_tensors(signature: Signature, rules: _Backend) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        what = "input" if spec in signature.inputs else "output"
        subject = f"{what} '{spec.name}'"
        if spec.live is not None:
            raise InputError(
                subject,
                name=spec.name,
                got="a parameter that is an input of the engine",
                allowed="inputs that a request brings, since Triton keeps no values",
                fix="deploy without live parameters",
            )
        supported = spec.dtype in (rules.dtypes or (spec.dtype,)) and _ORDINARY_DTYPE.fullmatch(spec.dtype)
        if not supported:
            raise InputError(
                subject,
                name=spec.name,
                got=f"dtype {spec.dtype}",
                allowed=f"a dtype of Triton's backend for {rules.title}",
                fix="cast it inside the model, e.g. to float32",
            )
        if 0 in spec.shape or not (spec.shape or rules.takes_scalars):
            raise InputError(
                subject,
                name=spec.name,
                got=f"shape [{', '.join(map(str, spec.shape))}]",
                allowed=f"{'dimensions' if spec.shape else 'a dimension'} of at least 1, as Triton's backend for "
                f"{rules.title} needs",
                fix="leave it out" if spec.shape else "give it one dimension inside the model, e.g. by reshape(1)",
            )


def _outermost(profiles: Sequence[Profile]) -> list[int]:
    """The numbers of the profiles that no other one contains; equal ones count once."""
    found: list[int] = []
    for index, profile in enumerate(profiles):
        others = [other for other in range(len(profiles)) if other != index]
        around = [other for other in others if _contains(profiles[other], profile)]
        if not any(not _contains(profile, profiles[other]) or other < index for other in around):
            found.append(index)
    return found


def _contains(outer: Profile, inner: Profile) -> bool:
    return outer.contains(inner.sizes(0)) and outer.contains(inner.sizes(2))


def _plan_batching(artifact: EngineArtifact | OnnxArtifact, profiles: Sequence[Profile]) -> _Batching:
    reason = _why_alone(artifact, profiles)
    if reason:
        return _Batching(0, (), f"requests are answered alone, since {reason}")
    axis = str(artifact.signature.inputs[0].shape[0])
    ranges = [profile.ranges[axis] for profile in profiles]
    # A larger one fails the load: Triton checks every profile that it is given.
    largest = min(high for _, _, high in ranges)
    # With 1 among the preferred sizes, no request would wait for another.
    preferred = {min(opt, largest) for _, opt, _ in ranges} | {largest}
    return _Batching(largest, tuple(sorted(preferred - {1})), f"requests are merged along '{axis}'")


def _why_alone(artifact: EngineArtifact | OnnxArtifact, profiles: Sequence[Profile]) -> str:
    """Why requests can't be rows of one call; "" if they can."""
    signature = artifact.signature
    if not signature.inputs:
        return "there is no input"
    first = signature.inputs[0]
    axis = first.shape[0] if first.shape else None
    if not isinstance(axis, str) or not axis.isidentifier():
        return f"'{first}' begins with no dynamic axis"
    for spec in (*signature.inputs, *signature.outputs):
        if spec.shape[:1] != (axis,):
            return f"'{spec}' does not begin with '{axis}'"
        if any(axis in re.findall(r"\w+", str(dim)) for dim in spec.shape[1:]):
            return f"another size of '{spec}' follows from '{axis}'"
    if axis not in artifact.influences:
        return f"nobody has analysed whether the entries of '{axis}' influence each other"
    if influence := artifact.influences[axis]:
        return f"the entries of '{axis}' may influence each other: {influence}"
    least = min(profile.ranges[axis][0] for profile in profiles)  # an axis in steps begins with one
    return f"the least '{axis}' is {least}, and Triton fills nothing up" if least > 1 else ""


def _tensor_lines(
    field: str, specs: Iterable[TensorSpec], artifact: EngineArtifact | OnnxArtifact, batching: _Batching
) -> list[str]:
    parts: list[str] = []
    for spec in specs:
        shape = [_size(dim, artifact.profiles if field == "input" else ()) for dim in spec.shape]
        if batching.max_batch_size:
            shape = shape[1:]
        reshape = "" if shape or not batching.max_batch_size else " reshape { shape: [ ] }"
        dims = ", ".join(map(str, shape or [1]))
        parts.append(f"  {{ name: {_quoted(spec.name)} data_type: {_data_type(spec)} dims: [ {dims} ]{reshape} }}")
    return [f"{field} [", ",\n".join(parts), "]"]


def _size(dim: Dim, profiles: Sequence[Profile]) -> int:
    """A dimension as Triton has it: -1 if it can change. Outputs must say -1 wherever the engine does."""
    if isinstance(dim, int):
        return dim
    sizes = {size for profile in profiles for size in profile.ranges.get(dim, ())}
    return sizes.pop() if len(sizes) == 1 else -1


def _data_type(spec: TensorSpec) -> str:
    return "TYPE_" + spec.dtype.upper().replace("BFLOAT", "BF").replace("FLOAT", "FP")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

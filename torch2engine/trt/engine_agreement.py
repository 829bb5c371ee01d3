"""Whether a live engine is the one that its manifest describes.

Enters: an engine and its artifact. Leaves: nothing, or an ArtifactError. Separate because a wrong manifest beside a
right plan would make calls fail, or answer wrongly, far from the cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch2engine.artifact.agreement import check_agreement
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_outline import OutlineTensor
from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.spec import Profile, TensorSpec
from torch2engine.trt.bindings import ICudaEngine, TensorRT

__all__ = ["check_engine"]


def check_engine(engine: ICudaEngine, rt: TensorRT, artifact: EngineArtifact) -> None:
    """Compare tensors and optimization profiles; inputs that the engine never reads may be missing in it.

    Raises:
        ArtifactError: the first difference.
    """
    names: list[str] = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = {name: engine.get_tensor_mode(name) == rt.api.TensorIOMode.INPUT for name in names}
    fixed_sizes = {spec.name: _fixed_sizes(spec, artifact.profiles) for spec in artifact.signature.inputs}
    tensors = [_outline_tensor(engine, rt, name, fixed_sizes.get(name, {})) for name in names]
    try:
        check_agreement(
            artifact.signature,
            [tensor for tensor in tensors if is_input[tensor.name]],
            [tensor for tensor in tensors if not is_input[tensor.name]],
            subject="a plan",
            is_engine=True,
        )
        _check_profiles(engine, artifact, {name for name in names if is_input[name]})
    except SchemaError as error:
        raise ArtifactError("plan", got=error.got, allowed=error.allowed, fix="build it again") from None


def _fixed_sizes(spec: TensorSpec, profiles: Sequence[Profile]) -> dict[int, int]:
    """Dimensions that the signature names, and that have one and the same size in all profiles.

    TensorRT-RTX makes an engine of a single size and no ranges, whose tensors have numbers for these dimensions.
    """
    sizes = [spec.sized(profile.sizes(which)) for profile in profiles for which in range(3)]
    return {
        index: at_all[0]
        for index, at_all in enumerate(zip(*sizes, strict=True))
        if isinstance(spec.shape[index], str) and len(set(at_all)) == 1
    }


def _outline_tensor(engine: ICudaEngine, rt: TensorRT, name: str, fixed_sizes: Mapping[int, int]) -> OutlineTensor:
    shape = tuple(
        "" if size < 0 or fixed_sizes.get(index) == size else int(size)
        for index, size in enumerate(engine.get_tensor_shape(name))
    )
    return OutlineTensor(name, str(rt.dtype_name(engine.get_tensor_dtype(name))), shape)


def _check_profiles(engine: ICudaEngine, artifact: EngineArtifact, inputs: set[str]) -> None:
    """Compare the sizes of every dynamic input at min, opt and max of every profile."""
    signature = artifact.signature
    if not signature.axes:
        return
    if engine.num_optimization_profiles != len(artifact.profiles):
        got = f"a plan of {engine.num_optimization_profiles} profiles"
        raise SchemaError(got, f"{len(artifact.profiles)}, as the manifest says")
    dynamic = [
        spec
        for spec in signature.inputs
        if spec.name in inputs
        and any(isinstance(dim, str) for dim in spec.shape)
        and any(size < 0 for size in engine.get_tensor_shape(spec.name))
    ]
    for index, profile in enumerate(artifact.profiles):
        for spec in dynamic:
            found = [tuple(map(int, shape)) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            expected = [spec.sized(profile.sizes(which)) for which in range(3)]
            if found != expected:
                got = f"a plan whose input '{spec.name}' ranges over {_ranges(found)} in profile {index}"
                raise SchemaError(got, f"{_ranges(expected)}, as the manifest says")


def _ranges(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)

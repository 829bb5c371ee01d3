"""A plan that torch2engine did not build → an `EngineArtifact`.

Enters: a plan file. Leaves: an artifact whose signature and profiles are those that TensorRT reads in the plan.
Separate because only here TensorRT, and not an export, says what the inputs of an engine are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.plan_file import PlanFile
from torch2engine.artifact.saved_folder import PLAN
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError
from torch2engine.core.precisions import DEFAULT_PRECISION, lowest_cast_precision
from torch2engine.core.spec import Axis, Dim, Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.trt.bindings import ICudaEngine, TensorRT, check_return_value, find_tensorrt
from torch2engine.trt.gpu import Gpu, make_gpu_current, require_gpu

__all__ = ["adopt_plan"]


def adopt_plan(file: PlanFile, precision: str | None = None, index: int = 0) -> EngineArtifact:
    """Make an artifact of a plan, in a scratch folder.

    Args:
        file: from `read_plan_file`.
        precision: what the engine computes in. By default it follows from the dtypes of its inputs and outputs.
        index: the GPU, as CUDA counts the visible devices; TensorRT deserialises the plan there.

    Raises:
        InstallationError: no GPU, or no TensorRT of the plan's flavour.
        ArtifactError: TensorRT of another version built the plan, or TensorRT refuses it.
    """
    gpu = require_gpu(index)
    rt = find_tensorrt(file.flavour)
    _check_version(file, rt)
    make_gpu_current(index)
    engine = _deserialised(file, rt, gpu)
    reader = _PlanReader(engine, rt)
    owner = scratch_folder()
    (Path(owner.path) / PLAN).write_bytes(file.plan)
    signature = reader.signature()
    dtypes = {spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    return EngineArtifact(
        owner.path,
        owner=owner,
        hardware=Hardware(
            flavour=rt.name,
            flavour_version=rt.version,
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            driver=gpu.driver,
        ),
        signature=signature,
        profiles=reader.profiles(),
        precision=precision or lowest_cast_precision(dtypes) or DEFAULT_PRECISION,
        versions={rt.name: rt.version},
    )


def _check_version(file: PlanFile, rt: TensorRT) -> None:
    """Refuse a plan of another version before TensorRT sees it."""
    if file.version.split(".")[:3] != rt.version.split(".")[:3]:
        package = "tensorrt-rtx" if rt.is_rtx else "tensorrt"
        raise ArtifactError(
            f"engine file '{file.path}'",
            path=str(file.path),
            got=f"a plan of version {file.version}",
            allowed=f"one of {rt.title}, since a plan runs in its own version only",
            fix=f"build it again here, or `pip install '{package}=={file.version}'`",
        )


def _deserialised(file: PlanFile, rt: TensorRT, gpu: Gpu) -> ICudaEngine:
    mark = rt.log.mark()
    with rt.call_lock:
        made = rt.api.Runtime(rt.logger).deserialize_cuda_engine(file.plan)
    subject = f"engine file '{file.path}' on {gpu.name}"
    return check_return_value(made, subject, rt, error=ArtifactError, since=mark, fix="build it again on this machine")


class _PlanReader:
    """Reads tensors and profiles of a live engine.

    Args:
        engine: the engine.
        rt: the TensorRT that holds it.
    """

    def __init__(self, engine: ICudaEngine, rt: TensorRT) -> None:
        self._engine = engine
        self._rt = rt
        names: list[str] = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = rt.api.TensorIOMode.INPUT
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        self._outputs = [name for name in names if name not in self._inputs]

    def signature(self) -> Signature:
        """The tensors as a signature; every dynamic dimension of an input is an axis of its own."""
        inputs = tuple(map(self._tensor_spec, self._inputs))
        outputs = tuple(map(self._tensor_spec, self._outputs))
        parameters = tuple(Parameter(spec.name, "positional", Tree("tensor")) for spec in inputs)
        leaves = (Tree("tensor"),) * len(outputs)
        result = leaves[0] if len(leaves) == 1 else Tree("dict", tuple(spec.name for spec in outputs), leaves)
        return Signature(inputs, outputs, tuple(self._axes()), parameters, result)

    def profiles(self) -> tuple[Profile, ...]:
        """The optimization profiles, in the engine's order."""
        return tuple(self._profile(index) for index in range(self._engine.num_optimization_profiles))

    def _tensor_spec(self, name: str) -> TensorSpec:
        shape: list[Dim] = [
            _axis_name(name, position) if size < 0 else int(size)
            for position, size in enumerate(self._engine.get_tensor_shape(name))
        ]
        return TensorSpec(name, self._rt.dtype_name(self._engine.get_tensor_dtype(name)), tuple(shape))

    def _profile(self, index: int) -> Profile:
        ranges: dict[str, tuple[int, int, int]] = {}
        for name, position in self._dynamic_dimensions():
            low, opt, high = (shape[position] for shape in self._profile_shapes(name, index))
            ranges[_axis_name(name, position)] = (low, opt, high)
        return Profile(ranges)

    def _axes(self) -> Iterator[Axis]:
        """One axis for each dynamic dimension, over all profiles; its opt is the first profile's."""
        profiles = self.profiles()
        for name, position in self._dynamic_dimensions():
            axis = _axis_name(name, position)
            ranges = [profile.ranges[axis] for profile in profiles]
            smallest = min(low for low, _, _ in ranges)
            largest = max(high for _, _, high in ranges)
            yield Axis(axis, smallest, ranges[0][1], largest)

    def _dynamic_dimensions(self) -> Iterator[tuple[str, int]]:
        for name in self._inputs:
            for position, size in enumerate(self._engine.get_tensor_shape(name)):
                if size < 0:
                    yield name, position

    def _profile_shapes(self, name: str, index: int) -> Sequence[Sequence[int]]:
        shapes: Sequence[Any] = self._engine.get_tensor_profile_shape(name, index)
        return [tuple(map(int, shape)) for shape in shapes]


def _axis_name(tensor: str, position: int) -> str:
    """The name of an axis, which is always an identifier, even if the tensor's name is not."""
    letters = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in tensor)
    return f"_{letters}_dim_{position}" if letters[:1].isdigit() else f"{letters}_dim_{position}"

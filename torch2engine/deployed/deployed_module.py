"""The nn.Module face of every backend: a module that is called like the model and refuses what it can't answer.

Enters: a call. Leaves: results in the model's own types, or a typed error before anything ran. Separate because the
contract of a call, of a copy and of a state_dict is the same for every backend; a backend only computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

import torch
from torch import nn
from typing_extensions import TypeVar as TypeVarWithDefault  # torch depends on it

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.live_parameters import encode_live_values
from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import RuntimeConfig, Tolerances, require_instance
from torch2engine.core.errors import InputError, ShapeError
from torch2engine.core.pytree import as_inputs, bind, unflatten
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Signature
from torch2engine.deployed.backend import Backend, WeightsGuard
from torch2engine.deployed.benchmark import BenchmarkReport, benchmark, device_of
from torch2engine.deployed.call_checks import check_devices, check_tensors
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.deployed.device_moves import device_after
from torch2engine.deployed.explain_calls import explain_calls
from torch2engine.deployed.explanation import Explanation
from torch2engine.deployed.live_tensors import REGISTERED, LiveTensors
from torch2engine.deployed.made_inputs import corner_sizes, random_cases
from torch2engine.deployed.module_state import artifact_of_state, state_of_artifact
from torch2engine.deployed.out_of_range import OutOfRange, checked_reference
from torch2engine.deployed.parameterless import ParameterlessModule
from torch2engine.deployed.split import InRangeRunner
from torch2engine.deployed.weight_sync import Refit, WeightSync
from torch2engine.deployed.write_back import WriteBack

B = TypeVar("B", bound=Backend)
Model_co = TypeVarWithDefault("Model_co", covariant=True, default=Any)
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
M = TypeVar("M", bound="DeployedModule[Any]")

__all__ = ["DeployedModule"]

_compiler: Any = torch.compiler  # its disable() has no types
_PARTS = ("_backend", "_live", "_out_of_range", "_weight_sync", "_write_back")  # are made anew for a copy


class HasForward(Protocol[P, R_co]):
    """A model whose `forward` says what it takes and returns."""

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class DeployedModule(ParameterlessModule, Generic[B, Model_co]):
    """A module that is called like the model that was deployed. It is the same for every backend; its backend computes.

    Args:
        artifact: what was built; its signature decides how the module is called.
        report: what deploy() found; None if nothing is known.
        runtime_config: how it answers.
        reference: the PyTorch module that answers under out_of_range="eager". It is kept alive. A copy or a pickle of
            this module does not take it along.
        device: where to run; None leaves that to the backend.

    Raises:
        InputError: out_of_range="eager" without a reference, or a reference without that option.
    """

    _t2e_deployed = True  # `unwrap`, in a lower layer, reads it and refuses to deploy the module again
    _backend: B
    _live: LiveTensors | None
    _out_of_range: OutOfRange
    _weight_sync: WeightSync
    _write_back: WriteBack | None
    _runtime_config: RuntimeConfig

    def __init__(
        self,
        artifact: Artifact,
        report: DeployReport | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_instance("runtime_config", runtime_config, RuntimeConfig)
        self._runtime_config = runtime_config
        self.report = report or DeployReport.of_nothing(artifact.precision)
        self.training = False
        self._assemble(artifact, checked_reference(type(self).__name__, runtime_config, reference), device)

    def _assemble(self, artifact: Artifact, reference: nn.Module | None, device: torch.device | str | None) -> None:
        """Make the parts for an artifact. Nothing else writes them."""
        guard = WeightsGuard(type(self).__name__)
        self._backend = self._make_backend(artifact, guard, device)
        self._live = LiveTensors.attach(self, artifact)
        self._out_of_range = OutOfRange(self._runtime_config.out_of_range, reference)
        self._weight_sync = WeightSync(self._backend, guard, self._out_of_range)
        self._write_back = WriteBack.of(artifact.signature)

    @abstractmethod
    def _make_backend(self, artifact: Any, guard: WeightsGuard, device: torch.device | str | None) -> B:
        """Make the backend of an artifact; it does nothing yet.

        Args:
            artifact: of the kind that this module runs.
            guard: whether the weights may answer.
            device: as for the constructor.
        """

    @classmethod
    def from_saved(
        cls: type[M],
        artifact: Any,
        path: str | Path,
        device: torch.device | None,
        runtime_config: RuntimeConfig,
        reference: nn.Module | None,
    ) -> M:
        """Make the module of an artifact that was saved; see `torch2engine.load`.

        Args:
            artifact: what was saved, of the kind that this module runs.
            path: where it lay, for messages.
            device, runtime_config, reference: as for `torch2engine.load`.
        """
        module = cls(artifact, runtime_config=runtime_config, reference=reference)
        return module if device is None else module.to(device)

    @property
    def _artifact(self) -> Artifact:
        return self._backend.artifact

    @property
    def runtime_config(self) -> RuntimeConfig:
        """How this module answers."""
        return self._runtime_config

    @property
    def signature(self) -> Signature:
        """Names, dtypes, axes and structure of a call."""
        return self._backend.artifact.signature

    @property
    def precision(self) -> str:
        """The arithmetic: a name of the table of precisions, e.g. "fp32" or "int8"."""
        return self._backend.artifact.precision

    @property
    def live_parameters(self) -> dict[str, torch.Tensor]:
        """The tensors that feed inputs of the engine at every call, by their names in the model.

        They are parameters and buffers of this module: write into them, assign others, or use `load_state_dict`. At the
        time of deploy they share the memory of the model's own, where the model is on the same device. Copies of this
        module, and a saved one, have their own.
        """
        return {} if self._live is None else self._live.by_path()

    @property
    def runtime(self) -> str:
        """The name of the runtime that answers, e.g. "ONNX Runtime"."""
        return self._backend.title

    @property
    def device(self) -> torch.device | None:
        """Where inputs must be; None until the first call binds it."""
        return self._backend.device

    if TYPE_CHECKING:
        # nn.Module types no calls. A deployed module is called like the model, so it takes the types of its `forward`.
        @overload
        def __call__(self: DeployedModule[Any, nn.Sequential], *args: Any, **kwargs: Any) -> Any: ...
        @overload
        def __call__(self: DeployedModule[Any, HasForward[P, R]], *args: P.args, **kwargs: P.kwargs) -> R: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer like the model.

        Args:
            args, kwargs: as the model takes them. Tensors are on this module's device, in the signature's dtypes or
                ones that cast to them without loss. Any strides.

        Returns:
            the model's own types around fresh tensors on the inputs' device, ready on the current stream. No later call
            changes them. With RuntimeConfig(output="static") the next call of this shape does, and autograd does not
            notice.

        Raises:
            InputError: missing, extra or other arguments, or other constants. A tensor that requires grad while grad is
                enabled. A tensor that can't be written into, where the model writes into its inputs.
            ShapeError, DtypeError, DeviceError: the call can't be answered; nothing was enqueued.
        """
        # Dynamo can't trace locks and foreign libraries, so torch.compile runs this call outside of its graph. This is
        # checked first, because Dynamo of torch 2.11 takes is_exporting() for true in every graph.
        if torch.compiler.is_dynamo_compiling():
            return _compiler.disable(self._answer, reason="an engine is no part of a graph")(args, kwargs)
        tracing = cast("Any", torch.jit).is_tracing()  # documented, but not in torch.jit's __all__
        if tracing or torch.compiler.is_exporting():
            raise InputError(
                type(self).__name__,
                got="a call while it is being traced or exported",
                allowed="a call that computes, since a trace would keep this answer for every input",
                fix="trace or export the PyTorch module instead",
            )
        return self._answer(args, kwargs)

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._weight_sync.tracked is not None:
            self._weight_sync.follow(self.infer)
        signature = self.signature
        leaves = bind(signature.parameters, args, kwargs)
        if self._live is not None:
            self._live.bind(self._backend.device or leaves[0].device)
            leaves += self._live.checked()
        self._check_call(leaves)
        if self._write_back is not None:
            self._write_back.check(leaves, args, kwargs)
        outputs = list(self._compute(leaves).values())
        if self._write_back is not None:
            return self._write_back.apply(leaves, outputs, args, kwargs)
        return unflatten(signature.output, outputs)

    def infer(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer flat inputs with flat outputs, under the same contract as a call, but write into no input.

        Args:
            leaves: one tensor per input of the signature, in its order. The last are the values of live parameters.

        Returns:
            output name -> fresh tensor. The new values of written inputs are among them (see `Signature.writes`).

        Raises:
            InputError, ShapeError, DtypeError, DeviceError: as for a call.
        """
        self._check_call(leaves)
        return self._compute(leaves)

    def infer_flat(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Answer as `infer`, with the outputs in the signature's order.

        Args, Raises: as for `infer`.
        """
        return list(self.infer(leaves).values())

    def _check_call(self, leaves: Sequence[torch.Tensor]) -> None:
        backend = self._backend
        check_tensors(backend.artifact.signature, leaves)
        check_devices(type(self).__name__, backend, leaves)

    def _compute(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer inputs that were checked in all but their sizes."""
        backend = self._backend
        signature = backend.artifact.signature
        sizes = signature.resolve([leaf.shape for leaf in leaves])
        try:
            profile = select_profile(signature, backend.artifact.profiles, sizes)
        except ShapeError as error:
            if self._runtime_config.out_of_range == "error":
                raise
            backend.check_ready()
            return self._answer_out_of_range(leaves, sizes, error)
        backend.check_ready()
        with torch.no_grad():
            inputs = [
                leaf.to(torch_dtype(spec.dtype)).resolve_neg().contiguous()
                for spec, leaf in zip(signature.inputs, leaves, strict=True)
            ]
            outputs = backend.run(inputs, profile)
        return {spec.name: output for spec, output in zip(signature.outputs, outputs, strict=True)}

    def _answer_out_of_range(
        self, leaves: Sequence[torch.Tensor], sizes: Mapping[str, int], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        """Answer sizes outside every profile, as the policy says."""
        runner = self._in_range_runner()
        return self._weight_sync.with_one_version(lambda: self._out_of_range.answer(runner, leaves, sizes, error))

    def _prove_split_axes(
        self, calls: Sequence[Sequence[torch.Tensor]], tolerance: Tolerances | None
    ) -> tuple[str, ...]:
        return self._out_of_range.prove_split_axes(self._in_range_runner(), calls, tolerance)

    def _in_range_runner(self) -> InRangeRunner:
        artifact = self._backend.artifact
        return InRangeRunner(
            artifact.signature,
            artifact.profiles,
            artifact.precision,
            artifact.influences,
            self._backend.title,
            self.infer,
        )

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write the artifact folder with the report, whole or not at all; `torch2engine.load` reads it.

        Args:
            path: the folder to write, e.g. ``"model.t2e"``.
            overwrite: replace an artifact that is there; anything else there is never touched.

        Raises:
            ArtifactError: something that is no artifact is in the way, or writing failed.
        """
        with self._weight_sync.weights_locked():
            report = self.report.to_json() if self.report.parity else None
            return self._current_artifact().with_report(report).save(path, overwrite=overwrite)

    def _current_artifact(self) -> Any:
        """The artifact to save or copy; the caller has locked the weights."""
        artifact = self._backend.current_artifact()
        if self._live is None:
            return artifact
        with torch.no_grad():
            return artifact.with_live_values(encode_live_values(self.signature.live_inputs, self._live.checked()))

    def benchmark(
        self,
        model: nn.Module | None = None,
        *,
        sizes: Iterable[Mapping[str, int]] | None = None,
        inputs: Any = None,
        examples: Iterable[Any] | None = None,
        tolerance: Tolerances | None = None,
        rounds: int = 15,
        calls: int | None = None,
        warmup: int = 20,
        streams: int | Sequence[int] | None = None,
        batches: int | Sequence[int] | None = None,
    ) -> BenchmarkReport:
        """Time calls, and those of the model in PyTorch eager beside them, after comparing the answers.

        With `streams` it also measures how many items a second come out while calls are in flight on so many streams.

        Args, Returns, Raises: as `torch2engine.deployed.benchmark.benchmark`.
        """
        return benchmark(
            self,
            model,
            sizes=sizes,
            inputs=inputs,
            examples=examples,
            tolerance=tolerance,
            rounds=rounds,
            calls=calls,
            warmup=warmup,
            streams=streams,
            batches=batches,
        )

    def explain(self, sample_input: Any = None) -> Explanation:
        """Measure calls, and say what makes them slower than they could be, each with what to try.

        It calls the module and a copy of it for about a second. The findings include those of deploy() about the
        engine. A module without a report has only the measured findings.

        Args:
            sample_input: as for `deploy`, on the module's device; None for invented inputs at the opt sizes.

        Raises:
            InputError, ShapeError, DtypeError, DeviceError: the engine does not take these inputs.
            InstallationError: no GPU for an engine.
        """
        leaves = self._leaves_to_explain(sample_input)
        signature = self.signature
        select_profile(signature, self._artifact.profiles, signature.resolve([leaf.shape for leaf in leaves]))
        return explain_calls(self, leaves)

    def _leaves_to_explain(self, sample_input: Any) -> Sequence[torch.Tensor]:
        """Flat inputs for `explain`: those that are given, or invented ones at the opt sizes."""
        signature = self.signature
        live = [tensor.detach() for tensor in self.live_parameters.values()]
        if sample_input is None:
            cases = random_cases(signature, [corner_sizes(self._artifact.profiles)[1]], device_of(self), live)
            return next(iter(cases.values()))
        sample = as_inputs(sample_input)
        leaves = [*cast("list[torch.Tensor]", bind(signature.parameters, sample.args, sample.kwargs)), *live]
        self._check_call(leaves)
        return leaves

    def trim(self) -> None:
        """Give back the memory that only calls need. A backend that keeps none has nothing to do."""

    def refit(
        self,
        model: nn.Module | None = None,
        *,
        verify: bool | None = None,
        examples: Iterable[Any] | None = None,
        tolerance: Tolerances | None = None,
    ) -> Refit:
        """Take over a model's weights as they are now.

        The engine's weights follow from parameters and buffers as at the export: BatchNorm folded into convolutions,
        weights cast, transposed, tied, parametrised. Calls in flight end with the old weights, and later ones use the
        new. Calls of other threads wait for the refit. The next call of each shape makes its context, and its CUDA
        graph, anew.

        Args:
            model: of the structure that was deployed, on any device; by default the one that was deployed (or is
                tracked), as long as it lives. It is only read.
            verify: True compares the answers with the model's, on the inputs that deploy used. A module that was loaded
                uses random ones, unless it is given `examples`. False compares nothing. None compares at the first
                refit, and later only checks that all weights are finite. Until a comparison has passed, calls in other
                threads may see the new weights.
            examples: real inputs, each in the form of deploy's sample_input. They are compared on now and in later
                refits. With them, None for `verify` means True.
            tolerance: when the answers count as equal; by default the one of deploy. The precision's is the default for
                a module that was loaded, or that was deployed with a metric.

        Returns:
            what changed. Where nothing did, nothing is done.

        Raises:
            RefitError: the module was not deployed with refittable=True. A parameter or buffer is missing, has another
                shape or dtype, or is not tied any more. A weight is not finite in the engine's type. In these cases the
                old weights stay. It is also raised where the answers differ from the model's, or TensorRT failed
                half-way. After such a failure every call raises the same error, until a refit succeeds.
            InputError: no module, no valid `tolerance`, or an example that is not in the form of sample_input.
            DeviceError, InstallationError, ArtifactError: the engine can't be made live, or the new weights can't be
                stored.
        """
        return self._weight_sync.refit(self.infer, model, verify=verify, examples=examples, tolerance=tolerance)

    def stale(self, model: nn.Module | None = None) -> bool:
        """Whether a model's weights differ from this module's, by the values of all weights that the engine uses.

        It is exact, however parameters and registered buffers change: by optimizer steps, load_state_dict, moving
        averages, running statistics, assignment to `.data`, or writes through it. It does not read version counters,
        since they miss writes through `.data`. It reads every weight once and waits for the GPU.

        Args:
            model: as for `refit`.

        Raises:
            RefitError, InputError: as `refit`.
        """
        return self._weight_sync.stale(model)

    def track(self, model: nn.Module | None) -> None:
        """Follow a model: before each call but `infer`, this module checks whether it is stale, and refits itself.

        Args:
            model: as for `refit`; it is kept alive. None ends it. Copies of this module follow nothing.

        Raises:
            RefitError, InputError: as `refit`.
        """
        self._weight_sync.track(model)

    # What an engine can't do of nn.Module's interface is refused, never ignored.

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DeployedModule[B, Model_co]:
        backend = self._backend
        here = backend.device or torch.device("cpu")
        target = device_after(type(self).__name__, fn, here, backend.device_type)
        if target != here:
            backend.move(target)
            if self._live is not None:
                self._live.bind(target)
        return self

    # state_dict carries the whole artifact, as strings and byte tensors that weights_only=True loads.

    def get_extra_state(self) -> dict[str, Any]:
        """The artifact as a manifest and byte tensors (the plan for an engine, the ONNX files otherwise)."""
        with self._weight_sync.weights_locked():
            return state_of_artifact(self._current_artifact(), self._backend.in_state_dict)

    def set_extra_state(self, state: Any) -> None:
        """Take the artifact of another module of this kind, while no thread calls this one.

        Raises:
            ArtifactError: the state is not whole.
        """
        with self._weight_sync.lock:  # a refit that goes on ends first
            artifact = artifact_of_state(type(self).__name__, state, type(self._backend.artifact))
            self._assemble(artifact, self._out_of_range.reference, self._backend.device)
            self.report = DeployReport.of_nothing(artifact.precision)  # the other one was about the artifact before

    def __getstate__(self) -> dict[str, Any]:
        # A pickle leaves out the reference, the tracked model and everything live: they belong to this object, in this
        # process.
        with self._weight_sync.weights_locked():
            artifact = self._current_artifact()
            attributes = {name: value for name, value in self.__dict__.items() if name not in _PARTS}
            registered: dict[str, Any] = {name: {} for name in REGISTERED}  # their values are in the artifact
            return {**attributes, **registered, "_artifact": artifact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = dict(state)
        artifact = attributes.pop("_artifact")
        super().__setstate__(attributes)
        self._assemble(artifact, None, None)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        outputs = ", ".join(map(str, self.signature.outputs))
        ranges = " | ".join(str(profile) for profile in self._artifact.profiles if profile.ranges)
        facts = "; ".join([*([ranges] if ranges else []), f"{self.precision}, device={self.device}"])
        return f"{type(self).__name__}({inputs} -> {outputs}; {facts})"

"""What every deployed module is: an nn.Module that is called like the model and refuses what it can't answer.

Enters: a call. Leaves: results in the model's own types, or a typed error before anything ran. A room of its own
because TRTModule and ORTModule keep the same contract and differ only in who computes.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import nn
from torch.autograd import forward_ad

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.torch_types import dtype_name, layout_name, torch_dtype
from torch2engine.core.config import RuntimeConfig, Tolerance, of_kind
from torch2engine.core.errors import ArtifactError, DeviceError, InputError, ShapeError
from torch2engine.core.pytree import bind, unflatten
from torch2engine.core.spec import Signature
from torch2engine.modules.out_of_range import InRangeRunner, OutOfRange, checked_reference
from torch2engine.modules.parameterless import ParameterlessModule
from torch2engine.modules.torch_state import is_simulated

if TYPE_CHECKING:
    from torch2engine.pipeline.report import DeployReport

AnyArtifact = TypeVar("AnyArtifact", OnnxArtifact, EngineArtifact)

__all__ = ["DeployedModule"]

_compiler: Any = torch.compiler  # its disable() has no types


def _bytes(data: bytes) -> torch.Tensor:
    # frombuffer takes no empty buffer
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _has_values(leaf: torch.Tensor) -> bool:
    # Stand-ins have none: those of vmap have no storage, fake ones one elsewhere; an emptied storage has no address.
    try:
        return leaf.untyped_storage().device == leaf.device and (leaf.numel() == 0 or leaf.data_ptr() != 0)
    except RuntimeError:
        return False


class DeployedModule(ParameterlessModule, Generic[AnyArtifact]):
    """The base of TRTModule and ORTModule.

    Args:
        artifact: what was built; its signature decides how the module is called.
        report: what deploy() found, or None for a loaded module.
        runtime_config: how it answers.
        reference: the PyTorch module that answers under out_of_range="eager"; it is kept alive, and stays behind when
            this module is copied, pickled or sent to another process.

    Raises:
        InputError: out_of_range="eager" without a reference, or a reference that nothing would use.
    """

    _t2e_deployed = True
    _artifact: AnyArtifact
    _runtime_config: RuntimeConfig
    _reference: nn.Module | None
    report: DeployReport | None

    def __init__(
        self,
        artifact: AnyArtifact,
        report: DeployReport | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._artifact = artifact
        of_kind("runtime_config", runtime_config, RuntimeConfig)
        self._runtime_config = runtime_config
        # Not by setattr: it is no submodule, and surgery is refused.
        self.__dict__["_reference"] = checked_reference(type(self).__name__, runtime_config, reference)
        self._outside = OutOfRange(runtime_config.out_of_range, self._reference)
        self.report = report
        self.training = False

    @property
    def runtime_config(self) -> RuntimeConfig:
        """How this module answers."""
        return self._runtime_config

    @property
    def signature(self) -> Signature:
        """Names, dtypes, axes and structure of a call."""
        return self._artifact.signature

    @property
    def precision(self) -> str:
        """The arithmetic: "fp32", "tf32", "fp16" or "bf16"."""
        return self._artifact.precision

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What answers, e.g. "ONNX Runtime"."""

    @property
    @abstractmethod
    def device(self) -> torch.device | None:
        """Where inputs must be; None until the first call binds it."""

    @abstractmethod
    def _check_ready(self) -> None:
        """Refuse, before any work is done, a process or state in which nothing may be computed."""

    @abstractmethod
    def _infer(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        """Answer checked, contiguous inputs that lie in this profile."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer like the model.

        Args:
            args, kwargs: as the model takes them; tensors on this module's device in the signature's dtypes (or ones
                that cast to them without loss), any strides.

        Returns:
            the model's own types around fresh tensors on the inputs' device, ready on the current stream; no later
            call changes them (but with RuntimeConfig(output="static") the shape's next one, unseen by autograd).

        Raises:
            InputError: missing, extra or other arguments, other constants, or a tensor that requires grad while grad
                is enabled.
            ShapeError, DtypeError, DeviceError: what can't be answered, refused before anything is enqueued.
        """
        # Dynamo can't trace locks and foreign libraries: to torch.compile this call is one step outside of the graph.
        tracing = cast("Any", torch.jit).is_tracing()  # documented, but not in torch.jit's __all__
        if tracing or torch.compiler.is_exporting():
            raise InputError(
                type(self).__name__,
                got="a call while it is being traced or exported",
                allowed="calls that compute: a trace would keep this answer for every input",
                fix="trace or export the PyTorch module instead",
            )
        if torch.compiler.is_dynamo_compiling():
            return _compiler.disable(self._answer)(args, kwargs)
        return self._answer(args, kwargs)

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        signature = self.signature
        outputs = self.infer(bind(signature.parameters, args, kwargs))
        return unflatten(signature.output, list(outputs.values()))

    def infer(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Answer flat inputs with flat outputs, under the same contract as a call.

        Args:
            leaves: one tensor per input of the signature, in its order.

        Returns:
            output name -> fresh tensor.

        Raises:
            InputError, ShapeError, DtypeError, DeviceError: as for a call.
        """
        signature = self.signature
        self._check_tensors(leaves)
        self._check_devices(leaves)
        sizes = signature.resolve([leaf.shape for leaf in leaves])
        try:
            profile = signature.select_profile(self._artifact.profiles, sizes)
        except ShapeError as error:
            if self._runtime_config.out_of_range == "error":
                raise
            self._check_ready()
            return self._answer_outside(leaves, sizes, error)
        self._check_ready()
        with torch.no_grad():
            inputs = [
                leaf.to(torch_dtype(spec.dtype)).resolve_neg().contiguous()
                for spec, leaf in zip(signature.inputs, leaves, strict=True)
            ]
            outputs = self._infer(inputs, profile)
        return {spec.name: output for spec, output in zip(signature.outputs, outputs, strict=True)}

    def _answer_outside(
        self, leaves: Sequence[torch.Tensor], sizes: Mapping[str, int], error: ShapeError
    ) -> dict[str, torch.Tensor]:
        """Answer sizes outside every profile, as the policy says."""
        return self._outside.answer(self._inside(), leaves, sizes, error)

    def _inside(self) -> InRangeRunner:
        return InRangeRunner(self.signature, self._artifact.profiles, self.precision, self.runtime, self.infer)

    def prove_split(
        self, calls: Sequence[Sequence[torch.Tensor]], tolerance: Tolerance | None = None
    ) -> tuple[str, ...]:
        """Prove now, rather than in the first call that is too large, which axes may be split.

        Args:
            calls: flat inputs as for `infer`, inside the profiles.
            tolerance: when a chunk counts as answered like the whole; by default that of the precision.

        Returns:
            a sentence on every axis.

        Raises:
            InputError: no axis can be split or proved.
            ParityError: entries along the only axes that could be split influence each other.
        """
        return self._outside.prove(self._inside(), calls, tolerance)

    def _check_tensors(self, leaves: Sequence[torch.Tensor]) -> None:
        signature = self.signature
        if len(leaves) != len(signature.inputs):
            names = ", ".join(spec.name for spec in signature.inputs)
            raise InputError(
                "inputs",
                got=f"{len(leaves)} were passed",
                allowed=f"{len(signature.inputs)}: {names}",
                fix="pass these",
            )
        for spec, leaf in zip(signature.inputs, leaves, strict=True):
            subject = f"input '{spec.name}'"
            if not isinstance(cast("object", leaf), torch.Tensor):
                raise InputError(
                    subject,
                    name=spec.name,
                    got=f"a {type(leaf).__name__}",
                    allowed="a torch.Tensor",
                    fix="pass torch.as_tensor(...) of it",
                )
            signature.check_dtype(spec, dtype_name(leaf.dtype))
            if leaf.layout is not torch.strided or leaf.is_nested:
                layout = "nested" if leaf.is_nested else layout_name(leaf.layout)
                raise InputError(
                    subject,
                    name=spec.name,
                    got=f"its layout is {layout}",
                    allowed="the engine takes dense tensors",
                    fix="make it dense, e.g. with .to_dense()",
                )
            dual = forward_ad.unpack_dual(leaf).tangent is not None
            if (leaf.requires_grad and torch.is_grad_enabled()) or dual:
                raise InputError(
                    subject,
                    name=spec.name,
                    got="it carries a forward-mode tangent" if dual else "it requires grad while grad is enabled",
                    allowed="an engine only infers: no gradient would flow",
                    fix="call it under torch.no_grad(), or pass the tensor's .detach()",
                )

    def _check_devices(self, leaves: Sequence[torch.Tensor]) -> None:
        wanted = self.device or (leaves[0].device if leaves else None)
        for spec, leaf in zip(self.signature.inputs, leaves, strict=True):
            if leaf.device != wanted or not self._can_run_on(leaf.device):
                allowed = wanted if wanted is not None and self._can_run_on(wanted) else "a CUDA device"
                raise DeviceError(
                    f"input '{spec.name}'",
                    name=spec.name,
                    got=f"device is {leaf.device}",
                    allowed=f"the module runs on {allowed}",
                    fix=f"move it with .to('{allowed}')" if wanted == allowed else "move it with .to('cuda')",
                )
            if not _has_values(leaf):
                raise InputError(
                    f"input '{spec.name}'",
                    name=spec.name,
                    got="it is a stand-in without values",
                    allowed="tensors with memory of their own",
                    fix="call the module outside of vmap, tracing and FakeTensorMode",
                )
        if is_simulated():
            raise InputError(
                type(self).__name__,
                got="a call under make_fx or FakeTensorMode",
                allowed="calls that compute: a trace would keep this answer for every input",
                fix="trace the PyTorch module instead",
            )

    @abstractmethod
    def _can_run_on(self, device: torch.device) -> bool:
        """Tell whether this kind of module can run on a device at all."""

    @abstractmethod
    def _move(self, device: torch.device) -> None:
        """Run on another device from now on."""

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write the artifact folder, whole or not at all; `torch2engine.load` reads it.

        Args:
            path: the folder to write, e.g. ``"model.t2e"``.
            overwrite: replace an artifact that is there; anything else there is never touched.

        Raises:
            ArtifactError: something that is no artifact is in the way, or writing failed.
        """
        return self._artifact.save(path, overwrite=overwrite)

    # What nn.Module offers and an engine can't do is refused, never ignored.

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DeployedModule[AnyArtifact]:
        here = self.device or torch.device("cpu")
        # meta would lose the values, so real but empty tensors ask fn what it does to dtypes and devices
        probes = [torch.empty(0, dtype=dtype, device=here) for dtype in (torch.float16, torch.float64)]
        try:
            moved = [fn(probe) for probe in probes]
        except Exception as error:  # a torch without CUDA asserts, one without a GPU raises RuntimeError
            raise self._move_error(f"a move that PyTorch refuses ({error})") from error
        if any(after.dtype != before.dtype for before, after in zip(probes, moved, strict=True)):
            raise InputError(
                type(self).__name__,
                got=f"a cast to {dtype_name(moved[0].dtype)}",
                allowed="an engine's dtypes are fixed when it is built",
                fix="cast the model and deploy it again",
            )
        target = moved[0].device
        if target != here:
            if not self._can_run_on(target):
                raise self._move_error(f"a move to {target}")
            self._move(target)
        return self

    def _move_error(self, got: str) -> DeviceError:
        return DeviceError(
            type(self).__name__,
            got=got,
            allowed="it runs on " + ("CUDA devices" if isinstance(self._artifact, EngineArtifact) else "the CPU"),
            fix="deploy again with the other runtime for that device",
        )

    # state_dict carries the whole artifact, as strings and byte tensors that weights_only=True loads.

    def get_extra_state(self) -> dict[str, Any]:
        """The artifact as a manifest and byte tensors (the plan for an engine, the ONNX files otherwise)."""
        names = [name for name in self._artifact.files if self._travels(name)]
        files = {name: _bytes(self._artifact.read(name)) for name in names}
        return {"manifest": json.dumps(self._artifact.manifest()), "files": files}

    @abstractmethod
    def _travels(self, name: str) -> bool:
        """Tell whether a file of the artifact goes into a state_dict."""

    def set_extra_state(self, state: Any) -> None:
        """Take the artifact of another module of this kind, while no thread calls this one.

        Raises:
            ArtifactError: the state is not whole.
        """
        try:
            # map_location may have put the bytes on a GPU
            files = {name: tensor.cpu().numpy().tobytes() for name, tensor in state["files"].items()}
            manifest = json.loads(state["manifest"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{type(self).__name__}'s state",
                got=f"it is not what state_dict() gave ({type(error).__name__}: {error})",
                allowed="a manifest and the files' bytes",
                fix="pass state_dict()'s value as it was",
            ) from error
        self._swap(type(self._artifact).from_manifest(manifest, files))
        self._outside = OutOfRange(self._runtime_config.out_of_range, self._reference)
        self.report = None  # it was about the artifact before

    @abstractmethod
    def _swap(self, artifact: AnyArtifact) -> None:
        """Answer from another artifact from now on."""

    def __getstate__(self) -> dict[str, Any]:
        # The reference is the user's, of this process.
        return {**self.__dict__, "_reference": None, "_outside": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._outside = OutOfRange(self._runtime_config.out_of_range, None)

    @abstractmethod
    def _reset(self) -> None:
        """Forget everything live, so that the next call starts from the artifact."""

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        outputs = ", ".join(map(str, self.signature.outputs))
        return f"{type(self).__name__}({inputs} -> {outputs}; {self._artifact.precision}, device={self.device})"

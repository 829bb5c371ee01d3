"""`EngineArtifact` → `TRTModule`: an engine called like the PyTorch module, on PyTorch's memory and streams.

Enters: CUDA tensors on the caller's current stream. Leaves: fresh CUDA tensors, ready on that stream. A room of its own
because lifetimes and stream order between PyTorch and TensorRT are kept right here and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DeviceError
from torch2engine.core.pytree import bind, unflatten
from torch2engine.modules.deployed import DeployedModule
from torch2engine.modules.torch_state import is_traced
from torch2engine.modules.trt.refit import RefittableEngine, require_cuda
from torch2engine.modules.trt.session import EngineSession, not_prepared
from torch2engine.modules.warmup_inputs import zeros
from torch2engine.trt.library import PRODUCT_NAMES

if TYPE_CHECKING:
    from torch2engine.pipeline.report import DeployReport

__all__ = ["TRTModule", "load", "require_cuda"]

_WARM_CALLS = 5  # enough for a CUDA graph at addresses that recur


class TRTModule(RefittableEngine):
    """A TensorRT engine in the model's place.

    Threads may share it. It binds to a device on its first call, or by `.to(device)`; it can be pickled, deep-copied
    and sent to spawned processes, where it binds anew.

    A call works on the caller's current stream (if that is the legacy default stream, on a stream beside it that waits
    for it and that it waits for) and does not wait for the GPU, except to take memory for larger shapes or to replace
    contexts and CUDA graphs. It may be captured by torch.cuda.graph after an ordinary call at the same shapes, whose
    context the graph then keeps until `trim`; keep the module as long as the graph.

    Args:
        artifact: the engine.
        report: what deploy() found, or None.
        device: where to run; None binds to the first input's device.
        runtime_config: how it answers.
        reference: the PyTorch module that answers under out_of_range="eager".
    """

    _positional: int
    _names: list[str]
    _bare: bool

    def __init__(
        self,
        artifact: EngineArtifact,
        report: DeployReport | None = None,
        device: torch.device | str | None = None,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__(artifact, report, runtime_config, reference)
        wanted = None if device is None else _cuda_device(device)
        # "cuda" without a number is any of them, like None
        self._device = None if wanted is None or cast("int | None", wanted.index) is None else wanted
        self._forget_weights()
        self._reset()

    def _reset(self) -> None:
        self.__dict__["_live"] = None
        self.__dict__["_program_now"] = None
        self.__dict__["_onnx_agrees"] = False
        if self.__dict__.get("_binding") is None:
            self.__dict__["_binding"] = threading.Lock()
        parameters = self.signature.parameters
        names = [parameter.name for parameter in parameters if parameter.tree is not None]
        front = parameters[: len(names)]
        plain = all(parameter.tree is not None and parameter.tree.kind == "tensor" for parameter in front)
        # What a call by position, or by keyword, must look like to need no matching.
        self.__dict__["_positional"] = len(names) if plain and all(p.kind == "positional" for p in front) else -1
        self.__dict__["_names"] = names if plain and not any(p.kind.startswith("var_") for p in front) else []
        self.__dict__["_bare"] = self.signature.output.kind == "tensor"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return super().forward(*args, **kwargs)
        live = self._live
        if live is None or self._tracked is not None or is_traced() is not None:
            return super().forward(*args, **kwargs)
        outputs = live.try_fast_path(self._leaves(args, kwargs))
        if outputs is None:
            return super().forward(*args, **kwargs)
        return outputs[0] if self._bare else unflatten(self.signature.output, outputs)

    forward.__doc__ = DeployedModule.forward.__doc__

    def _swap(self, artifact: EngineArtifact) -> None:
        with self._binding:  # or a thread that is binding would keep the old engine
            self.__dict__["_artifact"] = artifact
            self._reset()

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        if not kwargs:
            if len(args) == self._positional:
                return args
        elif not args and len(kwargs) == len(self._names):
            try:
                return [kwargs[name] for name in self._names]
            except KeyError:
                pass  # bind has the words for it
        return bind(self.signature.parameters, args, kwargs)

    @property
    def device(self) -> torch.device | None:
        return self._device

    @property
    def runtime(self) -> str:
        hardware = self._artifact.hardware
        return f"{PRODUCT_NAMES[hardware.flavour]} {hardware.flavour_version}"

    def bind(self, device: torch.device | str | None = None) -> TRTModule:
        """Deserialise the engine now rather than on the first call.

        Args:
            device: a CUDA device; None for the one that the module has, else PyTorch's current device.

        Raises:
            DeviceError: no CUDA device.
            InstallationError: no GPU, no TensorRT of this flavour, or a PyTorch without CUDA.
            ArtifactError: the engine was made for other hardware, another version or another TF32 setting.
        """
        self._check_process()
        wanted = self._device if device is None else _cuda_device(device)
        require_cuda()
        if wanted is None or cast("int | None", wanted.index) is None:
            wanted = torch.device("cuda", torch.cuda.current_device())
        with self._settled(), self._binding:
            live = self._live
            if live is None or live.device != wanted:
                self._settle()
                self._live = EngineSession(self._artifact, wanted, self._runtime_config)
                self._device = wanted
        return self

    def _bound(self, device: torch.device) -> EngineSession:
        """The live engine, made on this device if there is none yet."""
        live = self._live
        if live is None:
            require_cuda()
            with self._binding:
                live = self._live
                if live is None:
                    self._check_weights()
                    live = self._live = EngineSession(self._artifact, device, self._runtime_config)
                    self._device = device
        if live.device != device:
            raise DeviceError(
                "TRTModule",
                got=f"inputs on {device}",
                allowed=f"another thread has just bound the module to {live.device}",
                fix="use a copy.deepcopy of the module for each device",
            )
        return live

    def _can_run_on(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def _move(self, device: torch.device) -> None:
        self.bind(device)

    @property
    def memory_bytes(self) -> int:
        """Device memory, in bytes, that the engine's contexts work in (weights not counted); 0 until called.

        It is as large as the shapes that came so far need, for each stream.
        """
        live = self._live
        return 0 if live is None else live.memory_bytes

    def layers(self) -> str:
        """What TensorRT's inspector tells of the engine's layers: JSON in TensorRT's words, which change by version.

        `torch2engine.precision_report` reads it.

        Raises:
            DeviceError, InstallationError, ArtifactError: as `bind`.
        """
        live = self.bind()._live
        assert live is not None, "bind has made it"
        return live.engine.layers()

    def warmup(self, shapes: Iterable[Mapping[str, int]] | None = None) -> None:
        """Answer zeros at some shapes, so that calls to come find kernels, contexts and CUDA graphs ready.

        What TensorRT-RTX compiles is kept for good by a `save` afterwards. Call it under the stream that will be used.

        Args:
            shapes: axis name -> size, e.g. ``[{"batch": 1}, {"batch": 8}]``; axes left out take the first profile's
                opt. None: min, opt and max of every profile, and a size of its own if others answer these.

        Raises:
            InputError: no such axis.
            ShapeError: outside every profile, where `out_of_range` does not help.
            DeviceError, InstallationError, ArtifactError: as `bind`.
        """
        self.bind()
        for inputs in zeros(self.signature, self._artifact.profiles, shapes, self._device):
            for _ in range(_WARM_CALLS):
                self.infer(inputs)
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        """Wait for calls in flight and give back working memory, contexts and CUDA graphs.

        The engine and its compiled kernels stay; the next call of each shape is slower. CUDA graphs of your own that
        hold calls of this module must not be launched any more.
        """
        live = self._live
        if live is not None:
            live.engine.check_process()
            live.trim()

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        with self._settled():
            self._keep_kernels()
            return super().save(path, overwrite)

    save.__doc__ = DeployedModule.save.__doc__

    def compiled(self) -> EngineArtifact:
        """The engine as `save` would write it: with the kernels that TensorRT-RTX compiled so far."""
        with self._settled():
            self._keep_kernels()
            return self._artifact

    def _keep_kernels(self) -> None:
        """Put the kernels that TensorRT-RTX compiled so far into the artifact, and weights that came since."""
        self._settle()
        live = self._live
        if live is not None and live.is_usable and (kernels := live.engine.runtime_cache()):
            self.__dict__["_artifact"] = self._artifact.with_runtime_cache(kernels)

    def _check_process(self) -> None:
        live = self._live
        if live is not None:
            live.engine.check_process()

    def _check_ready(self) -> None:
        self._check_weights()
        self._check_process()
        if self._live is None and torch.cuda.is_current_stream_capturing():
            raise not_prepared("that nothing prepared: the engine is not on the GPU yet")

    def _infer(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        return self._bound(inputs[0].device).run(profile, inputs)

    def get_extra_state(self) -> dict[str, Any]:
        with self._settled():
            self._keep_kernels()
            return super().get_extra_state()

    def _travels(self, name: str) -> bool:
        return not name.startswith("model.onnx")

    def __getstate__(self) -> dict[str, Any]:
        # A device index means nothing in another process, and live engines can't travel.
        with self._settled():
            self._keep_kernels()
            return {**super().__getstate__(), "_device": None, "_live": None, "_binding": None, "_program_now": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_weights()
        self._reset()


def _cuda_device(device: torch.device | str) -> torch.device:
    wanted = torch.device(device)
    if wanted.type != "cuda":
        raise DeviceError(
            "TRTModule",
            got=f"device {wanted}",
            allowed="a CUDA device",
            fix="deploy with runtime='onnxruntime' for the CPU",
        )
    return wanted


def load(
    path: str | Path,
    device: torch.device | str | None = None,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    reference: nn.Module | None = None,
) -> DeployedModule[Any]:
    """Load a saved artifact: an engine as `TRTModule`, an exported model as `ORTModule`.

    Args:
        path: the folder that `save` wrote.
        device: for an engine a CUDA device, by default PyTorch's current one; an exported model runs on the CPU.
        runtime_config: how it answers; an exported model heeds `out_of_range` alone and refuses the rest.
        reference: the PyTorch module that answers under out_of_range="eager".

    Raises:
        ArtifactError: corrupt, foreign, or made for other hardware or another version.
        InstallationError: no GPU, or no TensorRT of its flavour.
        DeviceError: an exported model was to go to a GPU, or an engine to the CPU.
        InputError: options that it does not have, or a reference that is missing or that nothing would use.
    """
    artifact = load_artifact(path, to_run=True)
    wanted = None if device is None else torch.device(device)
    if isinstance(artifact, OnnxArtifact):
        from torch2engine.modules.onnxruntime.module import ORTModule

        module = ORTModule(artifact, runtime_config=runtime_config, reference=reference)
        return module if wanted is None else module.to(wanted)
    if wanted is not None and wanted.type != "cuda":
        raise DeviceError(
            f"engine '{path}'",
            got=f"device is {wanted}",
            allowed="an engine runs on CUDA devices",
            fix="leave out device, or load what deploy(runtime='onnxruntime') saved",
        )
    return TRTModule(artifact, runtime_config=runtime_config, reference=reference).bind(wanted)

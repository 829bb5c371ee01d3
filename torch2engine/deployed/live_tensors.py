"""The live parameters of a deployed module: parameters and buffers of its own, which feed inputs of the engine.

Enters: an artifact with live parameters, and the module that gets them. Leaves: their tensors for each call, or a typed
error. Separate because a module without them has nothing of this: no parameters, and no work in a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.live_parameters import saved_live_values
from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.errors import DeviceError, DtypeError, InputError, ShapeError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.spec import TensorSpec
from torch2engine.deployed.parameterless import ParameterlessModule

__all__ = ["REGISTERED", "TAKEN_NAMES", "LiveTensors", "require_free_names"]

REGISTERED = ("_parameters", "_buffers", "_modules")  # of every nn.Module; here, live parameters alone are in them
TAKEN_NAMES = ("report", "training")  # that a deployed module writes itself


def require_free_names(live: Sequence[LiveParameter]) -> None:
    """Refuse live parameters whose first name a deployed module needs itself.

    Raises:
        InputError: naming it.
    """
    for one in live:
        first = one.path.partition(".")[0]
        if first in TAKEN_NAMES:
            raise InputError(
                f"live parameter '{one.path}'",
                name=one.path,
                got=f"the name '{first}'",
                allowed=f"other names than {' and '.join(TAKEN_NAMES)}, which a deployed module has itself",
                fix="rename it in the model",
            )


class LiveScope(ParameterlessModule):
    """A submodule on the way to live parameters; a number finds the submodule of that name, as in a ModuleList."""

    def __getitem__(self, index: int) -> nn.Module:
        """The submodule at an index of the model's list."""
        return self.get_submodule(str(index))


@dataclass(frozen=True)
class _Place:
    """Where one live parameter is.

    Args:
        spec: of the input that it feeds.
        path: its dotted name.
        holder: the parameters or the buffers of the module that has it.
        name: its name there.
    """

    spec: TensorSpec
    path: str
    holder: dict[str, Any]
    name: str


class LiveTensors:
    """The live parameters of one module.

    Args:
        places: in the signature's order.
    """

    def __init__(self, places: Sequence[_Place], device: torch.device | None) -> None:
        self._places = places
        self._device = device

    @classmethod
    def attach(cls, module: nn.Module, artifact: Artifact) -> LiveTensors | None:
        """Give a module the live parameters of an artifact, with their saved values on the CPU.

        A module that has the same ones keeps its tensors.

        Returns:
            None for an artifact without them.
        """
        values = _present_values(module, artifact) or saved_live_values(artifact)
        for name in REGISTERED:
            vars(module)[name].clear()
        specs = artifact.signature.live_inputs
        if not specs:
            return None
        places = [_register(module, spec, value) for spec, value in zip(specs, values, strict=True)]
        devices = {value.device for value in values}
        return cls(places, devices.pop() if len(devices) == 1 else None)

    def tensors(self) -> list[Any]:
        """The tensors as they are, unchecked."""
        return [place.holder.get(place.name) for place in self._places]

    def by_path(self) -> dict[str, torch.Tensor]:
        """The tensors by their dotted names."""
        return {place.path: place.holder[place.name] for place in self._places}

    def bind(self, device: torch.device) -> None:
        """Move them to a device, unless they were moved there before."""
        if self._device == device:
            return
        for place in self._places:
            tensor = place.holder.get(place.name)
            if tensor is not None and tensor.device != device:
                _replace(place, tensor.detach().to(device))
        self._device = device

    def share(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Take over the values of a model's tensors; of those on the same device also their memory.

        Args:
            tensors: in the signature's order.
            device: where the module is.
        """
        for place, tensor in zip(self._places, tensors, strict=True):
            _replace(place, tensor.detach().to(device))
        self._device = device

    def checked(self) -> list[torch.Tensor]:
        """The tensors, if each may feed its input.

        Raises:
            InputError: one is missing, or requires grad while grad is enabled.
            DtypeError, ShapeError, DeviceError: one is another than at the time of deploy.
        """
        tensors = self.tensors()
        for place, tensor in zip(self._places, tensors, strict=True):
            self._check(place, tensor)
        return tensors

    def _check(self, place: _Place, tensor: object) -> None:
        spec = place.spec
        subject = f"live parameter '{place.path}'"
        allowed = f"{spec.dtype}[{', '.join(map(str, spec.shape))}], as it was deployed"
        fix = "assign such a tensor, or write the new value into the old one, e.g. with .copy_(...)"
        if not isinstance(tensor, torch.Tensor):
            raise InputError(subject, name=place.path, got="no tensor", allowed=allowed, fix=fix)
        if dtype_name(tensor.dtype) != spec.dtype:
            got = f"dtype {dtype_name(tensor.dtype)}"
            raise DtypeError(subject, name=place.path, got=got, allowed=allowed, fix=fix)
        if tuple(tensor.shape) != spec.sized({}):
            got = f"shape {list(tensor.shape)}"
            raise ShapeError(subject, name=place.path, got=got, allowed=allowed, fix=fix)
        if tensor.device != self._device:
            raise DeviceError(
                subject,
                name=place.path,
                got=f"device {tensor.device}",
                allowed=f"{self._device}, where the module runs",
                fix=f"move it with .to('{self._device}')",
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(
                subject,
                name=place.path,
                got="a tensor that requires grad while grad is enabled",
                allowed="one without gradients, since an engine only infers",
                fix="call its requires_grad_(False), or call the module under torch.no_grad()",
            )


def _present_values(module: nn.Module, artifact: Artifact) -> list[torch.Tensor]:
    """The tensors of a module that fit all live parameters of an artifact; empty if one is missing or another."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    values: list[torch.Tensor] = []
    for spec, one in zip(artifact.signature.live_inputs, artifact.signature.live_parameters, strict=True):
        value = tensors.get(one.path)
        if value is None or dtype_name(value.dtype) != spec.dtype or tuple(value.shape) != spec.sized({}):
            return []
        values.append(value)
    return values


def _register(root: nn.Module, spec: TensorSpec, value: torch.Tensor) -> _Place:
    """Make a parameter or buffer at its path below a module, past the refusals of `ParameterlessModule`."""
    assert spec.live is not None, "the caller chooses live inputs"
    *scopes, name = spec.live.path.split(".")
    module = root
    for scope in scopes:
        # Past add_module, since a name like "layers" may be a method of the root, too.
        module = vars(module)["_modules"].setdefault(scope, LiveScope())
    holder = vars(module)["_parameters" if spec.live.kind == "parameter" else "_buffers"]
    place = _Place(spec, spec.live.path, holder, name)
    _replace(place, value.detach())
    return place


def _replace(place: _Place, value: torch.Tensor) -> None:
    """Put another tensor in a place, as a parameter or a buffer."""
    assert place.spec.live is not None, "a place is one of a live input"
    is_parameter = place.spec.live.kind == "parameter"
    place.holder[place.name] = nn.Parameter(value, requires_grad=False) if is_parameter else value

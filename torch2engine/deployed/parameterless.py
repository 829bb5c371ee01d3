"""An nn.Module that takes no new parameters, buffers or submodules.

Enters: an attempt to give it some. Leaves: an error with the reason; a live parameter takes another tensor. Separate
from `deployed` because it has nothing to do with calls.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from torch2engine.core.errors import InputError

__all__ = ["ParameterlessModule"]


class ParameterlessModule(nn.Module):
    """The base of modules whose weights lie elsewhere. It refuses changes that would have no effect."""

    def register_parameter(self, name: str, param: Any) -> None:
        # nn.Module calls this, and register_buffer, for an assignment to a live parameter.
        if name not in self._parameters:
            self._refuse_surgery(name)
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        if name not in self._buffers:
            self._refuse_surgery(name)
        self._buffers[name] = tensor

    def register_module(self, name: str, module: Any) -> None:
        self._refuse_surgery(name)

    def add_module(self, name: str, module: Any) -> None:
        self._refuse_surgery(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Before nn.Module looks at it, which would first forget a buffer of this name.
        is_live_parameter = name in self.__dict__.get("_parameters", {})
        if isinstance(value, nn.Module) or (isinstance(value, nn.Parameter) and not is_live_parameter):
            self._refuse_surgery(name)
        super().__setattr__(name, value)

    def _refuse_surgery(self, name: str) -> NoReturn:
        raise InputError(
            type(self).__name__,
            got=f"an attempt to set parameter, buffer or submodule '{name}'",
            allowed="none, since an engine's weights are inside its plan",
            fix="change the model and deploy it again",
        )

"""An nn.Module that takes no parameters, buffers or submodules.

Enters: an attempt to give it some. Leaves: an error with the reason. Separate from `deployed` because it has nothing
to do with calls.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from torch2engine.core.errors import InputError

__all__ = ["ParameterlessModule"]


class ParameterlessModule(nn.Module):
    """The base of modules whose weights lie elsewhere. It refuses changes that would have no effect."""

    def register_parameter(self, name: str, param: Any) -> None:
        self._refuse_surgery(name)

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        self._refuse_surgery(name)

    def register_module(self, name: str, module: Any) -> None:
        self._refuse_surgery(name)

    def add_module(self, name: str, module: Any) -> None:
        self._refuse_surgery(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (nn.Module, nn.Parameter)):
            self._refuse_surgery(name)
        super().__setattr__(name, value)

    def _refuse_surgery(self, name: str) -> NoReturn:
        raise InputError(
            type(self).__name__,
            got=f"an attempt to set parameter, buffer or submodule '{name}'",
            allowed="none, since an engine's weights are inside its plan",
            fix="change the model and deploy it again",
        )

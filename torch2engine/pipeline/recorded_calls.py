"""deploy(recording): the sample, the axes and the examples that a recording holds, in the place of arguments.

Enters: deploy(). Leaves: the same function, which takes a `Recording` as its model. Separate because deploy() itself
takes one model and one sample, and nothing else in it depends on where these come from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch2engine.capture.recording import Recording

__all__ = ["takes_recordings"]

P = ParamSpec("P")
R = TypeVar("R")


def takes_recordings(deploy: Callable[P, R]) -> Callable[P, R]:
    """Let deploy() take a `Recording` as its model. Arguments that the caller passes replace the recorded ones.

    Args:
        deploy: the function of this name.
    """

    @wraps(deploy)
    def deploy_recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0] if args else kwargs.get("model")
        if not isinstance(model, Recording):
            return deploy(*args, **kwargs)
        call = inspect.signature(deploy).bind(*args, **kwargs)
        arguments = dict(call.arguments)
        arguments["model"] = model.model
        if arguments.get("sample_input") is None:
            arguments["sample_input"] = model.sample_input
        arguments["dynamic_axes"] = model.axes_with(arguments.get("dynamic_axes"))
        if arguments.get("examples") is None:
            arguments["examples"] = model.examples or None
        again: Any = deploy
        return again(**arguments)

    inner: Any = deploy
    outer: Any = deploy_recorded
    outer.__kwdefaults__ = inner.__kwdefaults__  # the same dict: a default that is changed holds for both
    return deploy_recorded

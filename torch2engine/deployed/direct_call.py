"""A call whose arguments already are the flat inputs → these inputs, without matching of structures.

Enters: a signature once, then the arguments of every call. Leaves: flat inputs in the signature's order. Separate
because a fast path decides only once which calls need no matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.core.pytree import bind
from torch2engine.core.spec import Parameter, Signature

__all__ = ["DirectCall"]


@dataclass(frozen=True)
class DirectCall:
    """The form of the calls that need no matching.

    Args:
        parameters: of the model's forward.
        positional_count: how many tensors such a call passes by position; None where there is no such call.
        names: of the tensors that such a call passes by keyword; empty where there is no such call.
        returns_tensor: whether the result is one tensor and nothing around it.
    """

    parameters: tuple[Parameter, ...]
    positional_count: int | None
    names: tuple[str, ...]
    returns_tensor: bool

    @classmethod
    def of(cls, signature: Signature) -> DirectCall:
        """Find the form of these calls for a signature."""
        parameters = signature.parameters
        names = tuple(parameter.name for parameter in parameters if parameter.tree is not None)
        front = parameters[: len(names)]
        only_tensors = all(parameter.tree is not None and parameter.tree.kind == "tensor" for parameter in front)
        positional = only_tensors and all(parameter.kind == "positional" for parameter in front)
        named = only_tensors and not any(parameter.kind.startswith("var_") for parameter in front)
        return cls(
            parameters=parameters,
            positional_count=len(names) if positional else None,
            names=names if named else (),
            returns_tensor=signature.output.kind == "tensor",
        )

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        """Return the flat inputs of any call, as fast as its form allows.

        Raises:
            InputError: missing, extra or other arguments.
        """
        if not kwargs:
            if len(args) == self.positional_count:
                return args
        elif not args and len(kwargs) == len(self.names):
            try:
                return [kwargs[name] for name in self.names]
            except KeyError:
                pass  # bind raises the error
        return bind(self.parameters, args, kwargs)

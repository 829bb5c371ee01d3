"""The PyTorch module as the reference: a function from flat inputs to named outputs.

Enters: the unwrapped module, and tensors in the signature's order. Leaves: its answers, and errors at the user's own
line. Separate because capture, export, the parity cases and a refit's check all run the module in this way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from torch2engine.capture.live_parameters import live_values_in_place
from torch2engine.capture.parameter_writes import ParameterWrites, parameter_writes_undone
from torch2engine.capture.source_lines import user_source
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.pytree import Flat, Key, argument_at, assign, flatten, unflatten
from torch2engine.core.spec import Effect, Parameter, Preprocess, Signature, Tree

__all__ = ["Reference", "copied", "flatten_result", "outputs_by_name"]

_BeforeCall: TypeAlias = "Callable[[Sequence[Any], Mapping[str, Any]], None]"

_BLAMES_DTYPES = re.compile(r"dtype|scalar type|Input type", re.IGNORECASE)
_DATA_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Reference:
    """The module as a function from a flat list of input tensors to named output tensors.

    Args:
        model: the unwrapped module.
        parameters: forward's captured parameters, whose trees take the inputs.
        preprocess: the step between each input and the model, None for an input without one; empty for no step at all.
        effects: where tensors are found after the call with which its answer ends, behind those of the result.
        refilled: {path of a container among the arguments: its structure after every call}.
        live: parameters and buffers whose values are the last inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Parameter],
        preprocess: Sequence[Preprocess | None] = (),
        effects: Sequence[Effect] = (),
        refilled: Mapping[tuple[Key, ...], Tree] | None = None,
        live: Sequence[LiveParameter] = (),
    ) -> None:
        self.model = model
        self.parameters = parameters
        self._preprocess = preprocess if any(preprocess) else ()
        self._effects = effects
        self._refilled = refilled or {}
        self._live = live

    @classmethod
    def for_signature(cls, model: nn.Module, signature: Signature) -> Reference:
        """The call of a signature, whose outputs are the answer's tensors."""
        refilled = {one.path: one.tree for one in signature.refills}
        effects = signature.effects
        return cls(model, signature.parameters, signature.preprocess, effects, refilled, signature.live_parameters)

    def of(self, model: nn.Module) -> Reference:
        """The same call of a copy of the module."""
        return Reference(model, self.parameters, self._preprocess, self._effects, self._refilled, self._live)

    def with_effects(self, effects: Sequence[Effect], refilled: Mapping[tuple[Key, ...], Tree]) -> Reference:
        """The same call with other effects."""
        return Reference(self.model, self.parameters, self._preprocess, effects, refilled, self._live)

    def arguments(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Build forward's args and kwargs from these tensors, after `preprocess`."""
        if self._preprocess:
            dtype = _float_dtype(self.model)
            pairs = zip(leaves, self._preprocess, strict=True)
            leaves = [leaf if step is None else step(leaf).to(dtype) for leaf, step in pairs]
        iterator = iter(leaves)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        was_left_out = False
        for parameter in self.parameters:
            if parameter.tree is None:
                was_left_out = True  # so later ones can only be passed by name
                continue
            value = unflatten(parameter.tree, [next(iterator) for _ in range(parameter.tree.leaves())])
            if parameter.kind == "var_positional":
                args.extend(value)
            elif parameter.kind == "var_keyword":
                kwargs.update(value)
            elif parameter.kind == "keyword" or was_left_out:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return args, kwargs

    def _describe_preprocessed_shapes(self, leaves: Sequence[torch.Tensor]) -> str:
        """The shapes after preprocessing, for a message."""
        steps = zip(leaves, self._preprocess, strict=False)
        shapes = [list(step(leaf).shape) for leaf, step in steps if step is not None and leaf.ndim == 4]
        return f", of which preprocess= made {', '.join(map(str, shapes))}" if shapes else ""

    def _cure_for(self, error: Exception, leaves: Sequence[torch.Tensor]) -> str:
        """Say what helps against the model's own failure: another dtype where PyTorch blames the dtypes."""
        model_dtype = _float_dtype(self.model)
        others = [leaf.dtype for leaf in leaves if leaf.dtype != model_dtype and leaf.dtype in _DATA_DTYPES]
        if not others or not _BLAMES_DTYPES.search(str(error)):
            return "call the model with these shapes and correct that first"
        if torch.uint8 in others:
            return (
                "pass floats, e.g. sample_input.float() / 255, or bytes with preprocess=torch2engine.Preprocess(...), "
                "which makes the floats in the engine"
            )
        return f"pass them in the model's own dtype, with .to({model_dtype})"

    def call(self, leaves: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None) -> Any:
        """The model's own result; with `weights`, as if these were its parameters and buffers."""
        args, kwargs = self.arguments(leaves)
        with self._live_in_place(leaves):
            return self._call(args, kwargs, leaves, weights)

    def trace(self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[torch.Tensor]) -> Any:
        """The model's own result, where nothing may be written into its live parameters.

        Args:
            args, kwargs: from `arguments`.
            leaves: the inputs that these were made of.
        """
        if not self._live:
            return self.model(*args, **kwargs)
        return torch.func.functional_call(self.model, self._live_values(leaves), tuple(args), dict(kwargs))

    def _call(
        self,
        args: list[Any],
        kwargs: dict[str, Any],
        leaves: Sequence[torch.Tensor],
        weights: Mapping[str, torch.Tensor] | None,
    ) -> Any:
        if weights is not None:
            values = {**weights, **self._live_values(leaves)}
            return torch.func.functional_call(self.model, values, tuple(args), kwargs)
        return self.model(*args, **kwargs)

    def _live_in_place(self, leaves: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
        """Give the model the values of live parameters among the inputs, in place.

        Other weights don't replace this: the model may have kept a live parameter where no name leads to it.
        """
        if not self._live:
            return nullcontext()
        return live_values_in_place(self.model, self._live, list(self._live_values(leaves).values()))

    def _live_values(self, leaves: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values of live parameters among the inputs, by path."""
        values = leaves[len(leaves) - len(self._live) :]
        return {one.path: value for one, value in zip(self._live, values, strict=True)}

    def __call__(self, leaves: Sequence[torch.Tensor]) -> Flat:
        """Answer on clones of `leaves`, since models write into their inputs; call it inside `undisturbed`.

        Raises:
            ExportError: the model itself fails (names the user's line), or its result holds something unknown.
        """
        return self.run([leaf.detach().clone() for leaf in leaves])

    def run(self, leaves: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None) -> Flat:
        """As `__call__`, on `leaves` themselves; `weights` take the place of the model's own.

        Returns:
            copies: the model may have returned a buffer of its own, which its next call or the restored state
                overwrites.
            What the call leaves in its arguments alone follows the result's tensors.

        Raises:
            ExportError: as `__call__`, or forward writes into parameters or gradients, which are put back; names them.
        """
        return copied(self.run_uncopied(leaves, None, weights))

    def run_uncopied(
        self,
        leaves: Sequence[torch.Tensor],
        before: _BeforeCall | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> Flat:
        """As `run`, with the very tensors that the model returns.

        Args:
            leaves, weights: as for `run`.
            before: given the arguments right before the call.

        Raises:
            ExportError: as `run`.
        """
        with self._live_in_place(leaves), parameter_writes_undone(self.model) as writes:
            flat = self._answer(leaves, before, weights)
        if writes.parameters or writes.gradients:
            raise _writes_refusal(writes)
        return flat

    def _answer(
        self,
        leaves: Sequence[torch.Tensor],
        before: _BeforeCall | None,
        weights: Mapping[str, torch.Tensor] | None,
    ) -> Flat:
        args, kwargs = self.arguments(leaves)
        if before is not None:
            before(args, kwargs)
        try:
            result = self._call(args, kwargs, leaves, weights)
        except Exception as error:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves) + self._describe_preprocessed_shapes(leaves)
            raise ExportError(
                "model",
                got=f"a failure of PyTorch itself on inputs of shape {shapes}: {type(error).__name__}: {error}",
                allowed="a model that answers them",
                fix=self._cure_for(error, leaves),
                source=user_source(error),
            ) from error
        return self.flatten_answer(result, args, kwargs, leaves)

    def flatten_answer(
        self, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[torch.Tensor]
    ) -> Flat:
        """Take a result apart, and add what the call has left in its arguments alone.

        Args:
            result: the model's.
            args, kwargs: the arguments of this call.
            leaves: the tensors that they were made of.

        Raises:
            ExportError: as `flatten_result`, or a container is filled otherwise than in the call on the sample.
        """
        given = assign(self.parameters, args, kwargs)
        caches = {
            id(given[one.name]): one.name
            for one in self.parameters
            if one.tree is not None and one.tree.kind == "registered"
        }
        flat = flatten_result(result, caches)
        tensors: dict[tuple[Key, ...], Sequence[torch.Tensor]] = {(): leaves}
        for path, tree in self._refilled.items():
            contents = flatten(argument_at(self.parameters, args, kwargs, path), ".".join(map(str, path)))
            if contents.tree != tree:
                raise _contents_refusal(path)
            tensors[path] = contents.leaves
        found = [tensors[effect.path][effect.position] for effect in self._effects]
        return Flat(flat.tree, [*flat.leaves, *found], flat.names)


def copied(flat: Flat) -> Flat:
    """The same with copies of all tensors."""
    return Flat(flat.tree, [leaf.detach().clone() for leaf in flat.leaves], flat.names)


def _contents_refusal(path: tuple[Key, ...]) -> ExportError:
    """The error for a model that fills a container with another structure at another size."""
    return ExportError(
        "model",
        got=f"argument '{'.'.join(map(str, path))}' filled with another structure, or other Python numbers, than in "
        "the call on the sample",
        allowed="one structure and equal Python numbers after every call",
        fix="put a tensor there instead of a Python number that moves on",
    )


def _writes_refusal(writes: ParameterWrites) -> ExportError:
    """The error for a model that writes into its parameters or their gradients."""
    if writes.parameters:
        return ExportError(
            "model",
            got=f"a forward that writes into its own parameters ({', '.join(writes.parameters)}), which are put back",
            allowed="a forward that only reads them",
            fix="move such updates out of forward",
        )
    return ExportError(
        "model",
        got=f"a forward that adds to the gradients of {', '.join(writes.gradients)}, which are put back",
        allowed="a forward that computes no gradients of its parameters",
        fix="use torch.autograd.grad in forward, or move the backward pass out of it",
    )


def _float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating parameter or buffer."""
    dtypes = (tensor.dtype for tensor in (*model.parameters(), *model.buffers()))
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def flatten_result(result: Any, arguments: Mapping[int, str] | None = None) -> Flat:
    """Take apart what the model returned.

    Args:
        result: it.
        arguments: names of arguments by the id of their values; a result that holds one is that very object.

    Raises:
        ExportError: something in it is no tensor, constant or container, so no engine can return it.
    """
    try:
        return flatten(result, "output", result=True, arguments=arguments)
    except InputError as error:
        raise ExportError(f"result {error.subject}", got=error.got, allowed=error.allowed, fix=error.fix) from error


def outputs_by_name(flat: Flat, tree: Tree, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """An answer's tensors under the signature's output names.

    Raises:
        ExportError: the result's structure differs from the sample's, but an engine's structure is fixed.
    """
    if flat.tree != tree:
        raise ExportError(
            "model",
            got="a result with another structure, or other constants, at another size of its dynamic axes",
            allowed="one structure and equal Python numbers for every size",
            fix="return a tensor instead of a Python number that follows a shape",
        )
    return {name: leaf.detach() for name, leaf in zip(names, flat.leaves, strict=True)}

"""Flat inputs → calls that can be repeated as often as one likes, and always answer the same values.

Enters: a signature and tensors. Leaves: callables without arguments. Separate because whoever times calls must neither
change the caller's inputs nor let a position run out of range.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torch2engine.capture.reference import Reference
from torch2engine.core.spec import Signature
from torch2engine.deployed.timing import Call

__all__ = ["InputsOfCalls"]


@dataclass(frozen=True)
class InputsOfCalls:
    """The inputs that calls are timed on.

    Args:
        signature: of the call.
        leaves: in the signature's order; written ones are copies, so that the caller's stay as they are.
        written: pairs of a written input and its first values.
    """

    signature: Signature
    leaves: list[torch.Tensor]
    written: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, signature: Signature, leaves: Sequence[torch.Tensor]) -> InputsOfCalls:
        """Copy the inputs that the model writes into."""
        names = {write.input for write in signature.writes}
        pairs = list(zip(signature.inputs, leaves, strict=True))
        copies = [leaf.clone() if spec.name in names else leaf for spec, leaf in pairs]
        written = [(copy, leaf) for (spec, leaf), copy in zip(pairs, copies, strict=True) if spec.name in names]
        return cls(signature, copies, written)

    def call_of(self, module: nn.Module) -> Call:
        """A call of a module; a new one has new containers where calls change them."""
        parameters = self.signature.parameters
        if self.signature.refills:

            def make_and_call() -> object:
                new_args, new_kwargs = Reference(module, parameters).arguments(self.leaves)
                return module(*new_args, **new_kwargs)

            return make_and_call
        args, kwargs = Reference(module, parameters).arguments(self.leaves)
        return functools.partial(module, *args, **kwargs)

    def on_same_values(self, call: Call) -> Call:
        """Give every call the first values: a position that goes up with each call would soon be out of range."""
        if not self.written:
            return call

        def restore_and_call() -> object:
            for copy, first in self.written:
                copy.copy_(first)
            return call()

        return restore_and_call

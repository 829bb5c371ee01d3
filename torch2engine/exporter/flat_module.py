"""The model as torch.export sees it: a function from a tuple of tensors to a tuple of tensors.

Enters: a captured call. Leaves: an nn.Module without any other structure, so that torch's pytrees decide nothing.
Separate because names and origins in the ONNX graph begin at this module, and several files know its prefix.
"""

from __future__ import annotations

import torch
from torch import nn

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.reference import Reference
from torch2engine.core.errors import ExportError
from torch2engine.exporter.known_values import KnownValues
from torch2engine.exporter.recurrent import RecurrentLayersAsOperators
from torch2engine.exporter.sizes.size_arguments import SymbolicSizeArguments
from torch2engine.exporter.sizes.size_tensors import SizeTensors, note_integer_buffers, read_integer_buffers
from torch2engine.exporter.tensor_indices import TensorIndices
from torch2engine.exporter.traceable_functions import TraceableFunctions

__all__ = ["FLAT_MODULE_PREFIX", "FlatModule", "module_path"]

FLAT_MODULE_PREFIX = "model."  # before the path of every parameter and module of the user's model


class FlatModule(nn.Module):
    """The captured call's model; weights keep the model's paths behind `FLAT_MODULE_PREFIX`."""

    def __init__(self, captured: CapturedCall) -> None:
        super().__init__()
        self.model = captured.reference.model
        self._signature = captured.signature
        self._integer_buffers = read_integer_buffers(self.model)

    def forward(self, leaves: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Call the model as its user does, and take its result apart."""
        signature = self._signature
        note_integer_buffers(self.model, self._integer_buffers)
        reference = Reference.for_signature(self.model, signature)
        # Clones, since a write into an input would be a side effect of the program, and ONNX has none.
        written = {write.input for write in signature.writes}
        pairs = list(zip(signature.inputs, leaves, strict=True))
        inputs = [leaf.clone() if spec.name in written else leaf for spec, leaf in pairs]
        versions = [leaf._version for leaf in leaves]
        args, kwargs = reference.arguments(inputs)
        with (
            RecurrentLayersAsOperators(),
            SizeTensors(),
            SymbolicSizeArguments(),
            TraceableFunctions(),
            TensorIndices() as indices,
            KnownValues(),
        ):
            result = reference.flatten_answer(reference.trace(args, kwargs, inputs), args, kwargs, inputs)
        indices.require_no_lost_writes()
        for (spec, leaf), version in zip(pairs, versions, strict=True):
            if leaf._version != version:
                raise ExportError(
                    "model",
                    got=f"a write into its input '{spec.name}' at other sizes than the sample's",
                    allowed="a forward that writes into the same inputs at every size",
                    fix="write into a clone of it in forward, and return what the caller needs",
                )
        if result.tree != signature.output:
            raise ExportError(
                "model",
                got="a result with another structure while it is exported than when it is called",
                allowed="one structure",
                fix="don't look at torch.compiler.is_exporting() and the like in forward",
            )
        return tuple(result.leaves)


def module_path(scope: str) -> str:
    """The path of a scope as in named_modules(); torch has scopes of its own, which are ""."""
    return scope.removeprefix(FLAT_MODULE_PREFIX) if scope.startswith(FLAT_MODULE_PREFIX) else ""

"""A captured call → torch's program as a functional graph: the public step of those who cut a model into parts.

Enters: a captured call, or a program that was saved. Leaves: `FunctionalProgram`: operators that write into nothing,
with what fills its inputs. Separate because `export` goes on to ONNX, and stops where an operator has no form there; a
cut begins before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.exporter.export_context import export_context
from torch2engine.exporter.flat_module import FLAT_MODULE_PREFIX
from torch2engine.exporter.trace import trace

__all__ = ["FunctionalExport", "FunctionalProgram", "export_functional_program"]


@dataclass(frozen=True)
class FunctionalProgram:
    """A model as one graph of operators without writes.

    Args:
        graph_module: takes the weights, constants and inputs, one after the other, and returns the flat outputs.
        weights: placeholder -> path of the parameter or buffer in the model.
        tensors: path -> the parameter or buffer that the program was made with.
        constants: placeholder -> tensor that is no parameter or buffer.
        inputs: placeholders of the call's inputs, in the signature's order.
    """

    graph_module: fx.GraphModule
    weights: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor]
    constants: Mapping[str, torch.Tensor]
    inputs: tuple[str, ...]

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> FunctionalProgram:
        """Read torch's program, which must be functional; its tensors are not copied."""
        weights: dict[str, str] = {}
        tensors: dict[str, torch.Tensor] = {}
        constants: dict[str, torch.Tensor] = {}
        inputs: list[str] = []
        held: dict[str, Any] = {**program.constants, **program.state_dict}
        for spec in program.graph_signature.input_specs:
            name: str = spec.arg.name
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(name)
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                constants[name] = held[str(spec.target)]
            else:
                path = str(spec.target).removeprefix(FLAT_MODULE_PREFIX)
                weights[name] = path
                tensors[path] = held[str(spec.target)].detach()
        return cls(program.graph_module, weights, tensors, constants, tuple(inputs))

    def values(self, weights: Mapping[str, torch.Tensor], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Collect the arguments of `graph_module`.

        Args:
            weights: by path, with all that the graph reads.
            leaves: the call's inputs.
        """
        by_placeholder = {**self.constants, **dict(zip(self.inputs, leaves, strict=True))}
        by_placeholder |= {placeholder: weights[path] for placeholder, path in self.weights.items()}
        nodes = self.graph_module.graph.nodes
        return [by_placeholder[node.name] for node in nodes if node.op == "placeholder"]


@dataclass(frozen=True)
class FunctionalExport:
    """A model's call, exported to torch's program, whose operators write into nothing.

    Args:
        captured: the call; axes that follow from others are expressions now.
        exported: torch's program; its parameters and buffers are the model's own.
    """

    captured: CapturedCall
    exported: torch.export.ExportedProgram

    @property
    def program(self) -> FunctionalProgram:
        """The program with what fills its inputs."""
        return FunctionalProgram.of(self.exported)


def export_functional_program(captured: CapturedCall) -> FunctionalExport:
    """Export to torch's program; run it inside `undisturbed(model)`.

    Raises:
        DynamicAxisError, ExportError: as `export_onnx`.
    """
    with export_context(captured.reference.model):
        traced = trace(captured)
        exported = traced.program.run_decompositions({})  # nothing but writes is decomposed
    return FunctionalExport(traced.captured, exported)

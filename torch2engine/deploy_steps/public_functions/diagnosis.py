"""The result of a search for the first wrong module, as data.

Enters: the findings of `diagnose`. Leaves: `Diagnosis`, a value that prints itself and gives JSON. Separate because the
search compares, and this file alone words it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch2engine.core.package import public
from torch2engine.parity.parity_report import OutputParity, ParityReport

__all__ = ["Diagnosis", "ModuleDifference", "Stage"]

Stage = Literal["none", "graph", "engine", "plan"]

_SHOWN = 5
_MEANING: dict[str, str] = {
    "none": "every output agrees with the model",
    "graph": "the ONNX graph's answers differ from the model's, in ONNX Runtime too",
    "engine": "the ONNX graph is right, and an engine that TensorRT builds from it is not",
    "plan": "the ONNX graph is right, and so is an engine that returns every module's outputs: this plan holds other "
    "weights, or TensorRT's fusion of the modules is wrong",
}


@dataclass(frozen=True)
class ModuleDifference:
    """One tensor that a torch module returns, compared with the tensor of the ONNX graph that stands for it.

    Args:
        module: the module's path; "" is the model itself.
        tensor: the name in the ONNX graph.
        source: "FILE:LINE" of the user's code that makes it, or "".
        parity: the comparison.
        computed_with: modules whose arithmetic is part of this tensor, e.g. a convolution before its BatchNorm.
    """

    module: str
    tensor: str
    source: str
    parity: OutputParity
    computed_with: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "module": self.module,
            "tensor": self.tensor,
            "source": self.source,
            "computed_with": list(self.computed_with),
            "parity": self.parity.to_json(),
        }


@public
@dataclass(frozen=True)
class Diagnosis:
    """The place where a deployed module begins to differ from the model.

    Args:
        parity: the module's outputs against the model's.
        stage: "none" if they agree. "graph" if the ONNX graph is wrong. "engine" if only TensorRT's answers are. "plan"
            if the fault is gone in an engine that returns every module's outputs.
        first: the first wrong tensor; None if there is none, or if no module alone is wrong.
        differences: all that was compared, in the order in which the model computes it.
        command: a Polygraphy command that compares the same tensors, or "".

    >>> import copy
    >>> changed = copy.deepcopy(model)
    >>> changed.head.bias.data += 1
    >>> found = t2e.diagnose(changed, module, sample)
    >>> found.stage, found.first.module
    ('graph', 'head')
    """

    parity: ParityReport
    stage: Stage
    first: ModuleDifference | None
    differences: tuple[ModuleDifference, ...]
    command: str = ""

    @property
    def passed(self) -> bool:
        """Whether the module's outputs agree with the model's."""
        return self.stage == "none"

    @property
    def worst(self) -> tuple[ModuleDifference, ...]:
        """The tensors that are furthest off, the worst first."""
        wrong = [difference for difference in self.differences if not difference.parity.passed]
        return tuple(sorted(wrong, key=_badness)[:_SHOWN])

    def __str__(self) -> str:
        lines = [f"{_MEANING[self.stage]}"]
        if self.first is not None:
            where = f" ({self.first.source})" if self.first.source else ""
            together = f", computed together with {', '.join(self.first.computed_with)}"
            lines.append(
                f"first difference: module '{self.first.module}'{where}"
                f"{together if self.first.computed_with else ''}: {self.first.parity.reason}"
            )
        elif self.stage in ("graph", "engine"):
            lines.append("no module alone is wrong: the differences add up, see how they grow")
        shown = self.worst or self.differences[-_SHOWN:]
        if not self.passed and shown:
            rows = [("module", "tensor", "rel-l2", "max-abs", "verdict")]
            rows += [_cells(difference) for difference in shown]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
            ]
        if self.command:
            lines.append(f"to reproduce: {self.command}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "stage": self.stage,
            "passed": self.passed,
            "first": None if self.first is None else self.first.to_json(),
            "differences": [difference.to_json() for difference in self.differences],
            "parity": self.parity.to_json(),
            "command": self.command,
        }


def _badness(difference: ModuleDifference) -> float:
    error = difference.parity.rel_l2
    return -error if error == error else float("-inf")  # what could not be measured comes first


def _cells(difference: ModuleDifference) -> tuple[str, ...]:
    row = difference.parity
    verdict = "passed" if row.passed else "FAILED"
    return (difference.module or "(model)", difference.tensor, f"{row.rel_l2:.2e}", f"{row.max_abs:.2e}", verdict)

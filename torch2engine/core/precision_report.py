"""How much of a model is computed in which precision, as data.

Enters: counts. Leaves: shares, a table, JSON. Separate from the counting, which needs ONNX. Deployed modules carry
reports, and need no ONNX.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "RECURRENT",
    "UNKNOWN",
    "WITHOUT_FLOATS",
    "AttentionOutcome",
    "MultiplyAddNode",
    "PrecisionReport",
    "named_modules",
    "table",
    "total_multiply_adds",
]

UNKNOWN = "unknown"  # TensorRT does not tell
WITHOUT_FLOATS = "other"  # stands for the precision of a layer without floating-point numbers
RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class MultiplyAddNode:
    """A node that multiplies and adds: a convolution, a matrix product or a recurrent layer.

    Args:
        name: the node's.
        op: e.g. "Conv".
        module: its torch module's path.
        precision: a name of the table of precisions, as the graph has it.
        multiply_adds: how many.
        engine: the precision in TensorRT's list of the engine's layers, "unknown" where it is not listed; "" without an
            engine. TF32 looks like "fp32".
    """

    name: str
    op: str
    module: str
    precision: str
    multiply_adds: int
    engine: str = ""

    @property
    def computed_in(self) -> str:
        """The engine's precision, or without one the graph's."""
        return self.engine or self.precision


@dataclass(frozen=True)
class AttentionOutcome:
    """How one attention is computed: a softmax between two matrix products.

    Args:
        module: its torch module's path.
        is_fused: whether one kernel of the engine computes it; None without an engine.
        reason: why no fused kernel takes it; "" where one does, or could.
    """

    module: str
    is_fused: bool | None
    reason: str = ""


@dataclass(frozen=True)
class PrecisionReport:
    """The precisions in which the products of a model (convolutions, matrix products, recurrent layers) are computed.

    For a TRTModule it is what TensorRT's inspector says of the engine; else it is what the graph has. Multiply-adds are
    counted at the opt sizes of the first profile, without those inside branches and loops. Printed, it is a table.

    Args:
        products: one for each such node, in the graph's order.
        layers: precision -> number of the engine's layers, by the widest type that each reads; empty without an engine.
        layers_of_modules: torch module path -> the same for the layers that compute a part of it; "other" stands for
            layers without floating-point numbers. A layer of several modules counts in each.
        attention: one for each attention, in the graph's order.
    """

    products: tuple[MultiplyAddNode, ...]
    layers: Mapping[str, int] = field(default_factory=dict[str, int])
    layers_of_modules: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    attention: tuple[AttentionOutcome, ...] = ()

    @property
    def has_engine(self) -> bool:
        """Whether it is about an engine, and not about a graph alone."""
        return bool(self.layers) or any(node.engine for node in self.products)

    def share(self, precision: str) -> float:
        """Share of the multiply-adds that are computed in this precision, e.g. "fp16"; 0 for a model without any."""
        total = total_multiply_adds(self.products)
        return (
            total_multiply_adds(node for node in self.products if node.computed_in == precision) / total
            if total
            else 0.0
        )

    def summary(self) -> str:
        """The shares in a sentence."""
        precisions = dict.fromkeys(node.computed_in for node in self.products)
        shares = ", ".join(f"{100 * self.share(name):.1f} % of the multiply-adds in {name}" for name in precisions)
        layers = ", ".join(f"{count} in {name}" for name, count in self.layers.items())
        return (shares or "no products") + (f"; layers: {layers}" if layers else "")

    def attention_summary(self) -> str:
        """How many attentions are fused, and why others are not; "" for a model without attention."""
        if not self.attention:
            return ""
        without_kernel: dict[str, list[str]] = {}
        for one in self.attention:
            if one.reason or one.is_fused is False:
                without_kernel.setdefault(one.reason, []).append(one.module)
        fused = len(self.attention) - sum(map(len, without_kernel.values()))
        kernels = "in fused kernels" if self.attention[0].is_fused is not None else "have the form of a fused kernel"
        others = [f"not that of {named_modules(paths)}: {reason}" for reason, paths in without_kernel.items()]
        return "; ".join([f"attention: {fused} of {len(self.attention)} {kernels}", *others])

    def __str__(self) -> str:
        has_engine = any(node.engine for node in self.products)
        rows: dict[tuple[str, ...], list[MultiplyAddNode]] = {}
        for node in self.products:
            precisions = (node.precision, node.engine) if has_engine else (node.precision,)
            rows.setdefault((node.module or "(model)", *precisions), []).append(node)
        head = ["module", *(["graph", "engine"] if has_engine else ["precision"]), "products", "multiply-adds"]
        cells = [[*words, str(len(nodes)), f"{total_multiply_adds(nodes):,}"] for words, nodes in rows.items()]
        return "\n".join([self.summary(), *table([head, *cells]), *filter(None, [self.attention_summary()])])

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        precisions = sorted({node.computed_in for node in self.products})
        return {
            "shares": {name: self.share(name) for name in precisions},
            "layers": dict(self.layers),
            "layers_of_modules": {path: dict(counts) for path, counts in self.layers_of_modules.items()},
            "attention": [vars(one) for one in self.attention],
            "products": [vars(node) for node in self.products],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionReport:
        """The inverse of `to_json`."""
        return cls(
            tuple(MultiplyAddNode(**node) for node in data["products"]),
            data["layers"],
            # older reports lack these two
            {str(path): dict(counts) for path, counts in data.get("layers_of_modules", {}).items()},
            tuple(AttentionOutcome(**one) for one in data.get("attention", ())),
        )


def named_modules(paths: Iterable[str], shown: int = 4) -> str:
    """The first few modules by their paths, each once, and how many more there are.

    >>> named_modules(["", "stem", "stem", "head"], shown=2)
    "(model), 'stem' and 1 more"
    """
    names = list(dict.fromkeys(f"'{path}'" if path else "(model)" for path in paths))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Align columns: rows of cells -> lines."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def total_multiply_adds(nodes: Iterable[MultiplyAddNode]) -> int:
    """Add up the multiply-adds of nodes."""
    return sum(node.multiply_adds for node in nodes)

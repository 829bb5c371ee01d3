"""How much of a model is computed in which precision, as data.

Enters: counts. Leaves: shares, a table, JSON. Apart from `macs`, which counts and needs ONNX: reports travel with
deployed modules, which need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RECURRENT", "UNKNOWN", "PrecisionReport", "Product", "table"]

UNKNOWN = "unknown"
RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True)
class Product:
    """A node that multiplies and adds.

    Args:
        name: the node's.
        op: e.g. "Conv".
        module: its torch module's path.
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", as the graph has it.
        multiply_adds: how many.
        engine: the same as TensorRT tells of the engine's layers, "unknown" where it does not tell; "" without engine.
            TF32 looks like "fp32".
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
class PrecisionReport:
    """What the products of a model (convolutions, matrix products, recurrent layers) are computed in.

    Of a TRTModule it tells what TensorRT's inspector says that the engine does, else what the graph asks for; counted
    at the opt sizes of the first profile, without those inside branches and loops. Printed, it is a table.

    Args:
        products: one for each such node, in the graph's order.
        layers: precision -> number of the engine's layers, by the widest type that each reads; empty without an engine.
    """

    products: tuple[Product, ...]
    layers: Mapping[str, int] = field(default_factory=dict[str, int])

    def share(self, precision: str) -> float:
        """Share of the multiply-adds in "fp32", "fp16", "bf16", "int8" or "fp8"; 0 for a model without any."""
        total = _sum(self.products)
        return _sum(one for one in self.products if one.computed_in == precision) / total if total else 0.0

    def summary(self) -> str:
        """The shares in a sentence."""
        words = dict.fromkeys(one.computed_in for one in self.products)
        shares = ", ".join(f"{100 * self.share(word):.1f} % of the multiply-adds in {word}" for word in words)
        layers = ", ".join(f"{count} in {word}" for word, count in self.layers.items())
        return (shares or "no products") + (f"; layers: {layers}" if layers else "")

    def __str__(self) -> str:
        rows: dict[tuple[str, ...], list[int]] = {}
        engine = any(one.engine for one in self.products)
        for one in self.products:
            words = (one.precision, one.engine) if engine else (one.precision,)
            row = rows.setdefault((one.module or "(model)", *words), [0, 0])
            row[0] += 1
            row[1] += one.multiply_adds
        head = ["module", *(["graph", "engine"] if engine else ["precision"]), "products", "multiply-adds"]
        cells = [head, *([*words, str(n), f"{macs:,}"] for words, (n, macs) in rows.items())]
        return "\n".join([self.summary(), *table(cells)])

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        words = sorted({one.computed_in for one in self.products})
        return {
            "shares": {word: self.share(word) for word in words},
            "layers": dict(self.layers),
            "products": [vars(one) for one in self.products],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PrecisionReport:
        """The inverse of `to_json`."""
        return cls(tuple(Product(**one) for one in data["products"]), data["layers"])


def table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _sum(products: Iterable[Product]) -> int:
    return sum(one.multiply_adds for one in products)

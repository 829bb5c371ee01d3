"""One node of an ONNX graph as the rules read it.

Enters: a NodeProto, the values of its inputs, and what is known of its outputs' shapes. Leaves: `NodeView`, which
gives inputs in the kind that a rule needs or says that entries are mixed. Separate because all rules read nodes alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.onnx_graph.axis_flow.sizes import Size, Symbol
from torch2engine.onnx_graph.axis_flow.values import Entries, Fixed, Mixes, Numbers, Place, Shape, Sizes, Value

__all__ = ["NodeView", "from_front"]


@dataclass(frozen=True)
class NodeView:
    """A node.

    Args:
        proto: the NodeProto.
        inputs: the value of each input; None for one that is left out.
        inferred: for each output the sizes that are known, None for one that is not; None if the rank is unknown.
        axis: the size of the analysed axis.
        opset: the version of ONNX's own operators.
    """

    proto: Any
    inputs: Sequence[Value | None]
    inferred: Sequence[tuple[Size | None, ...] | None]
    axis: Size
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; bytes as text."""
        from onnx import helper

        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def has(self, index: int) -> bool:
        """Tell whether an input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """An input of any kind.

        Raises:
            Mixes: it is not there.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Mixes("lacks an input that its rule needs")
        return value

    def tensor(self, index: int) -> Entries | Fixed:
        """An input that is computed with.

        Raises:
            Mixes: it holds the number of entries, or their numbers.
        """
        value = self.value(index)
        if isinstance(value, Sizes) and value.follows_axis:
            raise Mixes("computes with the number of entries")
        if isinstance(value, Numbers):
            raise Mixes("computes with the numbers of the entries")
        if isinstance(value, Sizes):
            return Fixed(value.shape)
        assert isinstance(value, (Entries, Fixed)), "nodes with mixed inputs have no rule"
        return value

    def entries(self, index: int) -> Entries:
        """An input that must have entries.

        Raises:
            Mixes: it has none.
        """
        value = self.tensor(index)
        if isinstance(value, Fixed):
            raise Mixes("uses the same values for every entry in a place where they may be for one entry each")
        return value

    def require_fixed(self, *indices: int) -> None:
        """Refuse inputs that depend on the entries; ones that are left out are right.

        Raises:
            Mixes: one does.
        """
        for index in indices:
            if self.has(index) and isinstance(self.tensor(index), Entries):
                raise Mixes("uses entries in a place where they act on all entries")

    def elements(self, index: int) -> tuple[Size, ...] | None:
        """The elements of a small integer input; None if they are not known.

        Raises:
            Mixes: they are not known, and depend on the entries.
        """
        value = self.value(index)
        if isinstance(value, Sizes):
            return value.elements
        if isinstance(value, Fixed):
            return None
        raise Mixes("takes a shape or position from the entries' values")

    def constants(self, index: int, attribute: str = "") -> tuple[int, ...]:
        """The elements of an integer input as numbers; from an attribute where there is no such input.

        Raises:
            Mixes: they are no constants.
        """
        if not self.has(index):
            return tuple(self.attribute(attribute, ()) or ())
        elements = self.elements(index)
        if elements is None or not all(element.is_number for element in elements):
            raise Mixes("takes axes or positions that are no constants")
        return tuple(element.factor for element in elements)

    def rank(self, index: int) -> int:
        """The rank of an input.

        Raises:
            Mixes: it is unknown.
        """
        return len(self.shape(index))

    def shape(self, index: int) -> Shape:
        """The shape of an input.

        Raises:
            Mixes: its rank is unknown.
        """
        shape = self.value(index).shape
        if shape is None:
            raise Mixes("has an input of unknown rank")
        return shape

    def axis_attribute(self, rank: int, default: int, name: str = "axis") -> int:
        """An attribute that counts dimensions, from the front."""
        return from_front(self.attribute(name, default), rank)

    def size_of_output(self, dim: int, output: int = 0) -> Size:
        """The size of an output's dimension that no entries lie along, as ONNX infers it."""
        inferred = self.inferred[output]
        known = inferred[dim] if inferred is not None and dim < len(inferred) else None
        if known is not None and not known.follows_axis:
            return known
        return Size(1, (Symbol(f"{self.proto.output[output]}.{dim}"),))

    def entries_like(self, place: Place, rank: int, output: int = 0) -> Entries:
        """Entries in an output whose other sizes are as ONNX infers them."""
        shape = [self.size_of_output(dim, output) for dim in range(rank)]
        shape[place.dim] = place.size(self.axis)
        return Entries(tuple(shape), place)

    def fixed_output(self, output: int) -> Fixed:
        """An output that does not depend on the entries."""
        inferred = self.inferred[output]
        if inferred is None:
            return Fixed()
        return Fixed(tuple(self.size_of_output(dim, output) for dim in range(len(inferred))))


def from_front(dim: int, rank: int) -> int:
    """Count a dimension from the front.

    Raises:
        Mixes: there is no such dimension.
    """
    if not -rank <= dim < max(rank, 1):
        raise Mixes(f"names dimension {dim} of {rank}")
    return dim + rank if dim < 0 else dim

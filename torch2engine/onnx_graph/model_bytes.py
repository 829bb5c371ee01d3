"""A ModelProto → its bytes, in pieces that follow one another in the file.

Enters: a model. Leaves: pieces, each weight in one of its own. Separate because it alone knows how protobuf lays out a
message. Protobuf writes a model with its weights as one text, of which it makes ever longer copies: that took a
second for 170 MB, and the pieces take a tenth (protobuf 7).
"""

from __future__ import annotations

from typing import Any

__all__ = ["take_pieces"]

_MESSAGE = 2  # protobuf's wire type of what has a length


def take_pieces(model: Any) -> list[bytes]:
    """Write a model as pieces; it loses its graph, so that nothing is held twice for long.

    In protobuf a field may stand anywhere in its message, and each entry of a list is a field of its own.

    Args:
        model: an onnx.ModelProto, which is of no use afterwards.

    Returns:
        what joined together is the file of the model.
    """
    graph = model.graph
    pieces: list[bytes] = []
    for weight in graph.initializer:
        written = weight.SerializeToString()
        pieces += [_head(graph, "initializer", len(written)), written]
    del graph.initializer[:]
    rest_of_graph = graph.SerializeToString()
    size = len(rest_of_graph) + sum(map(len, pieces))
    head = _head(model, "graph", size)
    model.ClearField("graph")
    return [model.SerializeToString(), head, rest_of_graph, *pieces]


def _head(message: Any, field: str, size: int) -> bytes:
    """What stands before so many bytes of a field: its number and type, and the size."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _MESSAGE) + _varint(size)


def _varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first; all but the last have the eighth bit."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)

"""The bytes of an ONNX file → its inputs, its outputs and the data files that it names.

Enters: bytes that somebody else may have damaged. Leaves: an `OnnxOutline`, or a ValueError. Separate because an
artifact is checked where onnx is not installed, and because weights of gigabytes are skipped here, not copied.

ONNX files are protobuf messages. A message is a row of fields: a number, a kind, and a value of that kind. The numbers
below are those of onnx.proto, which never change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch2engine.core.spec import Dim

__all__ = ["ONNX_DTYPES", "OnnxOutline", "OutlineTensor", "read_outline"]

Message: TypeAlias = "bytes | memoryview"

_GRAPH_OF_MODEL = 7
_INITIALIZER = 5
_INPUT = 11
_OUTPUT = 12
_NAME_OF_VALUE = 1
_TYPE_OF_VALUE = 2
_TENSOR_OF_TYPE = 1
_ELEMENT_TYPE = 1
_SHAPE = 2
_DIM = 1
_DIM_SIZE = 1
_DIM_NAME = 2
_NAME_OF_TENSOR = 8
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14
_KEY = 1
_VALUE = 2
_IS_EXTERNAL = 1

# By kind of message: the fields that may hold a tensor, however deep.
_PATHS_TO_TENSORS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
}
_KEY_OF_A_LOCATION = re.compile(b"location")

ONNX_DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn_x2",
    24: "float8_e8m0fnu",
}
"""The numbers of ONNX's element types, and how PyTorch spells them."""


@dataclass(frozen=True)
class OutlineTensor:
    """An input or output of a graph.

    Args:
        name: its name.
        dtype: as PyTorch spells it; "no tensor" for a sequence, say.
        shape: an int per static dimension, "" per other one; None if the file does not give a shape.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class OnnxOutline:
    """The facts of an ONNX file that its artifact must know.

    Args:
        inputs: the graph's inputs that are no weights.
        outputs: the graph's outputs.
        data_files: name of each file of external data -> how many bytes it must have at least.
    """

    inputs: tuple[OutlineTensor, ...]
    outputs: tuple[OutlineTensor, ...]
    data_files: Mapping[str, int] = field(default_factory=dict[str, int])


def read_outline(data: Message) -> OnnxOutline:
    """Read an ONNX file.

    Raises:
        ValueError: it is no ONNX file, or a tensor's external data are not said well.
    """
    whole = memoryview(data)
    inputs: list[OutlineTensor] = []
    outputs: list[OutlineTensor] = []
    weights: set[str] = set()
    for number, graph in _messages(whole):
        if number == _GRAPH_OF_MODEL:
            for part, value in _messages(graph):
                if part == _INPUT:
                    inputs.append(_read_value(value))
                elif part == _OUTPUT:
                    outputs.append(_read_value(value))
                elif part == _INITIALIZER:
                    weights.add(_text(value, _NAME_OF_TENSOR))
    data_files: dict[str, int] = {}
    if _KEY_OF_A_LOCATION.search(whole):  # without one, which is the rule, no node needs to be looked at
        for tensor in _tensors(whole, "model"):
            _note_data_file(tensor, data_files)
    return OnnxOutline(tuple(one for one in inputs if one.name not in weights), tuple(outputs), data_files)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Give the number and value of each field: an int, or the bytes of a text, a message or packed numbers."""
    place = 0
    end = len(message)
    while place < end:
        key, place = _varint(message, place)
        number = key >> 3
        match key & 7:
            case 0:
                value, place = _varint(message, place)
                yield number, value
            case 2:
                length, place = _varint(message, place)
                stop = place + length
                if stop > end:
                    raise ValueError("it ends too early")
                yield number, message[place:stop]
                place = stop
            case 1:
                place += 8
            case 5:
                place += 4
            case _:
                raise ValueError("it is no protobuf message")
        if not number or place > end:
            raise ValueError("it is no protobuf message")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; return it and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("it ends too early")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is no protobuf message")


def _messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give the number and bytes of each field that holds bytes."""
    for number, value in _fields(message):
        if isinstance(value, memoryview):
            yield number, value


def _number(message: memoryview, field_number: int) -> int | None:
    """The number in a field; None if the message does not have it."""
    found = None
    for number, value in _fields(message):
        if number == field_number and isinstance(value, int):
            found = value
    return found


def _text(message: memoryview, field_number: int) -> str:
    """The text in a field; "" if the message does not have it."""
    found = ""
    for number, value in _messages(message):
        if number == field_number:
            found = str(value, "utf-8")
    return found


def _read_value(value: memoryview) -> OutlineTensor:
    """Read an input or output: its name, and the type and shape of a tensor."""
    dtype = "no tensor"
    shape: tuple[Dim, ...] | None = None
    for number, kind in _messages(value):
        if number != _TYPE_OF_VALUE:
            continue
        for inner, tensor in _messages(kind):
            if inner == _TENSOR_OF_TYPE:
                element_type = _number(tensor, _ELEMENT_TYPE) or 0
                dtype = ONNX_DTYPES.get(element_type, f"ONNX's type {element_type}")
                shape = _read_shape(tensor)
    return OutlineTensor(_text(value, _NAME_OF_VALUE), dtype, shape)


def _read_shape(tensor: memoryview) -> tuple[Dim, ...] | None:
    shapes = [shape for number, shape in _messages(tensor) if number == _SHAPE]
    if not shapes:
        return None
    return tuple(_read_dim(dim) for shape in shapes for number, dim in _messages(shape) if number == _DIM)


def _read_dim(dim: memoryview) -> Dim:
    size = _number(dim, _DIM_SIZE)
    if size is None or size >= 1 << 63 or _text(dim, _DIM_NAME):  # a negative number, as some exporters write it
        return ""
    return size


def _tensors(message: memoryview, kind: str) -> Iterator[memoryview]:
    """Give every tensor below a message: of subgraphs, attributes, functions and sparse weights too."""
    if kind == "tensor":
        yield message
        return
    paths = _PATHS_TO_TENSORS[kind]
    for number, inner in _messages(message):
        if number in paths:
            yield from _tensors(inner, paths[number])


def _note_data_file(tensor: memoryview, data_files: dict[str, int]) -> None:
    """Add the file that holds a tensor's values, if one does."""
    if _number(tensor, _DATA_LOCATION) != _IS_EXTERNAL:
        return
    entries = [entry for number, entry in _messages(tensor) if number == _EXTERNAL_DATA]
    where = {_text(entry, _KEY): _text(entry, _VALUE) for entry in entries}
    numbers = [where.get(key, "0") for key in ("offset", "length")]
    if not where.get("location") or not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"the weight '{_text(tensor, _NAME_OF_TENSOR)}' has external data at {where}")
    least = sum(map(int, numbers))
    data_files[where["location"]] = max(least, data_files.get(where["location"], 0))

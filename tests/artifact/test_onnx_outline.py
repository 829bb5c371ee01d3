"""What is read of an ONNX file without onnx is what onnx reads, and damage is a ValueError."""

from __future__ import annotations

import random
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from torch2engine.artifact.onnx_outline import OnnxOutline, OutlineTensor, read_outline


def external(name: str, location: str, **numbers: object) -> Any:
    """A weight of ten bytes whose values lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[10], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **numbers}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(tensor: Any) -> Any:
    """A node that holds a weight as its attribute."""
    return helper.make_node("Constant", [], [tensor.name], value=tensor)


def with_everything() -> Any:
    """A model with external data wherever ONNX allows a tensor, and an input that is a weight."""
    inner = helper.make_graph(
        [constant(external("c", "c.bin"))],
        "inner",
        [],
        [helper.make_tensor_value_info("d", TensorProto.UINT8, [10])],
        [external("d", "d.bin")],
    )
    flag = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
    sparse = onnx.SparseTensorProto(values=external("s", "values.bin"), indices=external("", "indices.bin"), dims=[99])
    values = [
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 3, None, 0]),
        helper.make_tensor_value_info("w", TensorProto.UINT8, [10]),
        helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("rankless", TensorProto.BFLOAT16, None),
    ]
    values[1].type.tensor_type.shape.dim[2].dim_value = -1  # as some exporters write an unknown size
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, [10])
    nodes = [
        flag,
        constant(external("a", "a.bin", offset=4096, length=10)),
        helper.make_node("Constant", [], ["e"], sparse_value=sparse),
    ]
    graph = helper.make_graph(nodes, "graph", values, [output], [external("w", "a.bin", offset=0, length=10)])
    graph.sparse_initializer.add().values.CopyFrom(external("t", "t.bin"))
    function = helper.make_function(
        "my.domain", "F", [], ["f"], [constant(external("f", "f.bin"))], [helper.make_opsetid("", 20)]
    )
    return helper.make_model(graph, functions=[function])


def test_outline_is_what_onnx_reads() -> None:
    """Weights are no inputs, sizes that are not fixed have no number, and data files are found wherever they are."""
    files = ["a.bin", "c.bin", "d.bin", "f.bin", "indices.bin", "t.bin", "values.bin"]
    assert read_outline(with_everything().SerializeToString()) == OnnxOutline(
        inputs=(
            OutlineTensor("flag", "bool", ()),
            OutlineTensor("x", "float16", ("", 3, "", 0)),
            OutlineTensor("many", "no tensor", None),
            OutlineTensor("rankless", "bfloat16", None),
        ),
        outputs=(OutlineTensor("y", "uint8", (10,)),),
        data_files=dict.fromkeys(files, 0) | {"a.bin": 4106},
    )


def test_every_element_type_of_onnx_has_its_name() -> None:
    """No type is mistaken for another, and a type that came after FLOAT8E8M0 shows as its number."""
    names = {"FLOAT": "float32", "DOUBLE": "float64", "FLOAT4E2M1": "float4_e2m1fn_x2", "FLOAT8E8M0": "float8_e8m0fnu"}
    newest = TensorProto.FLOAT8E8M0
    for member, number in TensorProto.DataType.items():
        value = helper.make_tensor_value_info("x", number, [1])
        model = helper.make_model(helper.make_graph([], "graph", [value], []))
        (found,) = read_outline(model.SerializeToString()).inputs
        is_known = 0 < number <= newest
        known = names.get(member, member.lower().replace("float8", "float8_"))
        assert found.dtype == (known if is_known else f"ONNX's type {number}")


def test_inline_weights_need_no_file() -> None:
    """Words like "location" in names and remarks are no external data."""
    weight = helper.make_tensor("location", TensorProto.FLOAT, [1], [1.0])
    model = helper.make_model(helper.make_graph([], "location", [], [], [weight]), doc_string="location")
    assert read_outline(model.SerializeToString()).data_files == {}


@pytest.mark.parametrize(
    "tensor",
    [
        external("w", ""),
        external("w", "a.bin", offset=-1),
        external("w", "a.bin", length=1 << 70),
        TensorProto(name="w"),
    ],
    ids=["no place", "negative", "huge", "inline"],
)
def test_external_data_without_a_usable_place_are_refused(tensor: Any) -> None:
    """A location, and numbers that are no negative ones: else the weight's name is in the error."""
    data = helper.make_model(helper.make_graph([], "location", [], [], [tensor])).SerializeToString()
    if tensor.data_location != TensorProto.EXTERNAL:
        assert read_outline(data).data_files == {}
    elif "length" in str(tensor):
        assert read_outline(data).data_files == {"a.bin": 1 << 70}
    else:
        with pytest.raises(ValueError, match="the weight 'w' has external data at"):
            read_outline(data)


def test_damaged_bytes_are_value_errors_and_nothing_else() -> None:
    """Every cut, and a thousand changed bytes, either read as another outline or end in a ValueError."""
    data = with_everything().SerializeToString()
    chance = random.Random(0)
    refused = 0
    for case in range(len(data) + 1000):
        damaged = bytearray(data[:case] if case < len(data) else data)
        if case >= len(data):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        try:
            assert isinstance(read_outline(bytes(damaged)), OnnxOutline)
        except ValueError:
            refused += 1
    assert refused > len(data) / 2

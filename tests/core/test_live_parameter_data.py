"""Live parameters in a manifest: which inputs and values fit together, and in which words the others are refused.

Enters: signatures and values as JSON objects, changed in one place each. Leaves: proof that a manifest with wrong live
parameters is not read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from torch2engine.core.json_rules import SchemaError
from torch2engine.core.live_parameter_data import LiveParameter, check_live_values, encode_value
from torch2engine.core.spec import SIGNATURE_JSON, Axis, InputWrite, Parameter, Signature, TensorSpec, Tree

SCALE = TensorSpec("scale", "float16", (3,), live=LiveParameter("scale", "parameter"))
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch",)), SCALE),
    (TensorSpec("output", "float32", ("batch",)),),
    (Axis("batch", 1, 2, 3),),
    (Parameter("x", "positional", Tree("tensor")),),
)


def test_signature_with_live_parameters_is_read_back() -> None:
    """Its inputs are known by who feeds them."""
    read = SIGNATURE_JSON.decode(SIGNATURE_JSON.encode(SIGNATURE))
    assert read == SIGNATURE
    assert ([spec.name for spec in read.call_inputs], read.live_inputs) == (["x"], (SCALE,))
    assert read.live_parameters == (LiveParameter("scale", "parameter"),)


def behind_a_call(members: dict[str, Any]) -> None:
    members["inputs"].reverse()


def of_a_dynamic_size(members: dict[str, Any]) -> None:
    members["inputs"][1]["shape"] = ["batch"]


def written(members: dict[str, Any]) -> None:
    members["inputs"][1]["dtype"] = "float32"
    members["writes"] = [{"input": "scale", "output": "output"}]


def named_twice(members: dict[str, Any]) -> None:
    members["inputs"].append({**members["inputs"][1], "name": "other"})


def of_no_kind(members: dict[str, Any]) -> None:
    members["inputs"][1]["live"]["kind"] = "weight"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (behind_a_call, "an input of a call behind a live parameter in signature.inputs"),
        (of_a_dynamic_size, "a live parameter of fixed sizes, which the model does not write"),
        (written, "a live parameter of fixed sizes, which the model does not write"),
        (named_twice, "each live parameter once"),
        (of_no_kind, "one of 'parameter', 'buffer'"),
    ],
)
def test_signature_with_wrong_live_parameters_is_refused(spoil: Callable[[dict[str, Any]], None], text: str) -> None:
    """The error says which rule is broken."""
    members = copy.deepcopy(SIGNATURE_JSON.encode(SIGNATURE))
    spoil(members)
    with pytest.raises(SchemaError) as caught:
        SIGNATURE_JSON.check(members, "signature")
    assert text in (caught.value.got, caught.value.allowed)


def test_writes_are_those_of_inputs_that_a_call_gives() -> None:
    """A signature with a written input beside a live parameter is valid."""
    given = TensorSpec("x", "float32", ("batch",))
    members = SIGNATURE_JSON.encode(
        Signature(
            (given, SCALE), SIGNATURE.outputs, SIGNATURE.axes, SIGNATURE.parameters, writes=(InputWrite("x", "output"),)
        )
    )
    SIGNATURE_JSON.check(members, "signature")


@pytest.mark.parametrize("values", [{}, {"scale": 3}, {"scale": "%"}, {"scale": encode_value(bytes(5))}])
def test_values_of_another_size_are_refused(values: dict[str, Any]) -> None:
    """There are bytes for every element, and nothing else."""
    inputs = SIGNATURE_JSON.encode(SIGNATURE)["inputs"]
    check_live_values({"scale": encode_value(bytes(6))}, inputs, "live_values")
    with pytest.raises(SchemaError):
        check_live_values(values, inputs, "live_values")

"""`torch2engine.precision.graph.engine_layers`: what TensorRT's inspector says, read right.

Enters: accounts of real engines in `inspected` (TensorRT-RTX 1.6.1 on an H200; cut to the fields that matter) with the
products of the graphs that they were built from, and layers made up to the letter. Leaves: proof that every product's
arithmetic is found, and that an engine that computes otherwise than its graph is seen.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

import torch2engine as t2e
from tests.support.paths import SUPPORT
from torch2engine.core.precision_report import MultiplyAddNode, PrecisionReport
from torch2engine.precision.engine_precision import require_precision
from torch2engine.precision.graph.engine_layers import Layer, engine_precisions, read_layers

INSPECTED = {path.stem: path for path in sorted((SUPPORT / "inspected").glob("*.json"))}
# What the engines compute otherwise than their graphs: TensorRT-RTX has no fp8 kernel for these convolutions.
DIFFERS = {
    "convnext.fp8": dict.fromkeys(("node_conv2d_1", "node_conv2d_2", "node_conv2d_3", "node_conv2d_5"), "fp32"),
    "convt.fp8": {"node_convolution": "fp32"},
}
WIDER = {"Half": "Float", "BFloat16": "Float", "FP8": "Half", "Int8": "Half", "Float": "Half"}
WORDS = {"Half": "fp16", "Float": "fp32"}


def account(name: str) -> tuple[dict[str, Any], tuple[MultiplyAddNode, ...]]:
    """An engine's account, and its graph's products."""
    data = json.loads(INSPECTED[name].read_text(encoding="utf-8"))
    return data, tuple(
        MultiplyAddNode(node, op, "", precision, 1) for node, (op, precision) in data["products"].items()
    )


def found_in(data: dict[str, Any], graph: tuple[MultiplyAddNode, ...]) -> dict[str, str]:
    return engine_precisions(read_layers(json.dumps(data)), graph)


@pytest.mark.parametrize("name", INSPECTED)
def test_every_product_of_a_real_engine_is_found(name: str) -> None:
    """Convolutions, products with and without weights, fused attention, recurrent layers; mixed with float32."""
    data, graph = account(name)
    assert len(graph) >= 3
    assert found_in(data, graph) == {**{one.name: one.precision for one in graph}, **DIFFERS.get(name, {})}


@pytest.mark.parametrize("name", [name for name in INSPECTED if not name.startswith("lstm")])
def test_a_product_that_is_computed_in_another_type_is_seen(name: str) -> None:
    """The layer of each product in turn is given another type, as if a cast had been folded away."""
    data, graph = account(name)
    before = found_in(data, graph)
    for node in before:
        changed = copy.deepcopy(data)
        others = set()
        new = ""
        for layer, parsed in zip(changed["Layers"], read_layers(json.dumps(data)), strict=True):
            if node in parsed.nodes and parsed.multiplies:
                others |= {other for other in before if other in parsed.nodes}
                old = layer["Inputs"][0]["Datatype"]
                for tensor in (*layer["Inputs"], *layer["Constants"]):
                    if tensor["Datatype"] == old:
                        tensor["Datatype"] = WIDER[old]
                new = WORDS[WIDER[old]]
        assert new
        assert found_in(changed, graph) == {**before, **dict.fromkeys(others, new)}


def test_a_recurrent_layer_whose_products_are_wide_is_seen() -> None:
    """TensorRT does not say whose the products inside its loop are; one that is wide makes the layer wide."""
    data, graph = account("lstm.fp16")
    loose = next(layer for layer in data["Layers"] if layer["LayerType"] == "gemm" and not layer["Metadata"])
    for tensor in (*loose["Inputs"], *loose["Constants"]):
        tensor["Datatype"] = "Float"
    assert found_in(data, graph) == {"node_LSTM_66": "fp32", "node_LSTM_127": "fp32", "node_linear": "fp16"}
    # If the graph has one of them in float32 itself, nobody can tell whose the wide one is.
    mixed = tuple(replace(one, precision="fp32") if one.name == "node_LSTM_127" else one for one in graph)
    assert found_in(data, mixed) == {"node_LSTM_66": "unknown", "node_LSTM_127": "unknown", "node_linear": "fp16"}


def tensor(kind: str, *dims: int) -> dict[str, Any]:
    """As TensorRT 11 and RTX write one."""
    return {"Name": "t", "Dimensions": list(dims), "Datatype": kind}


def read_one(**entry: Any) -> Layer:
    """A single layer of node `n`."""
    layers = read_layers(json.dumps({"Layers": [{"Name": "l", "Metadata": "[ONNX Layer: n]", **entry}]}))
    assert layers[0].nodes == ("n",)
    return layers[0]


@pytest.mark.parametrize(
    ("read", "weight", "expected"),
    [
        (["Half", "Float"], "Half", "fp16"),  # a residual in float32 behind the product
        (["Half"], "Float", "fp32"),
        (["Float"], "Half", "fp32"),
        (["Half"], "Int8", "fp16"),  # weights alone are narrow
        (["Half"], "Int4", "fp16"),
        (["Int8", "Float"], "Int8", "int8"),
        (["FP8", "Half"], "FP8", "fp8"),
        (["BFloat16"], "BFloat16", "bf16"),
        (["Int64", "Bool"], "Half", "fp16"),
    ],
)
def test_arithmetic_of_a_weighted_product(read: list[str], weight: str, expected: str) -> None:
    """By its weight, if it reads something of the same type, else the widest; vectors beside it say nothing."""
    layer = read_one(
        LayerType="gemm",
        Inputs=[tensor(kind, -1, 16) for kind in read],
        Constants=[tensor("Float", 1, 16), tensor(weight, 16, 16), tensor("Float", 1)],
        Outputs=[tensor("Float", -1, 16)],
    )
    assert (layer.precision, layer.multiplies) == (expected, 2)


@pytest.mark.parametrize(
    ("read", "expected"),
    [(["Half", "Half", "Half", "Float"], "fp16"), (["Half", "Float"], "fp32"), (["Bool", "FP8", "FP8"], "fp8")],
)
def test_arithmetic_of_activations(read: list[str], expected: str) -> None:
    """By most of what it reads; a mask or bias is one of many, and a draw goes to the wider type."""
    layer = read_one(LayerType="gemm", Inputs=[tensor(kind, -1, 8, 8) for kind in read], Constants=[], Outputs=[])
    assert layer.precision == expected


def test_tensorrt_10_says_it_otherwise() -> None:
    """Formats and types in one field, the weights in one of their own."""
    layer = read_one(
        LayerType="CaskConvolution",
        Inputs=[
            {"Dimensions": [1, 512, 28, 28], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
        ],
        Outputs=[{"Dimensions": [1, 256, 28, 28], "Format/Datatype": "Row major linear FP32"}],
        Weights={"Type": "Half", "Count": 131072},
    )
    assert (layer.precision, layer.multiplies) == ("fp16", 2)
    layer = read_one(
        LayerType="CaskConvolution",
        Inputs=[{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.", "Dimensions": [1, 9]}],
        Weights={"Type": "Int8", "Count": 9},
    )
    assert layer.precision == "int8"


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", ""])
def test_names_of_nodes_may_hold_brackets(separator: str) -> None:
    """As PyTorch's do in lists of modules, and a remark may follow."""
    names = ("node_a[0]", "b [x] c", "/layers.0/Conv")
    metadata = separator.join(f"[ONNX Layer: {name}]" for name in names) + "__gemm_from_conv1x1"
    entry = {"Name": "l", "LayerType": "kgen", "Metadata": metadata}
    assert read_layers(json.dumps({"Layers": [entry]}))[0].nodes == names


NOTHING = ("", "{}", "[]", "no JSON", '{"Layers": null}', '{"Layers": ["conv1 + relu1"]}', '{"Layers": [{}]}')
NULLS = '{"Layers": [{"Name": null, "Inputs": null, "Outputs": null, "Constants": null, "Metadata": null}]}'


@pytest.mark.parametrize("text", [*NOTHING, NULLS])
def test_without_details_nothing_is_claimed(text: str) -> None:
    """An engine that was built without detailed profiling verbosity, or words that nobody knows."""
    assert engine_precisions(read_layers(text), [MultiplyAddNode("conv1", "Conv", "", "fp16", 1)]) == {
        "conv1": "unknown"
    }


def test_layer_of_no_known_kind_proves_nothing() -> None:
    """What surrounds a product may well be wide where it is not."""
    layer = read_one(LayerType="Myelin", Inputs=[tensor("Float", -1, 8)], Outputs=[tensor("Float", -1, 8)])
    assert engine_precisions([layer], [MultiplyAddNode("n", "MatMul", "", "fp16", 1)]) == {"n": "unknown"}


def product(engine: str, multiply_adds: int, module: str = "head", precision: str = "fp16") -> MultiplyAddNode:
    """One that the graph has in float16."""
    return MultiplyAddNode(module, "Gemm", module, precision, multiply_adds, engine)


def test_engine_that_stays_in_float32_is_refused() -> None:
    """With what is computed, in which modules, and what to do."""
    report = PrecisionReport((product("fp32", 60), product("fp32", 30, "stem"), product("fp16", 10, "neck")))
    with pytest.raises(t2e.PrecisionError) as caught:
        require_precision(report, "fp16", "TensorRT 11")
    assert str(caught.value) == (
        "precision 'fp16': got less of it: TensorRT 11 computes 10.0 % of the multiply-adds that the "
        "graph has in fp16 in it, not 'head' (in fp32), 'stem' (in fp32); expected at least 90 %; "
        "take Precision('fp16', keep_fp32=['head', 'stem']) if these may stay as they are, or "
        "another precision"
    )


def test_engine_of_which_nothing_is_known_but_that_it_has_no_such_layer_is_refused() -> None:
    """Without a name on any layer their types still tell."""
    unknown = (product("unknown", 5),)
    assert len(require_precision(PrecisionReport(unknown, {"fp16": 1, "fp32": 9}), "fp16", "TRT")) == 1
    assert len(require_precision(PrecisionReport(unknown, {}), "fp16", "TRT")) == 1
    with pytest.raises(t2e.PrecisionError, match=r"computes 0\.0 % .*it does not tell of 'head'"):
        require_precision(PrecisionReport(unknown, {"fp32": 10}), "fp16", "TRT")


def test_islands_and_small_parts_are_allowed() -> None:
    """What the graph itself has in float32 is not asked for; less than a tenth is told, as is what is not known."""

    def told(*products: MultiplyAddNode) -> tuple[str, ...]:
        return require_precision(PrecisionReport(products), "fp16", "TRT")

    island = product("fp32", 900, "norm", "fp32")
    assert told(island, product("fp16", 10)) == ()
    share = "TRT computes {} % of the multiply-adds that the graph has in fp16 in it"
    assert told(product("fp16", 95), product("fp32", 5, "")) == (share.format("95.0") + ", not (model) (in fp32)",)
    assert told(product("unknown", 95), product("fp16", 5, "stem")) == (
        share.format("5.0") + "; it does not tell of 'head'",
    )
    assert told(product("unknown", 20), product("fp32", 5, "stem"), product("fp16", 75, "neck")) == (
        share.format("75.0") + ", not 'stem' (in fp32); it does not tell of 'head'",
    )
    assert len(told(product("fp32", 0))) == 1  # without entries there is no work that could be elsewhere
    assert told(island) == (
        "there is no convolution or matrix product in fp16 outside of branches and loops to verify",
    )


def test_report_tells_graph_and_engine() -> None:
    """A table with both, shares by the engine, and JSON."""
    products = (product("fp32", 25, "stem"), product("fp16", 75))
    report = PrecisionReport(products, {"fp16": 7, "fp32": 2})
    assert str(report).splitlines() == [
        "25.0 % of the multiply-adds in fp32, 75.0 % of the multiply-adds in fp16; layers: 7 in fp16, 2 in fp32",
        "module  graph  engine  products  multiply-adds",
        "stem    fp16   fp32    1         25",
        "head    fp16   fp16    1         75",
    ]
    assert report.share("fp16") == 0.75
    data = json.loads(json.dumps(report.to_json()))
    assert data["layers"] == {"fp16": 7, "fp32": 2}
    assert data["shares"] == {"fp16": 0.75, "fp32": 0.25}
    assert data["products"][0]["engine"] == "fp32"

"""`torch2engine.deployed.report_drawings`: what the drawings of a report show, and that they are sound SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from torch2engine.core.precision_report import AttentionOutcome, MultiplyAddNode, PrecisionReport
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.deployed.explanation import GraphPartRecord
from torch2engine.deployed.report_drawings import icicle, memory_bar, placement_strip
from torch2engine.deployed.report_page import _STYLE

FP16, FP32 = (f"type-{list(PRECISION_TYPES).index(name)}" for name in ("fp16", "fp32"))


def product(module: str, size: int, engine: str = "fp16") -> MultiplyAddNode:
    return MultiplyAddNode(f"node of {module}", "MatMul", module, "fp16", size, engine)


PRODUCTS = (
    product("encoder.layer.0.query", 30),
    product("encoder.layer.0", 10),
    product("encoder.layer.1.query", 20, "fp32"),
    product("head<1>", 40, "a new type"),
)
ATTENTION = (AttentionOutcome("encoder.layer.0", True), AttentionOutcome("encoder.layer.1", False, "12 entries"))


def boxes(svg: str) -> dict[str, tuple[float, float, float, list[str]]]:
    """Label of each box -> x and width in percent, y in pixels, classes of its rectangles."""
    root = ElementTree.fromstring(svg.partition("<p ")[0])
    found = {}
    for box in root:
        classes = [str(rectangle.get("class")) for rectangle in box.iter("rect") if rectangle.get("class") != "edge"]
        x, width = (float(str(box.get(name)).removesuffix("%")) for name in ("x", "width"))
        found[str(box.findtext("text"))] = (x, width, float(str(box.get("y"))), classes)
    return found


def test_modules_are_as_wide_as_their_arithmetic_and_stand_below_their_parents() -> None:
    """A chain of single modules is one box; every box has the colours of its precisions and a mark for attention."""
    drawn = boxes(icicle(PrecisionReport(PRODUCTS, {"fp16": 3}, {}, ATTENTION)))
    assert drawn == {
        "(model)": (0.0, 100.0, 0.0, [FP16, FP32, "type-other"]),
        "encoder.layer": (0.0, 60.0, 24.0, [FP16, FP32]),
        "0": (0.0, 40.0, 48.0, [FP16, "fused"]),
        "query": (40.0, 20.0, 72.0, [FP32]),
        "1": (40.0, 20.0, 48.0, [FP32, "unfused"]),
        "head<1>": (60.0, 40.0, 24.0, ["type-other"]),
    }


def test_pointer_and_legend_tell_the_figures() -> None:
    """Paths, multiply-adds, shares, and why attention is not fused."""
    svg = icicle(PrecisionReport(PRODUCTS, {"fp16": 3}, {}, ATTENTION))
    assert "<title>encoder.layer.1: 20 in fp32; attention not fused: 12 entries</title>" in svg
    assert "</svg> fp16 40.0 %</span>" in svg and "</svg> 1 attention not fused</span>" in svg


def test_modules_without_known_sizes_are_equally_wide() -> None:
    """Where shapes depend on values, nothing is counted, and the drawing still shows what is computed in what."""
    drawn = boxes(icicle(PrecisionReport((product("a", 0), product("b", 0, "fp32")))))
    assert [drawn[name][:2] for name in ("a", "b")] == [(0.0, 50.0), (50.0, 50.0)]


def test_modules_too_narrow_or_too_deep_are_left_out() -> None:
    """A model of a thousand modules keeps a small page."""
    many = tuple(product(f"layers.{number}", 1) for number in range(1000))
    assert set(boxes(icicle(PrecisionReport(many)))) == {"(model)", "layers"}
    deep = ".".join("abcdefghijkl")
    split = (product(deep, 1), *(product(".".join("abcdefghijkl"[:depth]), 1) for depth in range(1, 12)))
    assert max(y for _, _, y, _ in boxes(icicle(PrecisionReport(split))).values()) == 7 * 24


def test_model_without_products_has_no_drawing() -> None:
    """An empty frame would say nothing."""
    assert icicle(PrecisionReport(())) == ""


def test_parts_are_as_wide_as_their_operators() -> None:
    """Engines and PyTorch have colours of their own."""
    parts = [GraphPartRecord("TensorRT-RTX", 9, "net.py:1"), GraphPartRecord("PyTorch", 3, "net.py:2", "no kernel")]
    assert boxes(placement_strip(parts)) == {
        "TensorRT-RTX": (0.0, 75.0, 0.0, ["in-engine"]),
        "PyTorch": (75.0, 25.0, 0.0, ["in-pytorch"]),
    }


def test_memory_is_drawn_to_scale_without_what_is_empty() -> None:
    """A size of 0 is not known."""
    drawn = boxes(memory_bar([("plan", 3 * 2**20), ("none", 0), ("working memory", 2**20)]))
    assert drawn == {
        "plan: 3.0 MiB": (0.0, 75.0, 0.0, ["size-0"]),
        "working memory: 1.0 MiB": (75.0, 25.0, 0.0, ["size-1"]),
    }


@pytest.mark.parametrize(
    "svg",
    [
        icicle(PrecisionReport(PRODUCTS, {}, {}, (*ATTENTION, AttentionOutcome("head<1>", None)))),
        placement_strip([GraphPartRecord("PyTorch", 1, ""), GraphPartRecord("ONNX Runtime", 1, "")]),
        memory_bar([("a", 1), ("b", 1)]),
    ],
    ids=["icicle", "parts", "memory"],
)
def test_every_class_of_a_drawing_has_a_colour(svg: str) -> None:
    """A rectangle without one would be black on both backgrounds."""
    for kinds in re.findall(r'class="([^"]+)"', svg):
        assert re.search(rf"\.{re.escape(kinds)}\b", _STYLE), kinds

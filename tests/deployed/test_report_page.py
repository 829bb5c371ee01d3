"""`DeployReport.to_html`: one page that needs nothing else, for light and dark, wide and narrow screens."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.parity_tables import table
from torch2engine.core.errors import ArtifactError
from torch2engine.core.finding import Finding
from torch2engine.core.precision_report import AttentionOutcome, MultiplyAddNode, PrecisionReport
from torch2engine.deployed.benchmark import BenchmarkReport, BenchmarkRow, Timing
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.deployed.explanation import GraphPartRecord

EMPTY_TAGS = {"meta", "br"}


class Page(HTMLParser):
    """Reads a page as a browser does: which tags are open, what refers to something else, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def report() -> DeployReport:
    """A report with every section; names and notes hold characters that HTML knows."""
    products = (
        MultiplyAddNode("a", "Gemm", "head", "fp16", 30, "fp16"),
        MultiplyAddNode("b", "Conv", "stem<0>", "fp16", 10, "fp32"),
    )
    return DeployReport(
        parity=(table("PyTorch vs ONNX Runtime"), table("PyTorch vs TensorRT", scale=1.5)),
        seconds={"capture": 0.04, "build": 12.36},
        precision="fp16",
        memory_bytes=3 * 2**20,
        notes=("the model writes into <x> & 'y'",),
        computed=PrecisionReport(
            products,
            {"fp16": 3},
            {"head": {"fp16": 2}, "stem<0>": {"fp32": 1}},
            (AttentionOutcome("head", True), AttentionOutcome("stem<0>", False, "12 entries & more")),
        ),
        model_bytes=5 * 2**20,
        parts=(
            GraphPartRecord("TensorRT-RTX", 9, "net.py:1-9", modules=("head", "stem<0>")),
            GraphPartRecord("PyTorch", 3, "net.py:10", "aten.eig: no <ONNX> function"),
        ),
        findings=(Finding(name="wide profile", measured="1..64 & more", why="It <matters>", suggestion="two of them"),),
    )


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    """Every tag is closed, no script runs, and nothing is fetched."""
    path = report().to_html(tmp_path / "report.html", title="Net <1>")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.references == []
    assert "script" not in page.tags and "link" not in page.tags
    assert "http" not in text and "@import" not in text and "url(" not in text


def test_page_shows_every_section(tmp_path: Path) -> None:
    """Verdict, phases, both comparisons, precision by module, findings and notes are there, as the user wrote them."""
    words = Page(report().to_html(tmp_path / "report.html", title="Net <1>").read_text(encoding="utf-8")).words
    for expected in (
        "Net <1>",
        "failed",
        "12.36 s",
        "PyTorch vs ONNX Runtime",
        "PyTorch vs TensorRT",
        "head",
        "stem<0>",
        "10 in fp32",
        "2 in fp16",
        "'head', 'stem<0>'",
        "aten.eig: no <ONNX> function",
        "attention: 1 of 2 in fused kernels; not that of 'stem<0>': 12 entries & more",
        "plan, with weights and kernels: 5.0 MiB",
        "working memory of the execution contexts: 3.0 MiB",
        "the model writes into <x> & 'y'",
        "wide profile",
        "1..64 & more.",
        "It <matters>.",
        "Try: two of them",
    ):
        assert expected in words
    assert any(word.startswith("FAILED: relative L2 is 0.5") for word in words)
    assert any("3 MiB working memory" in word for word in words)


def test_page_shows_times_and_rates_of_calls(tmp_path: Path) -> None:
    """The slower of host and device decides; items are the first axis's."""
    rows = (
        BenchmarkRow(
            case="batch 8",
            candidate="TensorRT",
            timing=Timing(host_us=20.0, host_p95_us=30.0, device_us=100.0, device_p95_us=125.0),
            sizes={"batch": 8, "length": 16},
        ),
        BenchmarkRow(case="batch 8", candidate="PyTorch <eager>", timing=Timing(host_us=400.0, host_p95_us=500.0)),
    )
    benchmark = BenchmarkReport(subject="NVIDIA H200", precision="fp16", rows=rows)
    path = report().to_html(tmp_path / "report.html", benchmark=benchmark)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    start = page.words.index("TensorRT")
    assert [word for word in page.words[start : start + 12] if word][:4] == [
        "TensorRT",
        "100.0 µs",
        "125.0 µs",
        "10,000",
    ]
    assert "80,000" in page.words
    start = page.words.index("PyTorch <eager>")
    assert [word for word in page.words[start : start + 16] if word][3:5] == ["2,500", "-"]


def test_page_draws_the_errors_of_the_elements(tmp_path: Path) -> None:
    """A column for each power of ten, with its count for the pointer."""
    text = report().to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    # The first comparison's elements are equal.
    assert '<i style="height:100.0%" title="below 1e-9: 4"></i><i style="height:0.0%" title="1e-9 to 1e-8: 0">' in text
    assert 'title="1e-1 to 1e0: 3"' in text  # the second one's are off by half of their own value


def test_page_tells_a_weak_verdict_from_a_passed_one(tmp_path: Path) -> None:
    """A weak row says why its verdict proves little; any other row that passed says no more than that."""
    parity = table("PyTorch vs ONNX Runtime")
    first = replace(parity.rows[0], passed=True, reason="", weakness="")
    weak = replace(first, weakness="it is all zeros")
    words: list[list[str]] = []
    for row in (first, weak):
        found = replace(report(), parity=(replace(parity, rows=(row,)),))
        words.append(Page(found.to_html(tmp_path / "report.html").read_text(encoding="utf-8")).words)
    assert "passed" in words[0] and not [word for word in words[0] if word.startswith("weak: ")]
    assert "weak: it is all zeros" in words[1]


def test_page_follows_the_screen(tmp_path: Path) -> None:
    """Dark screens have colours of their own, and on narrow ones only the tables scroll."""
    text = report().to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert text.count("<table>") == text.count('<div class="scroll"><table>') == 5


def test_whole_engine_has_a_sentence_and_no_table_of_parts(tmp_path: Path) -> None:
    """A table of one row would say less."""
    whole = replace(report(), parts=(GraphPartRecord("TensorRT-RTX", 0, ""),))
    words = Page(whole.to_html(tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "TensorRT-RTX runs the whole model." in words
    assert "runs in" not in words


def test_page_of_a_module_without_a_report_says_so(tmp_path: Path) -> None:
    """Nothing is drawn that is not known."""
    page = Page(DeployReport.of_nothing("fp32").to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "not compared" in page.words
    assert "table" not in page.tags


def test_page_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    """The error names the path and what to do."""
    with pytest.raises(ArtifactError, match="name a file in a folder that exists"):
        report().to_html(tmp_path / "missing" / "report.html")

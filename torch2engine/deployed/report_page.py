"""A report of a deploy → one HTML page that needs nothing else.

Enters: a `DeployReport`. Leaves: the page as text: styles inside, no script, nothing from the network. Separate from
`deploy_report` because the value formats itself as plain text everywhere, and as a page for whoever asks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from torch2engine.core.finding import Finding
from torch2engine.core.precision_report import PrecisionReport, named_modules
from torch2engine.core.tried_candidate import TriedCandidate, tried_rows
from torch2engine.core.version import __version__
from torch2engine.deployed.report_drawings import icicle, memory_bar, placement_strip
from torch2engine.parity.parity_report import ERROR_DECADES, OutputParity, ParityReport

if TYPE_CHECKING:
    from torch2engine.deployed.benchmark import BenchmarkReport, BenchmarkRow
    from torch2engine.deployed.deploy_report import DeployReport
    from torch2engine.deployed.explanation import GraphPartRecord

__all__ = ["report_page"]

_SHOWN_MODULES = 60

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c2128; --soft: #59636e; --line: #d1d9e0; --good: #1a7f37;
  --bad: #cf222e; --weak: #9a6700; --bar: #54aeff; --edge: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --good: #3fb950; --bad: #f85149; --weak: #d29922; --bar: #1f6feb; --edge: #0d1117; } }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
td.wide { white-space: normal; min-width: 12rem; } .soft { color: var(--soft); }
.passed { color: var(--good); } .failed { color: var(--bad); } .weak { color: var(--weak); }
.track { position: relative; width: 14rem; height: .8rem; background: var(--line); }
.track i, .track b { position: absolute; top: 0; height: 100%; } .track i { background: var(--bar); }
.track b { width: 2px; background: var(--text); }
.columns { display: flex; align-items: flex-end; gap: 1px; height: 1.2rem; width: 6rem; }
.columns i { flex: 1; background: var(--bar); min-height: 1px; }
.parts { display: flex; height: 1rem; min-width: 14rem; } .parts i { background: var(--bar); }
dt { font-weight: 600; } dd { margin: 0 0 .8rem; overflow-wrap: anywhere; }
.drawing text { font: 12px system-ui, sans-serif; fill: var(--text); } .drawing { display: block; margin: .5rem 0; }
.legend span { white-space: nowrap; margin-right: 1rem; } .edge { fill: none; stroke: var(--edge); }
.type-0 { fill: #bf8700; } .type-1 { fill: #bc4c00; } .type-2 { fill: #218bff; } .type-3 { fill: #2da44e; }
.type-4 { fill: #bf3989; } .type-5 { fill: #8250df; } .type-6 { fill: #cf222e; }
.type-other, .in-pytorch, .open { fill: #8c959f; } .in-engine { fill: #2da44e; }
.size-0 { fill: #218bff; } .size-1 { fill: #bf8700; }
.drawing rect, .legend rect { fill-opacity: .5; } .drawing .fused, .drawing .unfused { fill-opacity: 1; }
.drawing .edge { fill: none; }
.fused { fill: var(--good); } .unfused { fill: var(--bad); }
.parts i:nth-child(2) { opacity: .55; } .parts i:nth-child(n+3) { opacity: .3; }
"""


def report_page(report: DeployReport, title: str = "", benchmark: BenchmarkReport | None = None) -> str:
    """Make the page.

    Args:
        report: of a deploy.
        title: what was deployed, for the heading.
        benchmark: times of calls; None leaves them out.
    """
    sections = [
        _section("Phases", _phases(report.seconds)),
        "" if benchmark is None else _section("Time of a call", _times(benchmark)),
        _section("What was tried", _tried(report.tried)),
        *(_section(parity.subject, _comparison(parity)) for parity in report.parity),
        _section("What runs where", _placement(report.parts)),
        _section("Precision", _precision(report)),
        _section("Memory", _memory(report)),
        _section("Findings", _findings(report.findings)),
        _section("Notes", _list(report.notes)),
    ]
    name = escape(title or "Deployed model")
    memory = f" · {report.memory_bytes / 2**20:.0f} MiB working memory" if report.memory_bytes else ""
    verdict = report.verdict
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: {verdict}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        f'<p><strong class="{_class_of(verdict)}">{verdict}</strong> · {escape(report.precision)}{memory} · '
        f'<span class="soft">torch2engine {escape(__version__)}</span></p>\n' + "".join(sections) + "</body>\n</html>\n"
    )


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}</section>\n" if body else ""


def _class_of(verdict: str) -> str:
    return {"passed": "passed", "failed": "failed"}.get(verdict, "weak")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls alone on a narrow screen; the cells are HTML."""
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{first}</tr>\n{body}</table></div>\n'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _phases(phases: Mapping[str, float]) -> str:
    """Each phase with its seconds, as bars of one scale."""
    longest = max(phases.values(), default=0.0)
    rows = [
        (
            _cell(phase),
            _cell(f"{took:.2f} s"),
            f'<td><div class="track"><i style="width:{100 * took / (longest or 1):.1f}%"></i></div></td>',
        )
        for phase, took in phases.items()
    ]
    return _table(("phase", "time", ""), rows) if rows else ""


def _comparison(parity: ParityReport) -> str:
    """The parity table. A bar shows the error on a scale of powers of ten, and a mark what is allowed."""
    rows = [
        (
            _cell(row.case or "-"),
            _cell(row.name),
            _cell(f"{row.dtype}[{', '.join(map(str, row.shape))}]", "soft"),
            _cell(_number(row.rel_l2)),
            f"<td>{_scale(row)}</td>",
            f"<td>{_histogram(row.error_decades)}</td>",
            _cell(_number(row.allowed)),
            _cell(_number(row.sensitivity)),
            _cell(_number(row.max_abs)),
            _cell(*_verdict(row)),
        )
        for row in parity.rows
    ]
    head = ("case", "output", "tensor", "error", "", "elements", "allowed", "sensitivity", "largest", "verdict")
    smallest = f"1e{ERROR_DECADES[0]}"
    scale = f"Error: ‖candidate − reference‖ / ‖reference‖, drawn from {smallest} to 1; the mark is what is allowed."
    elements = f"Elements: how many are off by less than {smallest} of the output's size (first bar) to 1 and more."
    return f'<p class="soft">{scale}<br>{elements}</p>\n' + _table(head, rows) + _list(parity.notes)


def _histogram(counts: Sequence[int]) -> str:
    """Columns, one for each power of ten of the error; the tallest has the full height."""
    edges = [f"1e{power}" for power in ERROR_DECADES]
    ranges = [f"below {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"{edges[-1]} and more"]
    tallest = max(counts, default=0) or 1
    columns = "".join(
        f'<i style="height:{100 * count / tallest:.1f}%" title="{name}: {count:,}"></i>'
        for name, count in zip(ranges, counts, strict=False)
    )
    return f'<div class="columns">{columns}</div>' if columns else ""


def _times(benchmark: BenchmarkReport) -> str:
    """The time of each candidate's call, and how much it does in a second, by case."""
    slowest = max((row.bottleneck_us for row in benchmark.rows), default=0.0) or 1.0
    rows = [
        (
            _cell(row.case),
            _cell(row.candidate),
            _cell(f"{row.bottleneck_us:,.1f} µs"),
            f'<td><div class="track"><i style="width:{100 * row.bottleneck_us / slowest:.1f}%"></i></div></td>',
            _cell(f"{_slow_us(row):,.1f} µs", "soft"),
            *map(_cell, _rates(row)),
        )
        for row in benchmark.rows
    ]
    text = (
        f"Median and 95th percentile on {benchmark.subject}, of the host or the device, whichever takes longer. "
        "Items: the size of the first axis, which is the batch of most models."
    )
    head = ("case", "candidate", "median", "", "95 %", "calls/s", "items/s")
    return f'<p class="soft">{escape(text)}</p>\n' + _table(head, rows)


def _tried(tried: Sequence[TriedCandidate]) -> str:
    """The ways to run the model that were timed beside each other, and which was chosen."""
    if not tried:
        return ""
    head, *rows = tried_rows(tried)
    kinds = ["passed" if one.is_chosen else "" for one in tried]
    cells = [(*map(_cell, row[:-1]), _cell(row[-1], f"wide {kind}")) for row, kind in zip(rows, kinds, strict=True)]
    return _table(head, cells)


def _slow_us(row: BenchmarkRow) -> float:
    return max(row.timing.host_p95_us, row.timing.device_p95_us or 0.0)


def _rates(row: BenchmarkRow) -> tuple[str, str]:
    """How many calls there are in a second, and how many items; "-" for a model without axes."""
    calls = 1e6 / (row.bottleneck_us or 1.0)
    batch = next(iter(row.sizes.values()), None)
    return f"{calls:,.0f}", "-" if batch is None else f"{calls * batch:,.0f}"


def _verdict(row: OutputParity) -> tuple[str, str]:
    if not row.passed:
        return f"FAILED: {row.reason}", "wide failed"
    return (f"weak: {row.weakness}", "wide weak") if row.weakness else ("passed", "passed")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _share(value: float) -> float:
    """Where a relative error lies on the scale, between 0 and 1."""
    low = ERROR_DECADES[0]
    high = ERROR_DECADES[-1]
    return 0.0 if not value > 0 else min(1.0, max(0.0, (math.log10(value) - low) / (high - low)))


def _scale(row: OutputParity) -> str:
    mark = f'<b style="left:{100 * _share(row.allowed):.1f}%"></b>' if row.allowed > 0 else ""
    return f'<div class="track"><i style="width:{100 * _share(row.rel_l2):.1f}%"></i>{mark}</div>'


def _precision(report: DeployReport) -> str:
    """How the graph was lowered, and what the engine computes each module in."""
    text = f"<pre class='scroll'>{escape(str(report.lowering))}</pre>\n" if report.lowering is not None else ""
    if report.computed is None:
        return text
    drawing = icicle(report.computed)
    words = "Each box is a torch module, as wide as its share of the multiply-adds; a line below it marks attention."
    explained = f'<p class="soft">{words}</p>\n{drawing}' if drawing else ""
    sentences = filter(None, [report.computed.summary(), report.computed.attention_summary()])
    return text + _list(tuple(sentences)) + explained + _modules(report.computed)


def _placement(parts: Sequence[GraphPartRecord]) -> str:
    """One sentence for a whole engine; else the parts as a strip and as a table."""
    if len(parts) == 1 and parts[0].runs_in != "PyTorch":
        return f"<p>{escape(parts[0].runs_in)} runs the whole model.</p>\n"
    rows = [
        (
            _cell(str(number)),
            _cell(part.runs_in),
            _cell(str(part.operators)),
            _cell(part.source, "soft"),
            _cell(named_modules(part.modules) if part.modules else "-", "wide"),
            _cell(part.reason or "-", "wide"),
        )
        for number, part in enumerate(parts)
    ]
    head = ("part", "runs in", "operators", "lines", "modules", "reason")
    return placement_strip(parts) + _table(head, rows) if rows else ""


def _memory(report: DeployReport) -> str:
    """The sizes of the model and of what an engine works in."""
    is_engine = report.memory_bytes > 0
    model = "plan, with weights and kernels" if is_engine else "ONNX model, with weights"
    sizes = [(model, report.model_bytes), ("working memory of the execution contexts", report.memory_bytes)]
    if not report.model_bytes:
        return ""
    items = [f"{name}: {size / 2**20:,.1f} MiB" for name, size in sizes if size]
    return memory_bar(sizes) + _list(items)


def _modules(computed: PrecisionReport) -> str:
    """Multiply-adds of each module by precision, the largest modules first."""
    sums: dict[str, dict[str, int]] = {}
    for node in computed.products:
        by_precision = sums.setdefault(node.module or "(model)", {})
        by_precision[node.computed_in] = by_precision.get(node.computed_in, 0) + node.multiply_adds
    ordered = sorted(sums.items(), key=lambda item: -sum(item[1].values()))
    counts = computed.layers_of_modules  # without an engine there are none
    most = max((sum(parts.values()) for parts in sums.values()), default=0) or 1
    rows = [
        (
            _cell(module),
            _cell(", ".join(f"{count:,} in {precision}" for precision, count in parts.items())),
            '<td><div class="parts">'
            + "".join(
                f'<i style="width:{100 * count / most:.1f}%" title="{escape(precision)}"></i>'
                for precision, count in parts.items()
            )
            + "</div></td>",
            _cell(", ".join(f"{count} in {name}" for name, count in counts.get(module, {}).items()) or "-", "soft"),
        )
        for module, parts in ordered[:_SHOWN_MODULES]
    ]
    left = len(ordered) - _SHOWN_MODULES
    more = f'<p class="soft">and {left} smaller modules</p>\n' if left > 0 else ""
    return _table(("module", "multiply-adds", "", "layers"), rows) + more if rows else ""


def _findings(findings: Sequence[Finding]) -> str:
    """Each with what was measured, why it matters and what to try."""
    items = "".join(
        f"<dt>{escape(one.name)}</dt>\n<dd>{escape(one.measured)}.<br>"
        f'<span class="soft">{escape(one.why)}.</span><br>Try: {escape(one.suggestion)}</dd>\n'
        for one in findings
    )
    return f"<dl>\n{items}</dl>\n" if items else ""


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    return f"<ul>\n{items}</ul>\n" if items else ""

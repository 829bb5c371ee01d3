"""Values of a report → drawings for its page: inline SVG that follows the page's width and colours.

Enters: precisions, parts and sizes. Leaves: HTML text. Separate from `report_page`, which has the page's order, words
and colours, because a drawing computes places and widths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from torch2engine.core.precision_report import AttentionOutcome, PrecisionReport
from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.deployed.explanation import GraphPartRecord

__all__ = ["icicle", "memory_bar", "placement_strip"]

_ROW = 24  # pixels, of one depth of modules
_STRIP = 20
_LEAST_PERCENT = 0.15  # narrower modules are left out
_MOST_ROWS = 8
_ROOT = "(model)"
_WITHOUT_SIZES = 1  # of every module, where no multiply-adds are known


@dataclass
class _Branch:
    """A torch module with the arithmetic in it and in the modules inside it."""

    name: str
    path: str = ""
    precisions: dict[str, int] = field(default_factory=dict[str, int])
    attention: list[AttentionOutcome] = field(default_factory=list[AttentionOutcome])
    inside: dict[str, _Branch] = field(default_factory=dict[str, "_Branch"])

    @property
    def size(self) -> int:
        """Multiply-adds."""
        return sum(self.precisions.values())


def icicle(report: PrecisionReport) -> str:
    """Draw modules inside modules, as wide as their multiply-adds, coloured by precision, with marks for attention.

    Args:
        report: of an engine or of a graph.

    Returns:
        the drawing with a legend; "" for a model without products.
    """
    root = _tree(report)
    if not root.size:
        return ""
    boxes = list(_boxes(root, 0.0, 0, root.size))
    height = _ROW * (1 + max(row for row, _ in boxes))
    drawn = "".join(box for _, box in boxes)
    label = f"Torch modules, as wide as their multiply-adds: {report.summary()}"
    return (
        f'<svg class="drawing" role="img" aria-label="{escape(label)}" width="100%" height="{height}">{drawn}</svg>\n'
        f'<p class="legend">{_legend(report)}</p>\n'
    )


def placement_strip(parts: Sequence[GraphPartRecord]) -> str:
    """Draw the parts of a model one after another, as wide as they have operators; engines and PyTorch differ.

    Args:
        parts: in the order in which they run.
    """
    total = sum(part.operators for part in parts) or 1
    drawn: list[str] = []
    x = 0.0
    for number, part in enumerate(parts):
        width = 100 * part.operators / total
        kind = "in-pytorch" if part.runs_in == "PyTorch" else "in-engine"
        title = f"{number}: {part.runs_in}, {part.operators} operators"
        drawn.append(
            _box(x, 0, width, _STRIP, title, f'<rect class="{kind}" width="100%" height="100%"/>', part.runs_in)
        )
        x += width
    label = ", ".join(f"{part.runs_in} {part.operators}" for part in parts)
    return _strip(f"Operators of each part: {label}", drawn)


def memory_bar(sizes: Sequence[tuple[str, int]]) -> str:
    """Draw sizes in memory side by side.

    Args:
        sizes: (name, bytes); sizes of 0 are left out.
    """
    known = [(name, size) for name, size in sizes if size > 0]
    total = sum(size for _, size in known) or 1
    drawn: list[str] = []
    x = 0.0
    for number, (name, size) in enumerate(known):
        width = 100 * size / total
        text = f"{name}: {size / 2**20:,.1f} MiB"
        drawn.append(_box(x, 0, width, _STRIP, text, f'<rect class="size-{number}" width="100%" height="100%"/>', text))
        x += width
    return _strip(", ".join(f"{name} {size:,} bytes" for name, size in known), drawn)


def _tree(report: PrecisionReport) -> _Branch:
    """Sum up the multiply-adds of modules inside modules; each product counts 1 where no sizes are known."""
    has_sizes = any(node.multiply_adds for node in report.products)
    root = _Branch(_ROOT)
    for node in report.products:
        size = node.multiply_adds if has_sizes else _WITHOUT_SIZES
        for branch in _way_to(root, node.module):
            branch.precisions[node.computed_in] = branch.precisions.get(node.computed_in, 0) + size
    for outcome in report.attention:
        *_, branch = _way_to(root, outcome.module)
        branch.attention.append(outcome)
    return root


def _way_to(root: _Branch, path: str) -> Iterator[_Branch]:
    """The modules from the model to the one with this path; they are made where they are missing."""
    branch = root
    yield branch
    for name in path.split(".") if path else ():
        below = f"{branch.path}.{name}" if branch.path else name
        branch = branch.inside.setdefault(name, _Branch(name, below))
        yield branch


def _boxes(branch: _Branch, x: float, row: int, total: int) -> Iterator[tuple[int, str]]:
    """Draw a module, and those inside it one row below: pairs of row and box."""
    name = branch.name
    while len(branch.inside) == 1 and not branch.attention and row:  # "encoder" with nothing but "layer" is one box
        (only,) = branch.inside.values()
        if only.size != branch.size:
            break
        branch = only
        name = f"{name}.{only.name}"
    width = 100 * branch.size / total
    if width < _LEAST_PERCENT or row >= _MOST_ROWS:
        return
    yield row, _box(x, row * _ROW, width, _ROW - 2, _title(branch), _content(branch), name)
    for inner in branch.inside.values():
        yield from _boxes(inner, x, row + 1, total)
        x += 100 * inner.size / total


def _title(branch: _Branch) -> str:
    """What the pointer shows: path, multiply-adds by precision, attention."""
    sizes = ", ".join(f"{size:,} in {precision}" for precision, size in branch.precisions.items())
    states = [
        f"attention {_STATES[one.is_fused][1]}{': ' if one.reason else ''}{one.reason}" for one in branch.attention
    ]
    return "; ".join([f"{branch.path or _ROOT}: {sizes}", *states])


# is_fused -> class of the mark, words
_STATES = {True: ("fused", "fused"), False: ("unfused", "not fused"), None: ("open", "without an engine")}


def _content(branch: _Branch) -> str:
    """A rectangle for each precision, and a line below it for attention."""
    rectangles: list[str] = []
    x = 0.0
    for precision, size in branch.precisions.items():
        share = 100 * size / (branch.size or 1)
        rectangles.append(f'<rect class="{_class_of(precision)}" x="{x:.2f}%" width="{share:.2f}%" height="100%"/>')
        x += share
    for kind in dict.fromkeys(_STATES[one.is_fused][0] for one in branch.attention):
        rectangles.append(f'<rect class="{kind}" y="{_ROW - 6}" width="100%" height="4"/>')
    return "".join(rectangles)


def _class_of(precision: str) -> str:
    """The class that gives a precision its colour, by its place in the table of precisions."""
    places = {name: place for place, name in enumerate(PRECISION_TYPES)}
    return f"type-{places[precision]}" if precision in places else "type-other"


def _legend(report: PrecisionReport) -> str:
    entries = [
        (_class_of(precision), f"{precision} {100 * report.share(precision):.1f} %")
        for precision in dict.fromkeys(node.computed_in for node in report.products)
    ]
    states = [_STATES[one.is_fused] for one in report.attention]
    entries += [(kind, f"{states.count((kind, words))} attention {words}") for kind, words in dict.fromkeys(states)]
    return " ".join(
        f'<span><svg width="12" height="12"><rect class="{kind}" width="12" height="12"/></svg> {escape(text)}</span>'
        for kind, text in entries
    )


def _box(x: float, y: float, width: float, height: float, title: str, content: str, label: str) -> str:
    """A box with its text, which is cut off where the box ends; x and width are percentages."""
    return (
        f'<svg x="{x:.3f}%" y="{y}" width="{width:.3f}%" height="{height}"><title>{escape(title)}</title>{content}'
        f'<rect class="edge" width="100%" height="100%"/><text x="4" y="15">{escape(label)}</text></svg>'
    )


def _strip(label: str, boxes: Iterable[str]) -> str:
    return (
        f'<svg class="drawing" role="img" aria-label="{escape(label)}" width="100%" height="{_STRIP}">'
        f"{''.join(boxes)}</svg>\n"
    )

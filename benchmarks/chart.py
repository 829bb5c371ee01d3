"""The chart of speed, made from the evidence: `python -m benchmarks.chart`, or with `--check`.

Enters: `models.json`. Leaves: an SVG with the GPU time of a call beside other ways to run the model. A room of its own
because a picture has other rules than a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.evidence import REPOSITORY
from benchmarks.table import TITLES, origin_of, read_evidence

__all__ = ["draw", "main"]

CANDIDATES = {
    "t2e_default": ("torch2engine", "#2563eb"),
    "compile_reduce_overhead": ("torch.compile, reduce-overhead", "#d97706"),
    "polygraphy": ("Polygraphy", "#7c3aed"),
    "eager": ("PyTorch eager", "#9ca3af"),
}
GROUPS = [(model, batch) for model in ("resnet50", "vit_b_16", "bert") for batch in (1, 8, 32)]

WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 760, 210, 70, 64, 13, 14
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1f2937}.small{font-size:11px}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}}"
)


def draw(figures: Mapping[str, float], origin: str) -> str:
    """The chart as SVG.

    Args:
        figures: of models.json.
        origin: what it was measured with.
    """
    times = {
        (model, batch): {
            name: figures[figure] / 1000
            for name in CANDIDATES
            if (figure := f"{model}.b{batch}.{name}.device_us") in figures
        }
        for model, batch in GROUPS
    }
    longest = max(time for group in times.values() for time in group.values())
    scale = (WIDTH - LEFT - RIGHT) / longest
    body: list[str] = []
    y = TOP
    for (model, batch), group in times.items():
        middle = y + BAR * len(group) / 2 + 4
        body.append(f'<text x="{LEFT - 10}" y="{middle:.0f}" text-anchor="end">{TITLES[model]}, batch {batch}</text>')
        for name, time in group.items():
            length = max(1.0, time * scale)
            colour = CANDIDATES[name][1]
            body.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            body.append(f'<text class="small" x="{LEFT + length + 5:.1f}" y="{y + BAR - 3}">{time:.2f} ms</text>')
            y += BAR
        y += GAP
    legend: list[str] = []
    x = 10
    for title, colour in CANDIDATES.values():
        legend.append(f'<rect x="{x}" y="34" width="11" height="11" fill="{colour}"/>')
        legend.append(f'<text class="small" x="{x + 16}" y="44">{title}</text>')
        x += 40 + 7 * len(title)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" role="img">',
            f"<title>GPU time of a call, half precision ({origin})</title>",
            f"<style>{_STYLE}</style>",
            '<text x="10" y="20">GPU time of a call, half precision; shorter is better</text>',
            *legend,
            *body,
            f'<text class="small" x="10" y="{y + 6}">{origin}</text>',
            "</svg>",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the chart shows anything else")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--chart", type=Path, default=REPOSITORY / "docs" / "speed.svg")
    options = parser.parse_args()
    evidence = read_evidence(options.results / "models.json")
    if evidence is None:
        sys.exit("there is no models.json, from which the chart is made: run `make bench`")
    made = draw(evidence["figures"], origin_of(evidence))
    if not options.check:
        options.chart.write_text(made, encoding="utf-8")
    elif not options.chart.exists() or options.chart.read_text(encoding="utf-8") != made:
        sys.exit(f"{options.chart.name} does not show what the evidence says: run `python -m benchmarks.chart`")


if __name__ == "__main__":
    main()

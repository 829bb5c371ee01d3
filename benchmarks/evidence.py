"""Figures of a run → one JSON file: commit, GPU, versions, figures, and what else a reader needs to judge them.

Enters: figures by dotted name. Leaves: `NAME.json` in the one form that the GPU suite and every benchmark share, and a
check of that form. Apart because evidence is worth something only if nobody writes it in a way of his own.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch2engine as t2e
from torch2engine.core.errors import InstallationError
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import list_gpus

__all__ = ["FIELDS", "REPOSITORY", "Evidence", "commit", "complaints", "rounded"]

REPOSITORY = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "torchvision",
    "timm",
    "transformers",
    "triton",
    "polygraphy",
    "pycuda",
)
SCHEMA = 2
WHOLE_PACKAGE = ("torch2engine",)
FIELDS: dict[str, type] = {
    "schema": int,
    "name": str,
    "commit": str,
    "clean": bool,
    "covers": list,
    "gpu": str,
    "gpu_count": int,
    "driver": str,
    "versions": dict,
    "started": str,
    "seconds": float,
    "figures": dict,
    "samples": dict,
    "tests": list,
}


def rounded(value: float) -> float:
    """A figure to four significant digits; whole numbers as they are.

    Raises:
        ValueError: it is not finite, and so no figure.
    """
    if not math.isfinite(value):
        raise ValueError(f"a figure must be finite, this is {value}")
    return value if isinstance(value, int) else float(f"{value:.4g}")


def commit() -> tuple[str, bool]:
    """The tree's commit and whether it was clean: from git, or from the stamp of a copy without git."""
    stamp = REPOSITORY / ".gpu" / "COMMIT"
    if stamp.exists():
        found, state = stamp.read_text().split()
        return found, state == "clean"
    git = ["git", "-C", str(REPOSITORY)]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return found, not status.strip()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        rt = find_tensorrt()
    except InstallationError:
        pass
    else:
        found[rt.name] = rt.version
    return {**found, "torch2engine": t2e.__version__}


class Evidence:
    """Collects a run's figures; the clock starts when it is made.

    Args:
        covers: folders and files, relative to the repository, that the figures depend on. The evidence speaks for a
            tree as long as none of them has changed since its commit.
        draft: a file for `write_draft`; None for none.

    Attributes:
        figures: dotted name -> number.
        samples: whatever else a reader may want to know: settings, counts, why something is missing.
        tests: {"id", "outcome", "seconds"} of every test, for a test suite.
    """

    def __init__(self, covers: Sequence[str] = WHOLE_PACKAGE, draft: Path | None = None) -> None:
        missing = [name for name in covers if not (REPOSITORY / name).exists()]
        if missing or not covers:
            raise ValueError(f"covers: got {missing or 'nothing'}; expected folders and files of the repository")
        self._covers = sorted(covers)
        self._started = time.time()
        self._draft = draft
        self.figures: dict[str, float] = {}
        self.samples: dict[str, Any] = {}
        self.tests: list[dict[str, Any]] = []

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.time() - self._started

    def figure(self, name: str, value: float) -> None:
        """Record a figure, to four significant digits.

        Raises:
            ValueError: it is not finite.
        """
        self.figures[name] = rounded(value)

    def to_json(self, name: str) -> dict[str, Any]:
        """The evidence as JSON values, under the file's name."""
        gpus = list_gpus()
        found, clean = commit()
        return {
            "schema": SCHEMA,
            "name": name,
            "commit": found,
            "clean": clean,
            "covers": self._covers,
            "gpu": gpus[0].name if gpus else "",
            "gpu_count": len(gpus),
            "driver": gpus[0].driver if gpus else "",
            "versions": _versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "seconds": round(self.elapsed_s, 1),
            "figures": dict(sorted(self.figures.items())),
            "samples": self.samples,
            "tests": sorted(self.tests, key=lambda test: test["id"]),
        }

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; its stem is the run's name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.to_json(path.stem), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def write_draft(self) -> None:
        """Write what there is so far, marked as incomplete; a run that is cut leaves it, a complete one removes it."""
        if self._draft is not None:
            self.samples["failed"] = "incomplete: the run was cut"
            self.write(self._draft)
            del self.samples["failed"]


def complaints(evidence: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with the form of an evidence file's content; nothing, if it is right.

    Files of schema 1 are older than `covers`: they speak for the whole package.
    """
    fields = {name: kind for name, kind in FIELDS.items() if name != "covers" or evidence.get("schema") != 1}
    for name in sorted(set(evidence) ^ set(fields)):
        yield f"{name}: {'missing' if name in fields else 'unknown'}"
    for name, kind in fields.items():
        value = evidence.get(name)
        if name in evidence and (type(value) not in ((int, float) if kind is float else (kind,))):
            yield f"{name}: {value!r} is no {kind.__name__}"
    if evidence.get("schema") not in (1, SCHEMA):
        yield f"schema: {evidence.get('schema')!r}, not {SCHEMA}"
    if not re.fullmatch(r"[0-9a-f]{40}", str(evidence.get("commit"))):
        yield f"commit: {evidence.get('commit')!r} is no commit"
    figures = evidence.get("figures")
    for name, value in figures.items() if isinstance(figures, dict) else ():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"figures: {name} is {value!r}"

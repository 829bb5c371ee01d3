"""Thirty models of the zoo under torch.compile(backend="torch2engine"), each called with twenty batch sizes.

    python -m benchmarks.compile_backend --workers 16
    python -m benchmarks.compile_backend --device cpu --workers 2 --only 'resnet18|bert'

Enters: a GPU, or the CPU, where ONNX Runtime is in the engines' place; timm, torchvision and transformers. Leaves:
compile_backend.json: how many models answer like PyTorch at every size, and how often torch.compile and the builder
worked for it. The file is written anew after each model. Separate from `zoo_sweep`, which deploys models itself.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._script import options, require_gpu
from benchmarks.compile_trial import BATCH_SIZES, compile_row_of
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.zoo_processes import METHODS
from benchmarks.zoo_sweep import PRELOADED, Study, sweep
from tests.zoo.entry import ZooEntry
from tests.zoo.models import EVERY
from torch2engine.core.errors import InstallationError

__all__ = ["MODELS", "STUDY", "figures_of"]

# Of each kind those that most people use, and whose engines are made in seconds: a run has three of each.
MODELS = (
    *("resnet18", "densenet121", "fasternet_t0", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("beit_base_patch16_224", "eva02_tiny_patch14_224", "mixer_s32_224", "swin_tiny_patch4_window7_224"),
    *("dinov2", "videomae", "yolos", "unet", "dit"),
    *("bert", "roberta", "distilbert", "electra", "albert", "deberta_v2", "layoutlm"),
    *("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "t5", "bart", "whisper", "ast"),
)
COVERS = (
    "torch2engine",
    "tests/zoo",
    *(f"benchmarks/{name}.py" for name in ("compile_backend", "compile_trial", "zoo_trial")),
)
RESULTS = REPOSITORY / "benchmarks" / "results"
HISTORIES = tuple(RESULTS / f"{name}.json" for name in ("zoo_gpu", "compile_backend"))
BACKENDS = {"cpu": "cpu", "cuda": "gpu"}
LIMIT_S = 300.0
RIGHT = ("passed", "recompiled")


def figures_of(rows: Mapping[str, Mapping[str, Any]], waiting: int = 0) -> dict[str, float]:
    """The figures of a run.

    Args:
        rows: {model: its row}. Those that the installed libraries lack count as absent, and in nothing else.
        waiting: models that were not tried yet.
    """
    outcomes = Counter(row["outcome"] for row in rows.values())
    models = outcomes.total() - outcomes["absent"]
    counts = {name: row["counts"] for name, row in rows.items() if "counts" in row}
    figures: dict[str, float] = {
        "models": models,
        "equal_share": sum(outcomes[outcome] for outcome in RIGHT) / max(models, 1),
        "batch_sizes": len(BATCH_SIZES),
        "worst_recompiles": _worst(counts, "recompiles"),
        "worst_recompiles_beyond_eager": max(
            (one["recompiles"] - one["eager_recompiles"] for one in counts.values()), default=0
        ),
        "worst_engines": _worst(counts, "engines"),
        "worst_late_compilations": _worst(counts, "late"),
        "without_engine": sum(not one["parts_in_engines"] for one in counts.values()),
        "timeouts": outcomes["timeout"],
        "absent": outcomes["absent"],
        "waiting": waiting,
    }
    for name, one in counts.items():
        figures |= {f"{name}.{figure}": one[figure] for figure in ("recompiles", "engines", "engine_share")}
    return {f"compile.{name}": value for name, value in figures.items()}


def _worst(counts: Mapping[str, Mapping[str, Any]], name: str) -> int:
    return max((one[name] for one in counts.values()), default=0)


STUDY = Study(compile_row_of, figures_of)


def chosen_entries(pattern: str) -> dict[str, ZooEntry]:
    """The models whose name fits a regular expression."""
    return {name: EVERY[name] for name in MODELS if re.search(pattern, name)}


def failures(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """What a run has to answer for: a line for each model that was neither passed nor absent."""
    return [
        f"{name}: {row['outcome']} {row['error']} {row['message']}"
        for name, row in sorted(rows.items())
        if row["outcome"] not in ("passed", "absent")
    ]


def main() -> None:
    """Run as a script; the exit status is 1 if a model failed."""
    parser = options(__doc__)
    parser.add_argument("--device", choices=tuple(BACKENDS), default="cuda", help="a GPU, or ONNX Runtime on the CPU")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="models at a time")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one model")
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--start", choices=METHODS, help="how processes start")
    parser.add_argument("--history", type=Path, nargs="*", default=HISTORIES, help="earlier runs: the longest go first")
    chosen = parser.parse_args()
    chosen.backend = BACKENDS[chosen.device]
    chosen.models = "tests.zoo.every_model"
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes
    try:
        if chosen.device == "cuda":
            require_gpu()
    except InstallationError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    evidence = Evidence(COVERS)
    evidence.samples["options"] = {key: str(getattr(chosen, key)) for key in ("device", "workers", "limit", "only")}
    evidence.samples["batch_sizes"] = list(BATCH_SIZES)
    rows = sweep(chosen_entries(chosen.only), evidence, chosen.out / "compile_backend.json", chosen, PRELOADED, STUDY)
    for figure, value in sorted(evidence.figures.items()):
        print(f"{figure} {value:g}")
    sys.exit("\n".join(failures(rows)) or None)


if __name__ == "__main__":
    main()

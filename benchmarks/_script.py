"""What every benchmark script does around its work: options, the GPU, the evidence file, the exit status.

Enters: a name and the function that measures. Leaves: `NAME.json` in the folder of `--out`, or a message and an exit
status other than 0. A run that fails leaves `NAME.failed.json` with what it had, and no evidence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.evidence import Evidence
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InstallationError
from torch2engine.deployed.benchmark import Timing
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.trt import gpu

__all__ = ["home", "options", "parity", "record", "run"]


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--out`."""
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the JSON")
    return parser


def home() -> torch.device:
    """Where models and inputs are made: the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_gpu() -> None:
    """Make sure that a GPU is there, and that PyTorch can use it; its float32 convolutions are float32 from here on.

    Raises:
        InstallationError: what is missing.
    """
    gpu.require_gpu()
    if not torch.cuda.is_available():
        raise InstallationError(
            "PyTorch",
            got=f"torch {torch.__version__} sees no CUDA device",
            allowed="benchmarks run on a GPU",
            fix="install a CUDA build of torch",
        )
    torch.backends.cudnn.allow_tf32 = False


def run(
    name: str,
    body: Callable[[Evidence, argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    covers: Sequence[str],
    needs_gpu: bool = True,
    script: str = "",
) -> None:
    """Measure and write the evidence.

    Args:
        name: of the evidence file.
        body: measures, and records what it finds.
        parser: from `options`.
        covers: folders of the package that the figures depend on; the benchmark's own file is added.
        needs_gpu: False for what is measured on a CPU.
        script: the benchmark's own file, where it is not called as its evidence.

    Raises:
        SystemExit: no GPU; the message says what is missing.
    """
    chosen = parser.parse_args()
    try:
        if needs_gpu:
            require_gpu()
    except InstallationError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    failed = chosen.out / f"{name}.failed.json"
    failed.unlink(missing_ok=True)
    own = f"benchmarks/{script or name}.py"
    evidence = Evidence([*(f"torch2engine/{folder}" for folder in covers), own], draft=failed)
    evidence.samples["options"] = {key: _as_text(value) for key, value in vars(chosen).items() if key != "out"}
    try:
        with torch.no_grad():
            body(evidence, chosen)
    except BaseException as error:
        evidence.samples["failed"] = f"{type(error).__name__}: {error}"
        evidence.write(failed)
        raise
    evidence.write(chosen.out / f"{name}.json")
    failed.unlink(missing_ok=True)
    for figure, value in sorted(evidence.figures.items()):
        print(f"{figure} {value:g}")


def _as_text(value: object) -> str:
    """An option as the evidence tells it: of a path the name, since the folders above it are the machine's."""
    return value.name if isinstance(value, Path) else str(value)


def record(evidence: Evidence, prefix: str, timing: Timing) -> None:
    """Record a timing's figures under a dotted name."""
    evidence.figure(f"{prefix}.host_us", timing.host_us)
    evidence.figure(f"{prefix}.host_p95_us", timing.host_p95_us)
    if timing.device_us is not None and timing.device_p95_us is not None:
        evidence.figure(f"{prefix}.device_us", timing.device_us)
        evidence.figure(f"{prefix}.device_p95_us", timing.device_p95_us)


def parity(
    expected: torch.Tensor, answers: Mapping[str, torch.Tensor], precision: str, subject: str
) -> tuple[float, ParityReport]:
    """Hold answers against PyTorch's.

    Args:
        expected: PyTorch's answer.
        answers: who -> answer, of the same input.
        precision: whose default tolerance decides.
        subject: for the report.

    Returns:
        the largest relative L2 error, and the report, in which each row's case is the one who answered.

    Raises:
        ParityError: one is wrong.
    """
    bounds = Tolerance.default(precision)
    report = ParityReport((), subject, bounds)
    for who, answer in answers.items():
        report = report.add(compare({"output": expected}, {"output": answer}, bounds, case=who))
    report.raise_if_failed()
    return max(row.rel_l2 for row in report.rows), report

"""One step of `benchmarks.precision` in a process of its own: deploy a model in one precision, or time engines.

Enters: words on the command line. Leaves: JSON on the last line. Apart because deploying is the CPU's work, which
several processes share.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

import torch2engine as t2e
from benchmarks._worker import keep_to, parser
from benchmarks.zoo import FLOATS
from torch2engine.core.config import Tolerance
from torch2engine.deployed.benchmark import measure
from torch2engine.parity.compare import compare

__all__ = ["main"]

WARM_CALLS = 12
LOOSE = Tolerance(rel_l2=10.0, max_rel=1e6)
# Built and timed wherever they lead, with the error as a figure: fp8, which deploy may refuse by default, and TF32,
# in which TensorRT-RTX 1.6.1 answers ResNet-50 at batch 1 differently from call to call.
UNBOUNDED = ("fp8", "tf32")
WRONG = 0.5  # such an answer's time is of no interest


def _model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return FLOATS[name].make()


def deploy(name: str, precision: str, folder: Path) -> dict[str, Any]:
    """Deploy, save, and tell what came out."""
    entry, model = FLOATS[name], _model(name)
    tolerance = LOOSE if precision in UNBOUNDED else None
    try:
        module = t2e.deploy(model, entry.inputs(8), entry.axes(), precision=precision, tolerance=tolerance, cache=False)
    except (t2e.BuildError, t2e.ParityError, t2e.UnsupportedOperatorError) as error:
        return {"refused": f"{type(error).__name__}: {str(error)[:600]}", "told": ""}
    assert isinstance(module, t2e.TRTModule) and module.report is not None
    rel_l2 = max(row.rel_l2 for row in module.report.parity[-1].rows)
    if rel_l2 > WRONG:
        return {"refused": f"the engine is wrong: relative L2 error {rel_l2:.2g}", "told": ""}
    figures = {
        "rel_l2": rel_l2,
        "default_rel_l2": Tolerance.default(precision).rel_l2,
        "plan_mib": os.path.getsize(module.save(folder) / "model.plan") / 2**20,
        "deploy_s": sum(module.report.seconds.values()),
    }
    shares = t2e.precision_report(module)
    figures["mac_share"] = shares.share("fp32" if precision == "tf32" else precision)
    total = sum(shares.layers.values())
    figures["layer_share"] = shares.layers.get("fp32" if precision == "tf32" else precision, 0) / total
    notes = "".join(f"; {note}" for note in module.report.notes)
    seconds = ", ".join(f"{phase} {taken:.1f} s" for phase, taken in module.report.seconds.items())
    return {"figures": figures, "told": f"{shares.summary()}; {seconds}{notes}"}


def time(precisions: dict[str, list[str]], batches: list[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Time the engines of several models, one model after the other."""
    figures: dict[str, float] = {}
    failures: list[str] = []
    for name, words in precisions.items():
        try:
            found = _timed(name, words, batches, rounds, folder)
        except (AssertionError, t2e.Torch2EngineError) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
            continue
        figures |= {f"{name}.{figure}": value for figure, value in found.items()}
    return {"figures": figures, "failures": failures}


def _timed(name: str, precisions: list[str], batches: list[int], rounds: int, folder: Path) -> dict[str, float]:
    """Time engines, and PyTorch as it is, interleaved; each answers right before."""
    entry, model = FLOATS[name], _model(name)
    modules = {word: t2e.load(folder / f"{name}.{word}") for word in precisions}
    figures: dict[str, float] = {}
    for batch in batches:
        inputs = entry.inputs(batch)
        torch.cuda.synchronize()
        expected = model(**inputs)
        calls: dict[str, Any] = {"eager": functools.partial(model, **inputs)}
        for word, module in modules.items():
            calls[word] = functools.partial(module, **inputs)
            for _ in range(WARM_CALLS):
                calls[word]()
            answer = calls[word]()
            torch.cuda.synchronize()
            bounds = LOOSE if word in UNBOUNDED else Tolerance.default(word)
            (row,) = compare({"output": expected}, {"output": answer}, bounds, case=f"batch {batch}")
            assert row.passed, f"{name} in {word}: {row}"
            figures[f"{word}.b{batch}.rel_l2"] = row.rel_l2
        for word, timing in measure(calls, device="cuda", rounds=rounds).items():
            figures[f"{word}.b{batch}.host_us"] = timing.host_us
            assert timing.device_us is not None
            figures[f"{word}.b{batch}.device_us"] = timing.device_us
    return figures


def main() -> None:
    made = parser(__doc__)
    steps = made.add_subparsers(dest="step", required=True)
    one = steps.add_parser("deploy")
    for word in ("model", "precision"):
        one.add_argument(word)
    one.add_argument("folder", type=Path)
    one = steps.add_parser("time")
    one.add_argument("precisions", type=json.loads, help="JSON: model -> its precisions")
    one.add_argument("batches")
    one.add_argument("rounds", type=int)
    one.add_argument("folder", type=Path)
    options = made.parse_args()
    keep_to(options.cores)
    with torch.no_grad():
        if options.step == "deploy":
            answer = deploy(options.model, options.precision, options.folder)
        else:
            batches = [int(batch) for batch in options.batches.split(",")]
            answer = time(options.precisions, batches, options.rounds, options.folder)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

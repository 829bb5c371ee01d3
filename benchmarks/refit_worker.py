"""One step of `benchmarks.refit` in a process of its own: an engine that follows a model, or ways to do without it.

Enters: words on the command line. Leaves: JSON on the last line. Apart because several run at a time.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import torch2engine as t2e
from benchmarks._worker import keep_to, parser
from benchmarks.zoo import REFITTED
from torch2engine import lowering, trt
from torch2engine.capture import capture
from torch2engine.cases import cases
from torch2engine.export import export_onnx
from torch2engine.preserve import undisturbed

__all__ = ["main"]

REFITTABLE = t2e.BuildConfig(refittable=True)
LEARNING_RATE = 1e-4  # enough to change every weight, too little to spoil random ones


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return REFITTED[name].make()


def _deployed(name: str, model: nn.Module, config: t2e.BuildConfig) -> tuple[t2e.TRTModule, float]:
    """The engine in half precision, and the seconds that it took."""
    entry, start = REFITTED[name], time.perf_counter()
    module = t2e.deploy(model, entry.inputs(2), entry.axes(), precision="fp16", config=config, cache=False)
    assert isinstance(module, t2e.TRTModule)
    return module, time.perf_counter() - start


def _train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    with torch.enable_grad():
        model(**REFITTED[name].inputs(8)).float().square().mean().backward()
    optimizer.step()
    model.eval()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def follow(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Train, refit after every step, and compare with the model; at the end with an engine that is built afresh.

    Leaves the refitted engine in `folder`.
    """
    model, entry = _model(name), REFITTED[name]
    module, first_s = _deployed(name, model, REFITTABLE)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    inputs = entry.inputs(2)
    before = module(**inputs)
    refits: list[float] = []
    calls: list[float] = []
    worst, first = 0.0, 0.0
    for step in range(steps):
        _train(name, model, optimizer)
        assert module.stale(), "nothing was learnt"
        torch.cuda.synchronize()
        done = module.refit()
        torch.cuda.synchronize()
        first = first or done.seconds  # it compares answers
        start = time.perf_counter()
        answer = module(**inputs)
        torch.cuda.synchronize()
        if step:
            refits.append(1e3 * done.seconds)
            calls.append(1e3 * (time.perf_counter() - start))
        worst = max(worst, _distance(answer, model(**inputs)))
    module.save(folder)
    fresh, _ = _deployed(name, model, REFITTABLE)
    apart = 0.0
    for batch in (1, 2, 4):
        unseen = entry.inputs(batch)
        apart = max(apart, _distance(module(**unseen), fresh(**unseen)))
    return {
        "refittable_deploy_s": first_s,
        "verified_refit_ms": 1e3 * first,
        "refit_ms": statistics.median(refits),
        "first_call_ms": statistics.median(calls),
        "learnt_rel_l2": _distance(module(**inputs), before),
        "rel_l2": worst,
        "refit_vs_rebuild_rel_l2": apart,
    }


def peers(name: str, folder: Path) -> dict[str, float]:
    """What else gives an engine the newest weights: a deploy from scratch, and TensorRT's refitter for ONNX files.

    Args:
        name: the model's.
        folder: the engine that `follow` left.
    """
    model, entry = _model(name), REFITTED[name]
    _, deploy_s = _deployed(name, model, t2e.BuildConfig())
    rt = trt.find()
    runtime = rt.api.Runtime(rt.logger)
    engine = runtime.deserialize_cuda_engine((folder / "model.plan").read_bytes())
    start = time.perf_counter()
    with undisturbed(model):
        captured = capture(model, entry.inputs(2), entry.axes())
        artifact = export_onnx(captured, refittable=True)  # for the names of the weights
        examples, _ = cases(captured)
    exported_s = time.perf_counter() - start
    low = lowering.lower(artifact, t2e.Precision("fp16"), examples, flavour=rt.name)
    lowered_s = time.perf_counter() - start
    refitter = rt.api.Refitter(engine, rt.logger)
    reader = rt.api.OnnxParserRefitter(refitter, rt.logger)
    assert reader.refit_from_file(str(low.artifact.onnx_path)), "the file does not fit the engine"
    assert refitter.refit_cuda_engine()
    return {
        "deploy_s": deploy_s,
        "reexport_s": exported_s,
        "reexport_lower_s": lowered_s,
        "reexport_lower_parser_refit_s": time.perf_counter() - start,
    }


def main() -> None:
    made = parser(__doc__)
    steps = made.add_subparsers(dest="step", required=True)
    one = steps.add_parser("follow")
    one.add_argument("model")
    one.add_argument("folder", type=Path)
    one.add_argument("steps", type=int)
    one = steps.add_parser("peers")
    one.add_argument("model")
    one.add_argument("folder", type=Path)
    options = made.parse_args()
    keep_to(options.cores)
    with torch.no_grad():
        if options.step == "follow":
            found = follow(options.model, options.folder, options.steps)
        else:
            found = peers(options.model, options.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

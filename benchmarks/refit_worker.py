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
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.precision import lower as lowering
from torch2engine.trt.bindings import find_tensorrt

__all__ = ["main"]

REFITTABLE = t2e.BuildConfig(refittable=True)
LEARNING_RATE = 1e-4  # enough to change every weight, too little to spoil random ones


def _model(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = REFITTED[name].make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # With a batch's own statistics a network of random weights multiplies every rounding error by hundreds.
            module.momentum = 1e-3
    return model


def _deployed(
    name: str,
    model: nn.Module,
    config: t2e.BuildConfig,
    cache: Path | None = None,
    key: str | None = None,
) -> tuple[t2e.TRTModule, float]:
    """The engine in half precision, and the seconds that it took."""
    entry, deploy = REFITTED[name], t2e.deploy  # which imports its room
    inputs, start = entry.inputs(2), time.perf_counter()
    module = deploy(
        model,
        inputs,
        entry.axes(),
        precision="fp16",
        config=config,
        cache=cache or False,
        cache_key=key,
    )
    assert isinstance(module, t2e.TRTModule)
    return module, time.perf_counter() - start


def _train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, target: torch.Tensor) -> None:
    """One step towards other answers, of the size that answers have: near zero an error would have nothing to be
    relative to."""
    model.train()
    optimizer.zero_grad()
    with torch.enable_grad():
        error = model(**REFITTED[name].inputs(8)).float() - target
        (error.square().mean() / target.square().mean()).backward()
    optimizer.step()
    model.eval()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def follow(name: str, folder: Path, steps: int) -> dict[str, float]:
    """Train, refit after every step, and compare with the model; at the end with an engine that is built afresh.

    Leaves the refitted engine and the model in `folder`, and the first engine in a cache beside it.
    """
    model = _model(name)
    module, first_s = _deployed(name, model, REFITTABLE, folder.with_suffix(".cache"), name)
    first = module.save(folder.with_suffix(".first"))
    before = module(**REFITTED[name].inputs(2))
    figures = _trained(name, model, module, steps)
    module.save(folder)
    torch.save(model.state_dict(), folder.with_suffix(".pt"))
    fresh, _ = _deployed(name, model, REFITTABLE)
    lowered = fresh._artifact.onnx_path
    assert lowered is not None, "deploy keeps it"
    parsed = _parsed(first, lowered)
    unseen = [REFITTED[name].inputs(batch) for batch in (1, 2, 4)]
    return {
        "refittable_deploy_s": first_s,
        **figures,
        "learnt_rel_l2": _distance(module(**unseen[1]), before),
        "refit_vs_rebuild_rel_l2": max(_distance(module(**inputs), fresh(**inputs)) for inputs in unseen),
        "refit_vs_parser_refit_rel_l2": max(_distance(module(**inputs), parsed(**inputs)) for inputs in unseen),
    }


def _parsed(folder: Path, onnx: Path) -> t2e.TRTModule:
    """The saved engine, refitted by TensorRT's own refitter of ONNX files."""
    module = t2e.load(folder)
    assert isinstance(module, t2e.TRTModule)
    session = module.bind()._backend.session
    assert session is not None
    rt = find_tensorrt()
    refitter = rt.api.Refitter(session.engine._engine, rt.logger)
    assert rt.api.OnnxParserRefitter(refitter, rt.logger).refit_from_file(str(onnx)), "the file does not fit the engine"
    assert refitter.refit_cuda_engine()
    return module


def _trained(name: str, model: nn.Module, module: t2e.TRTModule, steps: int) -> dict[str, float]:
    """Train with a refit after every step; its times, and the largest error of the answers."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    inputs = REFITTED[name].inputs(2)
    target = model(**inputs)[:1].roll(1, -1).float()
    refits: list[float] = []
    calls: list[float] = []
    worst, first = 0.0, 0.0
    for step in range(steps):
        _train(name, model, optimizer, target)
        assert module.stale(model), "nothing was learnt"
        torch.cuda.synchronize()
        done = module.refit(model)
        torch.cuda.synchronize()
        first = first or done.seconds  # it compares answers
        start = time.perf_counter()
        answer = module(**inputs)
        torch.cuda.synchronize()
        if step:
            refits.append(1e3 * done.seconds)
            calls.append(1e3 * (time.perf_counter() - start))
        worst = max(worst, _distance(answer, model(**inputs)))
    return {
        "verified_refit_ms": 1e3 * first,
        "refit_ms": statistics.median(refits),
        "first_call_ms": statistics.median(calls),
        "rel_l2": worst,
    }


def peers(name: str, folder: Path) -> dict[str, float]:
    """What else gives an engine the newest weights: a deploy from scratch, and TensorRT's refitter for ONNX files.

    Args:
        name: the model's.
        folder: the engine that `follow` left; the deploy leaves one in the cache beside it.
    """
    model, entry = _model(name), REFITTED[name]
    model.load_state_dict(torch.load(folder.with_suffix(".pt"), weights_only=True))
    _, deploy_s = _deployed(name, model, t2e.BuildConfig(), folder.with_suffix(".cache"))
    rt = find_tensorrt()
    runtime = rt.api.Runtime(rt.logger)
    engine = runtime.deserialize_cuda_engine((folder / "model.plan").read_bytes())
    start = time.perf_counter()
    with undisturbed(model):
        captured = capture_call(model, entry.inputs(2), entry.axes())
        artifact = export_onnx(captured, refittable=True)  # for the names of the weights
        examples, _ = make_parity_cases(captured)
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


def again(name: str, folder: Path, keyed: bool) -> dict[str, float]:
    """What a deploy takes whose engine is in the cache that `follow` and `peers` left, beyond imports.

    Args:
        name: the model's.
        folder: as for `peers`.
        keyed: of a model with other weights, to a refittable engine under a cache_key; else of the same model, and
            beyond the export.
    """
    model, entry = _model(name, seed=1), REFITTED[name]
    if not keyed:
        model.load_state_dict(torch.load(folder.with_suffix(".pt"), weights_only=True))
    find_tensorrt()
    model(**entry.inputs(2))  # as in training code, where it has answered before
    torch.cuda.synchronize()
    config = REFITTABLE if keyed else t2e.BuildConfig()
    module, seconds = _deployed(name, model, config, folder.with_suffix(".cache"), name if keyed else None)
    assert module.report is not None
    phases = module.report.seconds
    assert "recall" in phases and "build" not in phases, "the cache was not used"
    unseen = entry.inputs(3)
    far = _distance(module(**unseen), model(**unseen))
    kind = "keyed" if keyed else "cached"
    parts = {f"{kind}_{phase}_s": time_s for phase, time_s in phases.items()}
    assert ("export" in phases) is not keyed, "the key was not used"
    return {f"{kind}_deploy_s": seconds - phases.get("export", 0.0), f"{kind}_rel_l2": far, **parts}


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
    one = steps.add_parser("again")
    one.add_argument("model")
    one.add_argument("folder", type=Path)
    one.add_argument("--keyed", action="store_true")
    options = made.parse_args()
    keep_to(options.cores)
    with torch.no_grad():
        if options.step == "follow":
            found = follow(options.model, options.folder, options.steps)
        elif options.step == "again":
            found = again(options.model, options.folder, options.keyed)
        else:
            found = peers(options.model, options.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

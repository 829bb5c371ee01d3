"""What it costs to leave operators in PyTorch: a boundary of a part, and whole models in parts beside eager.

    python -m benchmarks.fallback --out DIR

Enters: a GPU. Leaves: fallback.json. `boundary_us` is the time of a model in parts, less that of its engines alone and
of its operators in PyTorch alone, for each part. Its operators are PyTorch's own, which the default configuration holds
in one CUDA graph with the engines, so that it may be below 0. `boundary_no_graphs_us` is the same without any CUDA
graph. `boundary_custom_us` is that of a model with a custom operator, which the default configuration calls between the
engines, and `boundary_custom_graphs_us` with `cuda_graphs=True`. `worst_ratio_to_eager` is over all models that
fallback="faster" does not refuse; the others stand in the samples, with the measured reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import Evidence
from torch2engine.deployed.timing import Timing, measure

__all__ = ["body", "main"]

COVERS = ("core", "trt", "artifact", "deployed", "fallback")
PARTS = 4
WIDTH, ROWS = 64, 32


@torch.library.custom_op("torch2engine_benchmark::pass_on", mutates_args=())
def pass_on(x: torch.Tensor) -> torch.Tensor:
    """An operator that no engine knows; it copies."""
    return x.clone()


@pass_on.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def block(width: int = WIDTH) -> nn.Module:
    """What is between two operators that no engine takes."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Tanh())


class Chain(nn.Module):
    """Parts of an engine, with an operator between them that no engine takes."""

    def __init__(
        self, parts: int, make: Callable[[], nn.Module], between: Callable[[torch.Tensor], torch.Tensor] = pass_on
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(make() for _ in range(parts))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = self.between(part(x))
        return x


class Finder(nn.Module):
    """Scores of rows, those above a threshold, and work on these: the end of a detector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block(width) for _ in range(4)))
        self.score = nn.Linear(width, 1)
        self.head = nn.Sequential(block(width), nn.Linear(width, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x)
        found = rows[self.score(rows)[:, 0] > 0]
        return self.head(found).sigmoid() * 2


class Backbone(nn.Module):
    """Convolutions, a factorisation that no engine takes, and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [3, channels, channels, channels]
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(sizes))
        )
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).mean((2, 3))
        return self.head(torch.linalg.qr(features.mT @ features).Q.abs())  # square, whatever the batch


def models(device: torch.device) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Models of which operators stay in PyTorch, each with an input."""
    on_cpu = device.type == "cpu"
    width, side = (32, 16) if on_cpu else (1024, 128)
    found: dict[str, tuple[nn.Module, torch.Tensor]] = {
        "chain": (Chain(PARTS, block), torch.rand(ROWS, WIDTH)),
        "finder": (Finder(width), torch.rand(64 if on_cpu else 4096, width)),
        "backbone": (Backbone(8 if on_cpu else 64), torch.rand(16, 3, side, side)),
    }
    return {name: (model.to(device).eval(), x.to(device)) for name, (model, x) in found.items()}


def deploy(model: nn.Module, x: torch.Tensor, **options: Any) -> Any:
    """Deploy for the input's device."""
    runtime = "onnxruntime" if x.device.type == "cpu" else "tensorrt"
    return t2e.deploy(model, x, runtime=runtime, progress=None, **options)


def microseconds(timing: Timing) -> float:
    """The time of a call where calls follow each other."""
    return max(timing.host_us, timing.device_us or 0.0)


def boundary(evidence: Evidence, device: torch.device, rounds: int) -> None:
    """Measure what a part costs beside its engine and the operators around it."""
    custom, x = models(device)["chain"]
    own = Chain(PARTS, block, torch.special.bessel_j0).to(device).eval()
    own.load_state_dict(custom.state_dict())
    plans: dict[str, tuple[nn.Module, dict[str, Any]]] = {"parts": (own, {}), "custom": (custom, {})}
    if device.type == "cuda":
        plans["no_graphs"] = own, {"runtime_config": t2e.RuntimeConfig(cuda_graphs=False)}
        plans["custom_graphs"] = custom, {"runtime_config": t2e.RuntimeConfig(cuda_graphs=True)}
    modules = {name: in_parts(model, x, options) for name, (model, options) in plans.items()}
    engines = [deploy(part, x) for part in custom.parts]  # type: ignore[union-attr]  # a ModuleList
    calls: dict[str, Callable[[], object]] = {name: partial(module, x) for name, module in modules.items()}
    calls |= {
        "eager": partial(own, x),
        "engines": lambda: [engine(x) for engine in engines],
        "operators": lambda: [own.between(x) for _ in range(PARTS)],
        "custom_operators": lambda: [custom.between(x) for _ in range(PARTS)],
    }
    timings = measure(calls, device=device, rounds=rounds)
    for name, timing in timings.items():
        _script.record(evidence, f"fallback.chain.{name}", timing)
    for name, (model, _) in plans.items():
        operators = "operators" if model is own else "custom_operators"
        rest = microseconds(timings["engines"]) + microseconds(timings[operators])
        cost = (microseconds(timings[name]) - rest) / PARTS
        evidence.figure("boundary_us" if name == "parts" else f"boundary_{name}_us", cost)


def in_parts(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> Any:
    """The model in parts, each of them an engine, after a comparison."""
    module = deploy(model, x, fallback=True, **options)
    explanation = module.explain(x)
    if [part.runs_in == "PyTorch" for part in explanation.parts] != [False] * PARTS:
        raise AssertionError(f"expected {PARTS} engines: {explanation}")
    torch.testing.assert_close(module(x), model(x), rtol=1e-3, atol=1e-4)
    return module


def ratios(evidence: Evidence, device: torch.device, rounds: int) -> None:
    """Measure models in parts beside eager, as fallback="faster" leaves them."""
    refused: dict[str, str] = {}
    found: list[float] = []
    for name, (model, x) in models(device).items():
        try:
            module = deploy(model, x, fallback="faster")
        except t2e.BuildError as error:
            refused[name] = str(error)
            continue
        torch.testing.assert_close(module(x), model(x), rtol=1e-2, atol=1e-3)
        timings = measure({"parts": lambda: module(x), "eager": lambda: model(x)}, device=device, rounds=rounds)  # noqa: B023  # measured at once
        ratio = microseconds(timings["parts"]) / microseconds(timings["eager"])
        evidence.figure(f"fallback.{name}.ratio_to_eager", ratio)
        found.append(ratio)
    evidence.figure("fallback.refused", len(refused))
    evidence.samples["refused"] = refused
    if found:
        evidence.figure("worst_ratio_to_eager", max(found))


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    """Measure everything.

    Args:
        evidence: takes the figures.
        options: `device` and `rounds`.
    """
    torch.manual_seed(0)
    device = torch.device(options.device)
    boundary(evidence, device, options.rounds)
    ratios(evidence, device, options.rounds)


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the interleaved measurements")
    parser.set_defaults(device="cuda")
    _script.run("fallback", body, parser, COVERS)


if __name__ == "__main__":
    main()

"""Host time of a call on a tiny MLP, where it is all that counts: TRTModule against TensorRT's own enqueue.

    python -m benchmarks.call_overhead --out DIR

Enters: a GPU. Leaves: call_overhead.json. Every variant is a module (or context) of its own on the same plan, its
answers are compared with PyTorch's before and after, and all are timed in one interleaved measurement. "fixed" inputs
are one tensor; the module's results are fresh tensors unless "static" is in the name.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import Evidence
from benchmarks.raw import RawEngine
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.deployed.benchmark import measure

__all__ = ["main", "tiny"]

ROWS, OTHER_ROWS, MOST_ROWS = 8, 5, 64
COVERS = ("core", "trt", "artifact", "deployed")  # of the package: what the figures depend on
ROTATED = 32
ORDER = 997
NO_GRAPHS = "_no_graphs"


def tiny() -> nn.Module:
    """64 → 128 → 128 → 16 in half precision."""
    layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16))
    return layers.half().to(_script.home()).eval()


def rows(count: int) -> torch.Tensor:
    """An input of that many rows."""
    return torch.randn(count, 64, dtype=torch.half, device=_script.home())


@dataclass
class Variant:
    """One way to call.

    Args:
        call: what is timed.
        inputs: what it is asked, in turn.
        answer: gives the answer to one of the inputs.
        stream: the caller's; None for the default one.
        fresh: whether an answer outlives the next call.
        kept: what must stay alive.
    """

    call: Callable[[], object]
    inputs: Sequence[torch.Tensor]
    answer: Callable[[torch.Tensor], torch.Tensor]
    stream: torch.cuda.Stream | None = None
    fresh: bool = True
    kept: list[Any] = field(default_factory=list)


def in_turn(module: Callable[[torch.Tensor], object], inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Call with one input after the other, round and round."""
    if len(inputs) == 1:
        return functools.partial(module, inputs[0])
    turn = itertools.cycle(inputs)

    def call() -> object:
        return module(next(turn))

    return call


def modules(artifact: EngineArtifact, side: torch.cuda.Stream, every: Sequence[torch.Tensor]) -> dict[str, Variant]:
    """The ways to call a TRTModule."""
    fixed, other = every[ROWS - 1], every[OTHER_ROWS - 1]
    shuffled = random.Random(0).choices(every, k=ORDER)
    rotated = [rows(ROWS) for _ in range(ROTATED)]
    found: dict[str, Variant] = {}

    def add(
        name: str, inputs: Sequence[torch.Tensor], stream: torch.cuda.Stream | None = side, **settings: Any
    ) -> None:
        module = t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(**settings))
        fresh = settings.get("output") != "static"
        asked = list({id(x): x for x in inputs}.values())
        found[name] = Variant(in_turn(module, inputs), asked, module, stream, fresh)

    for suffix, settings in (("", {}), (NO_GRAPHS, {"cuda_graphs": False})):
        add(f"own_stream{suffix}", [fixed], **settings)
        add(f"default_stream{suffix}", [fixed], None, **settings)
        add(f"alternating{suffix}", [fixed, other], **settings)
        add(f"shapes64_fixed{suffix}", [fixed], contexts=MOST_ROWS, **settings)
        add(f"shapes64{suffix}", shuffled, contexts=MOST_ROWS, **settings)
    add("graph_static", [fixed], cuda_graphs=True, output="static")
    add("graph_copy", rotated, cuda_graphs=True)
    return found


def raw(artifact: EngineArtifact, side: torch.cuda.Stream, every: Sequence[torch.Tensor]) -> dict[str, Variant]:
    """TensorRT itself."""
    engine = RawEngine(artifact)
    fixed = every[ROWS - 1]
    contexts = {id(x): engine.context([x], side) for x in every}
    one, default = engine.context([fixed], side), torch.cuda.default_stream()
    before, after = torch.cuda.Event(), torch.cuda.Event()

    def plus_events() -> bool:
        before.record(default)
        side.wait_event(before)
        done = one.enqueue()
        after.record(side)
        default.wait_event(after)
        return done

    def answered(context: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def answer(x: torch.Tensor) -> torch.Tensor:
            context.outputs[0].zero_()
            assert context.enqueue()
            return context.outputs[0]

        return answer

    turn = itertools.cycle(random.Random(0).choices([context.enqueue for context in contexts.values()], k=ORDER))
    found = {
        "raw": Variant(one.enqueue, [fixed], answered(one), side),
        # The answer is read on the stream that it is computed on, whichever stream the events are timed on.
        "raw_plus_events": Variant(plus_events, [fixed], lambda x: on(side, answered(one), x), None),
        "raw_shapes64": Variant(lambda: next(turn)(), every, lambda x: answered(contexts[id(x)])(x), side),
    }
    if engine.rt.is_rtx:
        found |= rtx_graphs(engine, side, fixed, answered)
    for variant in found.values():
        variant.fresh = False
        variant.kept.append(engine)
    return found


def on(stream: torch.cuda.Stream, answer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """An answer from another stream, complete."""
    with torch.cuda.stream(stream):
        y = answer(x)
    stream.synchronize()
    return y


def rtx_graphs(
    engine: RawEngine,
    side: torch.cuda.Stream,
    fixed: torch.Tensor,
    answered: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]],
) -> dict[str, Variant]:
    """TensorRT-RTX's own graph strategy, at one address and at two in turn."""
    still, moving = engine.context([fixed], side, graph=True), engine.context([fixed], side, graph=True)
    name, second = engine.artifact.signature.inputs[0].name, rows(ROWS)
    turn = itertools.cycle([fixed.data_ptr(), second.data_ptr()])

    def alternating() -> bool:
        moving.context.set_tensor_address(name, next(turn))
        return moving.enqueue()

    def answer(x: torch.Tensor) -> torch.Tensor:
        moving.context.set_tensor_address(name, x.data_ptr())
        return answered(moving)(x)

    return {
        "rtx_graph": Variant(still.enqueue, [fixed], answered(still), side),
        "rtx_graph_alternating": Variant(alternating, [fixed, second], answer, side),
    }


def check(variants: dict[str, Variant], model: nn.Module, precision: str) -> float:
    """Parity of every variant on all its inputs; the largest relative L2 error.

    Fresh results are kept until all are there, so that one which a later call changes is found.
    """
    worst = 0.0
    torch.cuda.synchronize()
    for name, variant in variants.items():
        with torch.cuda.stream(variant.stream):
            answers: list[torch.Tensor] = []
            for x in variant.inputs:
                y = variant.answer(x)
                answers.append(y if variant.fresh else y.clone())
            expected = torch.cat([model(x) for x in variant.inputs])
            found, _ = _script.parity(expected, {name: torch.cat(answers)}, precision, "PyTorch vs each way to call")
        worst = max(worst, found)
    torch.cuda.synchronize()
    return worst


def warm(variants: dict[str, Variant], calls: int) -> None:
    """Call every variant that often for each of its inputs, so that graphs are captured before the clock runs.

    As when it is timed: in the same order, and with a result that is held until the next one is there.
    """
    for variant in variants.values():
        with torch.cuda.stream(variant.stream):
            result: object = None
            for _ in range(calls * len(variant.inputs)):
                result = variant.call()
            del result
        torch.cuda.synchronize()


RATIOS = (
    ("own_stream", "raw", "ratio_to_raw"),
    ("default_stream", "raw_plus_events", "ratio_to_raw_plus_events"),
    ("alternating", "own_stream", "ratio_to_fixed"),
    ("shapes64", "shapes64_fixed", "ratio_to_fixed"),
)


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = tiny()
    artifact = t2e.build(t2e.export(model, rows(ROWS), {"input": {0: t2e.Axis("n", 1, ROWS, MOST_ROWS)}}))
    side, every = torch.cuda.Stream(), [rows(count + 1) for count in range(MOST_ROWS)]
    variants = {**raw(artifact, side, every), **modules(artifact, side, every)}
    torch.cuda.synchronize()  # the inputs were made on the default stream
    warm(variants, options.warm)
    worst = check(variants, model, artifact.precision)
    timings = measure(
        {name: variant.call for name, variant in variants.items()},
        device="cuda",
        rounds=options.rounds,
        warmup=options.warmup,
        streams={name: variant.stream for name, variant in variants.items() if variant.stream is not None},
    )
    worst = max(worst, check(variants, model, artifact.precision))
    for name, timing in timings.items():
        _script.record(evidence, f"tiny.{name}", timing)
    for name, floor, ratio in RATIOS:
        for suffix in ("", NO_GRAPHS):
            base = floor if floor.startswith("raw") else floor + suffix
            evidence.figure(f"tiny.{name}{suffix}.{ratio}", timings[f"{name}{suffix}"].host_us / timings[base].host_us)
    evidence.figure("tiny.rel_l2", worst)
    evidence.samples["calls_per_round"] = {name: timing.calls for name, timing in timings.items()}
    if "rtx_graph" not in timings:
        evidence.samples["left_out"] = {"rtx_graph": "only TensorRT-RTX captures graphs by itself"}


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="rounds of the interleaved measurement")
    parser.add_argument("--warm", type=int, default=100, help="calls for each input before anything is compared")
    parser.add_argument("--warmup", type=int, default=100, help="calls of each variant before it is timed")
    _script.run("call_overhead", body, parser, COVERS)


if __name__ == "__main__":
    main()

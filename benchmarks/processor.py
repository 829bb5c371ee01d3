"""Processor, numpy in and numpy out, beside the usual way to do it and beside the engine alone; then under stress.

    python -m benchmarks.processor --out DIR

Enters: a GPU, pycuda. Leaves: processor.json. ResNet-50 in half precision takes float32 images (and, wrapped anew,
uint8 ones): PyTorch's answers first, then time, of each way in turn. "Engine" is the GPU's time of the enqueue alone,
back to back, its inputs on the GPU. The engine has a profile for all batch sizes and one for each that is timed; the
Processor chooses, the usual way knows but the first, and is timed with the Processor's choice as well. Then threads
share a Processor and a TRTModule of one engine; a wrong result makes the exit status 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script, processor_stress
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.processor_stress import Array, only
from benchmarks.tutorial import Tutorial
from benchmarks.zoo import BATCH, ENTRIES
from torch2engine.core.errors import ParityError
from torch2engine.core.select_profile import select_profile
from torch2engine.deployed.benchmark import measure
from torch2engine.trt.engine import Engine

__all__ = ["main"]

COVERS = ("core", "trt", "artifact", "serving/processor")  # of the package: what the figures depend on
BATCHES = (1, 8, 32)
PRECISION = "fp16"  # what the model computes in, and so its tolerance
ARRAYS = 4  # asked in turn: more than a cache holds
DEPTH = 4
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


class Floats(nn.Module):
    """images: (batch, 3, 224, 224) float32 -> (batch, 1000) float32, computed in half precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.half()).float()


class Bytes(nn.Module):
    """images: (batch, 224, 224, 3) uint8, as decoders give them -> (batch, 1000) float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN, device="cuda").view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD, device="cuda").view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The cast comes first, since TensorRT moves no uint8 about.
        pixels = (images.float().permute(0, 3, 1, 2) - self.mean) / self.std
        return self.model(pixels.half()).float()


def floats(batch: int) -> list[Array]:
    """Images for `Floats`."""
    return [np.random.default_rng(n).standard_normal((batch, 3, 224, 224), np.float32) for n in range(ARRAYS)]


def images(batch: int) -> list[Array]:
    """Images for `Bytes`."""
    return [np.random.default_rng(n).integers(0, 255, (batch, 224, 224, 3), np.uint8) for n in range(ARRAYS)]


def build(model: nn.Module, sample: Array, batches: Sequence[int]) -> t2e.EngineArtifact:
    """The engine of a model for any batch up to 32, with kernels of their own for some."""
    profiles = [{BATCH.name: BATCH.range}, *({BATCH.name: (batch, batch, batch)} for batch in batches)]
    return t2e.build(t2e.export(model.eval(), torch.from_numpy(sample).cuda(), {"images": {0: BATCH}}), profiles)


def answered(tutorial: Tutorial, x: Array) -> Array:
    """The tutorial's answer."""
    return only(tutorial.infer(x))


def check(model: nn.Module, arrays: Sequence[Array], ways: Mapping[str, Callable[[Array], Array]]) -> float:
    """PyTorch's answers against every way's; the largest relative L2 error."""
    expected = torch.cat([model(torch.from_numpy(x).cuda()) for x in arrays]).cpu()
    answers = {name: torch.from_numpy(np.concatenate([way(x) for x in arrays])) for name, way in ways.items()}
    return _script.parity(expected, answers, PRECISION, "PyTorch vs each way")[0]


def engine_ms(artifact: t2e.EngineArtifact, array: Array, kernels: str, rounds: int, profile: int) -> float:
    """The GPU's time of an enqueue, back to back."""
    engine, stream = Engine(artifact, 0, kernels), torch.cuda.Stream()
    context = engine.make_context()
    (shape,) = context.set_shapes(profile, [array.shape], stream.cuda_stream)
    x = torch.from_numpy(array).cuda()
    y = torch.empty(shape, device="cuda")
    memory = torch.empty(max(256, context.memory_bytes()), dtype=torch.uint8, device="cuda")
    context.set_memory(memory.data_ptr(), memory.numel())
    context.bind((x.data_ptr(), y.data_ptr()))
    torch.cuda.synchronize()
    call = functools.partial(context.enqueue, stream.cuda_stream)
    timing = measure({"engine": call}, device="cuda", rounds=rounds, warmup=30, streams={"engine": stream})["engine"]
    assert timing.device_us is not None
    return timing.device_us / 1e3


def call_ms(ways: Mapping[str, Callable[[Array], object]], arrays: Sequence[Array], rounds: int) -> dict[str, float]:
    """The median time of a call, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            for x in arrays[number % 2 :: 2]:
                way(x)  # right before, so that caches are its own
                started = time.perf_counter()
                way(x)
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def stream_ms(processor: t2e.Processor, arrays: Sequence[Array], items: int, rounds: int, depth: int = DEPTH) -> float:
    """The median over rounds of the time for each item of a long stream, its beginning not counted."""

    def source(count: int) -> Iterator[Array]:
        for number in range(count):
            yield arrays[number % len(arrays)]

    found: list[float] = []
    lead = 2 * depth
    for _ in range(rounds):
        started = 0.0
        for number, _ in enumerate(processor.infer_stream(source(items + lead), depth), 1):
            if number == lead:
                started = time.perf_counter()
        found.append((time.perf_counter() - started) * 1e3 / items)
    return statistics.median(found)


class Bench:
    """ResNet-50 in one input format.

    Args:
        evidence: takes the figures.
        options: the script's.
        model: the wrapped model, on the GPU.
        made: gives arrays at a batch size.
        suffix: of the figures' names, "" or "_uint8".
    """

    def __init__(
        self,
        evidence: Evidence,
        options: argparse.Namespace,
        model: nn.Module,
        made: Callable[[int], list[Array]],
        suffix: str,
    ) -> None:
        self.evidence, self.options, self.model, self.made, self.suffix = evidence, options, model, made, suffix
        self.artifact = build(model, made(8)[0], options.batches)
        with self.processor("none") as processor:
            for batch in (*options.batches, max(options.batches) - 1):  # the last for the kernels for any size
                for x in made(batch):
                    processor.infer(x)
            self.artifact = processor.compiled()  # so that what follows starts warm

    def profile(self, batch: int) -> int:
        """Whose kernels a Processor uses for a batch."""
        return select_profile(self.artifact.signature, self.artifact.profiles, {BATCH.name: batch})

    def engine_ms(self, batch: int, kernels: str = "none") -> float:
        """Of the engine alone, as a Processor uses it."""
        return engine_ms(self.artifact, self.made(batch)[0], kernels, self.options.rounds, self.profile(batch))

    def usual(self, chooses: bool) -> Tutorial:
        """The tutorial's way, once its answers are right; with kernels for any shape of a profile, as the Processor's.

        Args:
            chooses: the profile that the Processor would choose, not the first.
        """
        choose = (lambda shape: self.profile(shape[0])) if chooses else None
        made = Tutorial(self.artifact, specialized=False, choose=choose)
        for batch in self.options.batches:
            for x in self.made(batch) * self.options.warm:
                made.infer(x)
            check(self.model, self.made(batch), {"tutorial": functools.partial(answered, made)})
        return made

    def processor(self, kernels: str) -> t2e.Processor:
        config = t2e.RuntimeConfig(kernel_specialization=kernels)
        return t2e.Processor(self.artifact, streams=self.options.streams, runtime_config=config)

    def calls(self, kernels: str, mark: str, tutorials: Mapping[str, Tutorial]) -> None:
        """infer beside the usual ways, and the engine alone."""
        with self.processor(kernels) as processor:
            for batch in self.options.batches:
                arrays, name = self.made(batch), f"infer{mark}.b{batch}"
                ways: dict[str, Callable[[Array], Array]] = {
                    **{name: functools.partial(answered, one) for name, one in tutorials.items()},
                    "processor": lambda x: only(processor.infer(x)),
                }
                for _ in range(self.options.warm):
                    for way in ways.values():
                        way(arrays[0])
                error = check(self.model, arrays, ways)
                engine = self.engine_ms(batch, kernels)
                wide = engine_ms(self.artifact, arrays[0], kernels, self.options.rounds, 0)
                times = call_ms(ways, arrays, self.options.rounds)
                parts = processor.timings()
                error = max(error, check(self.model, arrays, ways))
                self.record(name, times.pop("processor"), engine, times)
                self.evidence.figure(f"{name}.engine_all_sizes_ms", wide)
                self.evidence.figure(f"{name}.rel_l2", error)
                assert parts is not None
                self.evidence.samples.setdefault("timings_ms", {})[name] = parts._asdict()

    def streams(self, tutorials: Mapping[str, Tutorial]) -> None:
        """infer_stream at the largest batch, from pageable and from page-locked arrays."""
        batch = max(self.options.batches)
        with self.processor("none") as processor:
            arrays = self.made(batch)
            pinned = [next(iter(processor.empty(batch=batch).values())) for _ in arrays]
            for own, array in zip(pinned, arrays, strict=True):
                own[:] = array
            error = check(self.model, arrays, {"infer_stream": lambda x: self.streamed(processor, x)})
            engine = self.engine_ms(batch)
            usual = call_ms({name: one.infer for name, one in tutorials.items()}, arrays, self.options.rounds)
            for mark, given in (("", arrays), ("_pinned", pinned)):
                name = f"infer_stream{self.suffix}{mark}.b{batch}"
                stream_ms(processor, given, 30, 1)
                per_item = stream_ms(processor, given, self.options.items, 5)
                self.record(name, per_item, engine, usual)
                self.evidence.figure(f"{name}.rel_l2", error)
            error = max(error, check(self.model, pinned, {"infer_stream": lambda x: self.streamed(processor, x)}))

    def streamed(self, processor: t2e.Processor, x: Array) -> Array:
        """An answer from the midst of a stream, all of whose answers to it are one."""
        found = [only(results) for results in processor.infer_stream([x] * (3 * DEPTH), DEPTH)]
        if not all(np.array_equal(one, found[-1]) for one in found[:DEPTH]):
            worst = max(float(np.abs(one - found[-1]).max()) for one in found)
            self.evidence.samples.setdefault("not_the_same_each_time", []).append(worst)
        return found[len(found) // 2]

    def record(self, name: str, ms: float, engine: float, usual: Mapping[str, float]) -> None:
        self.evidence.figure(f"{name}.ms", ms)
        self.evidence.figure(f"{name}.engine_ms", engine)
        self.evidence.figure(f"{name}.ratio_to_engine", ms / engine)
        for way, usual_ms in usual.items():
            self.evidence.figure(f"{name}.{way}_ms", usual_ms)
            self.evidence.figure(f"{name}.ratio_to_{way}", ms / usual_ms)
            self.evidence.figure(f"{name}.speedup_over_{way}", usual_ms / ms)

    def starts(self, folder: Path) -> None:
        """Fresh processes without PyTorch, from their start to their first answer."""
        x = self.made(1)[0]
        with self.processor("none") as processor:
            for _ in range(5):
                processor.infer(x)
            processor.compiled().without_onnx().save(folder / "warm.t2e")
        np.save(folder / "x.npy", x)
        found: list[dict[str, float]] = []
        for _ in range(self.options.starts):
            words = [str(folder / name) for name in ("warm.t2e", "x.npy", "y.npy")]
            command = [sys.executable, "-m", "benchmarks.processor_start", str(time.time()), *words]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise RuntimeError(f"processor_start failed ({done.returncode}):\n{done.stderr[-2000:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
            check(self.model, [x], {"fresh process": lambda _: np.load(folder / "y.npy")})
        self.evidence.figure("cold_start_s", statistics.median(one["start_s"] for one in found))
        self.evidence.samples["cold_starts"] = found


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = ENTRIES["resnet50"].make()
    bench = Bench(evidence, options, Floats(model).cuda(), floats, "")
    tutorials = {"tutorial": bench.usual(False), "tutorial_same_profile": bench.usual(True)}
    bench.calls("none", "", tutorials)
    print(f"infer after {evidence.elapsed_s:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench.starts(Path(folder))
    bench.streams(tutorials)
    print(f"infer_stream after {evidence.elapsed_s:.0f} s", flush=True)
    Bench(evidence, options, Bytes(model).cuda(), images, "_uint8").streams({})
    print(f"uint8 after {evidence.elapsed_s:.0f} s", flush=True)
    processor_stress.shared(evidence, options)
    if options.eager:
        try:
            bench.calls("eager", "_eager", tutorials)
        except ParityError as error:  # no default, and TensorRT-RTX 1.6.1 is known to be wrong with it at times
            evidence.samples["left_out"] = {"infer_eager": str(error).partition("\n")[0]}


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--batches", type=_numbers, default=list(BATCHES), help="batch sizes, with commas")
    parser.add_argument("--streams", type=int, default=2, help="of each Processor")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each measurement")
    parser.add_argument("--warm", type=int, default=20, help="calls before anything is compared")
    parser.add_argument("--items", type=int, default=150, help="of each stream")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes")
    parser.add_argument("--calls", type=int, default=10_000, help="of the stress run, after its warm-up")
    parser.add_argument("--warmup-calls", type=int, default=4_000, help="of the stress run's warm-up")
    parser.add_argument("--threads", type=int, default=4, help="of the stress run")
    parser.add_argument("--shapes", type=int, default=32, help="of the stress run")
    parser.add_argument(
        "--eager", action=argparse.BooleanOptionalAction, default=False, help="also with kernel_specialization='eager'"
    )
    _script.run("processor", body, parser, COVERS)


if __name__ == "__main__":
    main()

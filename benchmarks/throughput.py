"""Items a second: calls in flight on several streams at every batch size, and a Processor fed from the host's arrays.

    python -m benchmarks.throughput --out DIR

Enters: a GPU, pycuda. Leaves: throughput.json. ResNet-50 and ViT-B/16 in half precision take float32 images. The engine
has a profile for each batch size that is timed. PyTorch's answers come first, then the rates of `module.benchmark`, and
beside them those of PyTorch in CUDA graphs, one for each stream. Then `Processor.infer_stream` takes batches of 32 from
pageable arrays. The GPU counts as busy while an engine is between the two events that the Processor itself records
around each inference. These intervals are united, so two inferences at once count once.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks.evidence import Evidence
from benchmarks.processor import Floats, check, floats, stream_ms
from benchmarks.processor_stress import Array, only
from benchmarks.zoo import BATCH, ENTRIES
from torch2engine.deployed.throughput import measure_rates
from torch2engine.deployed.timing import Call
from torch2engine.serving.processor.staging import StagingBuffers, Timings

__all__ = ["busy_share", "main"]

COVERS = ("core", "trt", "artifact", "exporter", "builder", "deployed", "serving/processor")
MODELS = ("resnet50", "vit_b_16")
BATCHES = (1, 8, 32)
STREAMS = (1, 2, 4)
ROUNDS = 5
# Inferences that run at once take turns, so that few streams end together and then copy their next inputs together. Of
# ResNet-50 on an H200, two streams keep the GPU busy for 0.89 of the time, three for 0.93, and four for 0.966.
PROCESSOR_STREAMS = 6
CALLS_PER_STREAM = 2  # under way: one computes, the inputs of the other are copied

Span = tuple[float, float]


def busy_share(spans: Sequence[Span]) -> float:
    """The share of the time, from the first start to the last end, in which at least one span is under way."""
    busy = 0.0
    covered_to = start = min(spans)[0]
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, covered_to))
        covered_to = max(covered_to, end)
    return busy / (covered_to - start)


@contextmanager
def inference_spans(processor: t2e.Processor) -> Generator[list[Span]]:
    """Note when each inference that ends in the body began and ended on the GPU, in ms from here.

    The Processor reads its events when a call is done, right before another call may record them anew.
    """
    session = processor._session
    spans: list[Span] = []
    read = StagingBuffers.timings
    with session.cuda:
        origin = session.cuda.event()
        origin.record(session.cuda.stream())
        origin.wait()

    def read_and_note(staging: StagingBuffers, seconds: float) -> Timings:
        spans.append((staging.ready.ms_since(origin), staging.computed.ms_since(origin)))
        return read(staging, seconds)

    StagingBuffers.timings = read_and_note
    try:
        yield spans
    finally:
        StagingBuffers.timings = read


class Subject:
    """A model and its engine.

    Args:
        evidence: takes the figures.
        options: the script's.
        name: of the model, in `ENTRIES`.
    """

    def __init__(self, evidence: Evidence, options: argparse.Namespace, name: str) -> None:
        torch.manual_seed(0)
        self.evidence, self.options, self.name = evidence, options, name
        self.model = Floats(ENTRIES[name].make()).cuda().eval()
        sample = torch.from_numpy(floats(8)[0]).cuda()
        profiles = [{BATCH.name: (batch, batch, batch)} for batch in options.batches]
        self.artifact = t2e.build(t2e.export(self.model, sample, {"images": {0: BATCH}}), profiles)

    def figure(self, name: str, value: float) -> None:
        self.evidence.figure(f"{self.name}.{name}", value)

    def of_module(self) -> dict[tuple[int, int], float]:
        """Record the module's rates by batch and number of streams, and the best; return them."""
        module = t2e.TRTModule(self.artifact)
        # Real inputs: invented ones would be tried on the CPU first.
        examples = [torch.from_numpy(floats(batch)[0]).cuda() for batch in self.options.batches]
        report = module.benchmark(
            self.model, examples=examples, streams=self.options.streams, rounds=self.options.rounds
        )
        assert report.parity is not None and report.parity.worst is not None
        self.figure("rel_l2", report.parity.worst.rel_l2)
        for row in report.throughput:
            self.figure(f"b{row.items}.streams{row.streams}.items_per_s", row.items_per_s)
        for best in report.best_rates:
            self.figure(f"b{best.items}.best_items_per_s", best.items_per_s)
            self.figure(f"b{best.items}.best_streams", best.streams)
        self.figure("best_items_per_s", max(best.items_per_s for best in report.best_rates))
        self.evidence.samples.setdefault("rows", {})[self.name] = [row.to_json() for row in report.throughput]
        self.artifact = module.compiled()  # so that what follows starts warm
        return {(row.items, row.streams): row.items_per_s for row in report.throughput}

    def of_graphs(self, batch: int) -> None:
        """Record the rates of PyTorch in CUDA graphs, one for each stream, and our best beside its best."""
        replays = [_captured(self.model, batch) for _ in range(max(self.options.streams))]
        candidates = {str(count): replays[:count] for count in self.options.streams}
        rates = measure_rates(candidates, torch.device("cuda", 0), self.options.rounds)
        for count, rate in rates.items():
            self.figure(f"b{batch}.streams{count}.eager_graph_items_per_s", batch * rate.calls_per_s)
        best = batch * max(rate.calls_per_s for rate in rates.values())
        self.figure(
            f"b{batch}.speedup_over_eager_graph", self.evidence.figures[f"{self.name}.b{batch}.best_items_per_s"] / best
        )

    def of_processor(self, module_rates: dict[tuple[int, int], float]) -> None:
        """Record the rate of `infer_stream` from pageable arrays, and how busy it keeps the GPU."""
        batch = max(self.options.batches)
        arrays = floats(batch)
        depth = CALLS_PER_STREAM * self.options.processor_streams
        lead = 2 * depth  # calls until a stream of them is in full flow, and from which on it runs out
        with t2e.Processor(self.artifact, streams=self.options.processor_streams) as processor:

            def streamed(x: Array) -> Array:
                return [only(results) for results in processor.infer_stream([x] * lead, depth)][depth]

            self.figure("processor.rel_l2", check(self.model, arrays, {"infer_stream": streamed}))
            stream_ms(processor, arrays, self.options.items, 1, depth)
            item_ms: list[float] = []
            shares: list[float] = []
            for _ in range(self.options.rounds):
                with inference_spans(processor) as spans:
                    item_ms.append(stream_ms(processor, arrays, self.options.items, 1, depth))
                shares.append(busy_share(spans[lead:-lead]))
            check(self.model, arrays, {"infer_stream": streamed})
        name = f"processor.b{batch}"
        rate = batch * 1e3 / statistics.median(item_ms)
        self.figure(f"{name}.items_per_s", rate)
        self.figure(f"{name}.gpu_busy_share", statistics.median(shares))
        self.figure(f"{name}.least_gpu_busy_share", min(shares))
        self.figure(f"{name}.ratio_to_one_stream", rate / module_rates[batch, min(self.options.streams)])
        self.figure(f"{name}.ratio_to_best", rate / max(module_rates[batch, count] for count in self.options.streams))


def _captured(model: nn.Module, batch: int) -> Call:
    """A call of the model as one CUDA graph, with memory of its own."""
    x = torch.randn(batch, 3, 224, 224, device="cuda")
    for _ in range(3):
        model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tensors = (x, model(x))

    def replay() -> object:
        graph.replay()
        return tensors  # which the graph reads and writes

    return replay


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    for name in options.models:
        subject = Subject(evidence, options, name)
        print(f"{name} is built after {evidence.elapsed_s:.0f} s", flush=True)
        rates = subject.of_module()
        for batch in options.batches:
            subject.of_graphs(batch)
        print(f"{name}'s calls are timed after {evidence.elapsed_s:.0f} s", flush=True)
        subject.of_processor(rates)
        torch.cuda.empty_cache()
    shares = [value for name, value in evidence.figures.items() if name.endswith(".gpu_busy_share")]
    evidence.figure("gpu_busy_share", min(shares))


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS), help="with commas")
    parser.add_argument("--batches", type=_numbers, default=list(BATCHES), help="batch sizes, with commas")
    parser.add_argument("--streams", type=_numbers, default=list(STREAMS), help="streams at a time, with commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each measurement")
    parser.add_argument("--processor-streams", type=int, default=PROCESSOR_STREAMS, help="of the Processor")
    parser.add_argument("--items", type=int, default=150, help="batches of each stream through the Processor")
    _script.run("throughput", body, parser, COVERS)


if __name__ == "__main__":
    main()

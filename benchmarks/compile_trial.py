"""One model of the zoo under torch.compile(backend="torch2engine"), called with many batch sizes.

Enters: a `ZooEntry`. Leaves: a row with the outcome, the recompilations and the engines. Separate from `zoo_fallback`,
which asks whether torch.compile answers at all: this asks how often it compiles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx
from torch._guards import CompileContext

import torch2engine as t2e
from benchmarks.zoo_trial import ZooTrial
from benchmarks.zoo_worker import Row, Send, shortened
from tests.zoo.entry import ZooEntry
from torch2engine.fallback.compile_options import CompileOptions
from torch2engine.fallback.run_record import RunRecord, time_calls
from torch2engine.fallback.torch_compile import make_compiler

__all__ = [
    "BATCH_SIZES",
    "ENGINES_OF_A_PART",
    "CompileCounts",
    "CompileTrial",
    "CountingBackend",
    "ManyCompilationsError",
    "compile_row_of",
]

BATCH_SIZES = (8, 20, 3, 1, 13, 5, 17, 2, 11, 4, 19, 7, 14, 6, 10, 16, 9, 12, 15, 18)
ENGINES_OF_A_PART = 5  # an engine holds up to a power of two: 2, 4, 8, 16 and 32 hold every size

Compile = Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]]
Timed = Callable[[str], AbstractContextManager[None]]


class ManyCompilationsError(Exception):
    """Answers were right, but took more recompilations or engines than the sizes need."""


class CountingBackend:
    """A backend of torch.compile that counts its graphs.

    Attributes:
        graphs: how many it was given.
        recompiles: how many of these are of code that had a graph already.

    Args:
        compile_graph: the backend that makes the callables.
    """

    def __init__(self, compile_graph: Compile) -> None:
        self._compile_graph = compile_graph
        self.graphs = 0
        self.recompiles = 0

    def __call__(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one graph."""
        compile_id = CompileContext.current_compile_id()
        assert compile_id is not None, "torch.compile names what it compiles"
        self.graphs += 1
        self.recompiles += bool(compile_id.frame_compile_id)
        return self._compile_graph(graph_module, example_inputs)


@dataclass(frozen=True)
class CompileCounts:
    """How much was compiled for the calls of a model.

    Args:
        graphs: that torch.compile made in the first pass over the sizes.
        recompiles: how many of these replaced or joined an earlier graph of the same code.
        eager_recompiles: how many recompilations the same calls take with the backend "eager", which does nothing.
        parts: of all graphs, those in PyTorch among them.
        engines: that were deployed in the first pass.
        late: graphs and engines that a second pass over the same sizes has added.
        parts_in_engines: of the parts that answer the sample.
        engine_share: the share of the time that the sample's call spends in engines, between 0 and 1.
        profiles: {axis: [min, opt, max]} of each engine; {} for an engine of one size.
        reasons: why parts are in PyTorch.
    """

    graphs: int
    recompiles: int
    eager_recompiles: int
    parts: int
    engines: int
    late: int
    parts_in_engines: int
    engine_share: float
    profiles: Sequence[Mapping[str, Sequence[int]]]
    reasons: Sequence[str]

    def check(self) -> None:
        """Hold the counts against what the sizes need.

        Raises:
            ManyCompilationsError: they are larger.
        """
        bounds = {
            "recompilations": (self.recompiles, self.eager_recompiles),
            "engines": (self.engines, ENGINES_OF_A_PART * self.parts),
            "compilations in a second pass": (self.late, 0),
        }
        for name, (count, most) in bounds.items():
            if count > most:
                raise ManyCompilationsError(f"{name}: got {count}; expected at most {most}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the evidence."""
        return {**asdict(self), "engine_share": round(self.engine_share, 4)}


class CompileTrial:
    """A model that torch.compile runs with this package's backend.

    Args:
        entry: the model; its batch alone varies.
        backend: "cpu" or "gpu".
        sizes: of the batch, in the order of the calls.
    """

    def __init__(self, entry: ZooEntry, backend: str, sizes: Sequence[int] = BATCH_SIZES) -> None:
        self._others = {name: size for name, size in entry.sizes("opt").items() if name != "batch"}
        self._trial = ZooTrial.make(_with_free_batch(entry, sizes), backend)
        self._sizes = sizes
        self._record = RunRecord()
        self._counting = CountingBackend(make_compiler(CompileOptions(cache=False), self._record).compile)

    def run(self, timed: Timed = lambda phase: nullcontext()) -> CompileCounts:
        """Call the model with all sizes, and compare every answer.

        Args:
            timed: makes a context that takes the seconds of a phase: "compile", "repeat" or "eager".

        Raises:
            ParityError: an answer is wrong.
            ExportError: a call failed.
        """
        torch._dynamo.reset()
        compiled: Any = torch.compile(self._trial.model, backend=self._counting)
        inputs = [self._inputs(size) for size in self._sizes]
        with timed("compile"):
            calls = self._trial.compare_compiled(compiled, inputs)
        graphs, recompiles = self._counting.graphs, self._counting.recompiles
        engines = list(self._record.engines)
        parts = len(self._record.parts)
        with timed("repeat"):
            for call in calls:
                call()
            late = self._counting.graphs - graphs + len(self._record.engines) - len(engines)
            explanation = time_calls(calls[0], self._record)
        with timed("eager"):
            eager_recompiles = self._eager_recompiles(inputs)
        return CompileCounts(
            graphs=graphs,
            recompiles=recompiles,
            eager_recompiles=eager_recompiles,
            parts=parts,
            engines=len(engines),
            late=late,
            parts_in_engines=sum(part.runs_in != "PyTorch" for part in explanation.parts),
            engine_share=explanation.engine_share,
            profiles=[{axis.name: list(axis.range) for axis in signature.axes} for signature in engines],
            reasons=[shortened(part.reason) for part in self._record.parts if part.reason],
        )

    def _inputs(self, size: int) -> dict[str, Any]:
        sample = self._trial.entry.sample({**self._others, "batch": size})
        device = next(iter(self._trial.sample.values())).device
        return {name: value.to(device) for name, value in sample.items()}

    def _eager_recompiles(self, inputs: Sequence[Mapping[str, Any]]) -> int:
        torch._dynamo.reset()
        counting = CountingBackend(lambda graph_module, _: graph_module.forward)
        compiled: Any = torch.compile(self._trial.model, backend=counting)
        for one in (self._trial.sample, *inputs):
            compiled(**one)
        torch._dynamo.reset()
        return counting.recompiles


def _with_free_batch(entry: ZooEntry, sizes: Sequence[int]) -> ZooEntry:
    """The same model, whose batch may have any of these sizes, and whose other axes have their opt size."""
    batch = t2e.Axis("batch", min(sizes), sizes[0], max(sizes))
    axes = {
        name: {dim: batch for dim, axis in by_dimension.items() if axis.name == "batch"}
        for name, by_dimension in entry.axes.items()
    }
    others = {name: size for name, size in entry.sizes("opt").items() if name != "batch"}
    return dataclasses.replace(
        entry, axes=axes, inputs=lambda given: entry.inputs({**others, **given}), is_given_examples=False
    )


def compile_row_of(entry: ZooEntry, backend: str, send: Send) -> dict[str, Any]:
    """Try a model.

    Args:
        entry: the model.
        backend: "cpu" or "gpu".
        send: takes the row whenever it changes.

    Returns:
        the row of `zoo_worker.row_of`, with the fields of `CompileCounts` in "counts" once they are known. Its outcome
        may also be "recompiled": right answers, but more compilations than the sizes need.
    """
    row = Row(entry, send)
    counts: dict[str, Any] = {}
    with row.tried():
        with row.timed("make"):
            trial = CompileTrial(entry, backend)
        found = trial.run(row.timed)
        counts = {"counts": found.to_json()}
        try:
            found.check()
        except ManyCompilationsError as error:
            row.end("recompiled", error)
    return {**row.to_json(), **counts}

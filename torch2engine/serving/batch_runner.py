"""Columns with any number of rows → answers for the same number of rows, in batches that the profiles allow.

Enters: arrays whose dimension 0 is the batch. Leaves: arrays with one row for each. Separate because every distributor
gives batches of its own sizes: short ones at the end of a block, and ones larger than the largest profile.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.constants import NOT_IN_NUMPY
from torch2engine.core.errors import InputError, ShapeError
from torch2engine.serving.array_runner import Array, Servable, open_runner
from torch2engine.serving.processor.arrays import check_call, input_layout, live_arrays
from torch2engine.serving.processor.batches import Batches, plan_batches

__all__ = ["BatchRunner", "rows_per_call"]

_WARMUP_CALLS = 3  # with cuda_graphs="auto", a Processor captures at the third call of a shape
_STREAM_DEPTH = 4


def rows_per_call(artifact: Servable, batch_size: int | None = None) -> int:
    """Rows that go together into one call of an artifact.

    Args:
        artifact: an engine or an exported model.
        batch_size: as for `BatchRunner`.

    Raises:
        InputError: as `BatchRunner`.
    """
    return _plan_batches(artifact, batch_size).size


def _plan_batches(artifact: Servable, batch_size: int | None) -> Batches:
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise InputError("batch_size", got=repr(batch_size), allowed="an int of at least 1", fix="pass such a number")
    fix = "export it with dimension 0 of every input as one dynamic axis, or write a worker of your own on a Processor"
    batches = plan_batches(artifact.signature, artifact.profiles, batch_size or sys.maxsize, "artifact", fix)
    axis = artifact.signature.call_inputs[0].shape[0]
    if influence := artifact.influences.get(str(axis)):
        raise InputError(
            "artifact",
            got=f"a model in which the rows of a batch may influence each other: {influence}",
            allowed="one that answers a row alike in every batch, since rows of several callers go together",
            fix="write a worker of your own on a Processor, which gets a whole batch in each call",
        )
    return batches


class BatchRunner:
    """An artifact that answers any number of rows; threads may share it.

    The calls of an engine have few sizes, each twice the one before: rows that lack are copies of the last one.

    Args:
        artifact: an engine, which runs on the first GPU that this process sees, or an exported model.
        streams, runtime_config: as for `Processor`.
        batch_size: rows of one call; None for the most that a profile allows.
        depth: how many calls of one caller may be under way; each holds page-locked memory for its inputs and outputs.

    Raises:
        InputError: dimension 0 is not one axis of all inputs and outputs, its rows influence each other, or a wrong
            option.
        Torch2EngineError: as `Processor`.
    """

    def __init__(
        self,
        artifact: Servable,
        streams: int = 2,
        runtime_config: RuntimeConfig = RuntimeConfig(),
        batch_size: int | None = None,
        depth: int = _STREAM_DEPTH,
    ) -> None:
        self.signature = artifact.signature
        self._profiles = artifact.profiles
        self._live_arrays = live_arrays(artifact)
        self._batches = _plan_batches(artifact, batch_size)
        self._sizes = self._batches.doubling_sizes()
        # TensorRT-RTX compiles kernels at the first call of a size, ResNet-50's for up to a second (1.6.1, H200). Where
        # batches are made of requests they have every size. ONNX Runtime compiles nothing.
        self._has_few_sizes = not isinstance(artifact, OnnxArtifact)
        self._depth = depth
        self._runner = open_runner(artifact, streams, runtime_config)

    @property
    def batch_size(self) -> int:
        """Rows of one call while there are enough."""
        return self._batches.size

    def warm_up(self) -> None:
        """Answer zeros in every size of an engine's calls, so that kernels are compiled before real rows come."""
        for rows in self._sizes if self._has_few_sizes else {self._sizes[0], self._sizes[-1]}:
            inputs = self._zeros(rows)
            for _ in range(_WARMUP_CALLS):
                self._runner.infer(inputs)

    def probe(self) -> None:
        """Answer zeros in the smallest batch.

        Raises:
            Torch2EngineError: the engine or its GPU fails.
        """
        self._runner.infer(self._zeros(self._batches.padded_size(1)))

    def check(self, columns: Mapping[str, Array]) -> int:
        """Check columns against the signature and the profiles, without answering them.

        Args:
            columns: as for a call.

        Returns:
            how many rows they have.

        Raises:
            InputError, ShapeError, DtypeError: as a call.
        """
        rows = self._count_rows(columns)
        batch = self._batches.padded_size(min(max(rows, 1), self._batches.size))
        # Arrays of the same dtypes and shapes that take no memory.
        stand_ins = {
            name: np.broadcast_to(np.zeros((), array.dtype), (batch, *array.shape[1:]))
            for name, array in columns.items()
        }
        check_call(self.signature, self._profiles, stand_ins, self._live_arrays)
        return rows

    def __call__(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Answer rows.

        Args:
            columns: an array for each input, by its name, with as many rows each; only read. They may be read-only.

        Returns:
            output name -> array with as many rows. Values in bfloat16 and float8 come as float32.

        Raises:
            InputError, ShapeError, DtypeError: as `Processor.infer`, or columns of different lengths.
        """
        rows = self._count_rows(columns)
        if not rows:
            return self._no_rows()
        parts: dict[str, list[Array]] = {spec.name: [] for spec in self.signature.outputs}
        left = rows
        for results in self._runner.infer_stream(self._padded_batches(columns, rows), self._depth):
            count = min(left, self._batches.size)
            for name, array in results.items():
                parts[name].append(array[:count])
            left -= count
        return {spec.name: _join_batches(parts[spec.name], spec.dtype) for spec in self.signature.outputs}

    def close(self) -> None:
        """Give everything back."""
        self._runner.close()

    def _count_rows(self, columns: Mapping[str, Array]) -> int:
        counts = {name: len(array) if array.ndim else 0 for name, array in columns.items()}
        if len(set(counts.values())) > 1:
            raise ShapeError(
                "columns",
                got="; ".join(f"'{name}' with {count} rows" for name, count in counts.items()),
                allowed="as many rows in each",
                fix="pass the columns of one batch",
            )
        if not counts:
            raise InputError(
                "columns",
                got="none",
                allowed=", ".join(spec.name for spec in self.signature.call_inputs),
                fix="pass an array for each of these inputs",
            )
        return next(iter(counts.values()))

    def _padded_batches(self, columns: Mapping[str, Array], rows: int) -> Generator[dict[str, Array]]:
        """Views of the rows for one call after the other; the last one is filled up with copies of its last row."""
        for first in range(0, rows, self._batches.size):
            part = {name: array[first : first + self._batches.size] for name, array in columns.items()}
            count = min(self._batches.size, rows - first)
            lacking = self._rows_of_call(count) - count
            if lacking:
                part = {name: np.concatenate([array, *[array[-1:]] * lacking]) for name, array in part.items()}
            yield part

    def _rows_of_call(self, count: int) -> int:
        """The rows of the call that answers so many, at most `batch_size`."""
        if self._has_few_sizes:
            return next(size for size in self._sizes if size >= count)
        return self._batches.padded_size(count)

    def _zeros(self, rows: int) -> dict[str, Array]:
        axis = self.signature.inputs[0].shape[0]
        sizes = {axis: rows} if isinstance(axis, str) else {}
        layout = input_layout(self.signature, self._profiles, sizes)
        return {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}

    def _no_rows(self) -> dict[str, Array]:
        """Answers without rows, in the right dtypes and shapes."""
        answers = self._runner.infer(self._zeros(self._batches.padded_size(1)))
        return {spec.name: _join_batches([answers[spec.name][:0]], spec.dtype) for spec in self.signature.outputs}


def _join_batches(parts: Sequence[Array], dtype: str) -> Array:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.astype(np.float32) if dtype in NOT_IN_NUMPY else whole  # Arrow has no such dtypes either

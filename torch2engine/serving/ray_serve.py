"""Ray Serve: an artifact → an application that answers arrays over HTTP, in batches made of many requests.

Enters: an artifact's folder. Leaves: what `ray.serve.run` takes. Separate, and light, because every replica imports
this file: it loads no torch, and Ray only in `deployment`. Ray Serve starts, watches and drains the replicas.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import InputError, Torch2EngineError
from torch2engine.serving.array_runner import Array, Source, find_artifact
from torch2engine.serving.batch_runner import BatchRunner, rows_per_call
from torch2engine.serving.ray import actor_argument, import_ray
from torch2engine.serving.wire import NPY, NPZ, read_arrays, write_arrays

__all__ = ["ModelServer", "deployment"]

_CONCURRENT_BATCHES = 2  # one is staged while the other computes
_LEAST_ONGOING = 100  # fewer, and Ray's router asks again and again for room in the replica
_DRAIN_S = 60.0
_BAD_REQUEST = 400
_SERVER_ERROR = 500


@dataclass(frozen=True)
class _Request:
    """One checked request.

    Args:
        columns: an array for each input.
        rows: how many rows each has.
    """

    columns: dict[str, Array]
    rows: int

    @property
    def kind(self) -> Hashable:
        """Requests of one kind can be rows of one batch."""
        return tuple((name, str(array.dtype), array.shape[1:]) for name, array in sorted(self.columns.items()))


def _rows_together(requests: Sequence[_Request]) -> int:
    return sum(request.rows for request in requests)


@dataclass(frozen=True)
class _Failure:
    """The error of a batch, for each of its requests."""

    error: Exception


class ModelServer:
    """One replica: a GPU's engine, or an exported model, behind HTTP.

    `deployment` makes it. POST takes the bytes of `numpy.save`, or `numpy.savez` for several inputs, and gives answers
    in the same form. GET tells what the model takes, and how many batches were made of how many requests. What a
    request can't have is answered by 400 with the text of the error, in JSON.

    Args:
        artifact, batch_size, streams, runtime_config: as for `torch2engine.serving.ray.Predictor`.
        max_wait_s: how long a request waits for others.

    Raises:
        Torch2EngineError: the artifact can't run here; Ray Serve then reports the replica as unhealthy.
    """

    def __init__(
        self,
        artifact: Source,
        batch_size: int | None,
        max_wait_s: float,
        streams: int,
        runtime_config: RuntimeConfig,
    ) -> None:
        self._runner = BatchRunner(find_artifact(artifact), streams, runtime_config, batch_size)
        self._runner.warm_up()
        self._names = [spec.name for spec in self._runner.signature.call_inputs]
        serve: Any = importlib.import_module("ray.serve")
        self._batched: Callable[[_Request], Awaitable[dict[str, Array] | _Failure]] = serve.batch(
            max_batch_size=self._runner.batch_size,
            batch_wait_timeout_s=max_wait_s,
            max_concurrent_batches=_CONCURRENT_BATCHES,
            batch_size_fn=_rows_together,
        )(self._answer_together)
        metrics: Any = importlib.import_module("ray.serve.metrics")
        self._counters = {
            name: metrics.Counter(f"torch2engine_{name}", description=f"{name} so far")
            for name in ("requests", "rows", "batches", "errors")
        }
        self._counts = dict.fromkeys(self._counters, 0)

    async def __call__(self, request: Any) -> Any:
        """Answer one request of HTTP.

        Args:
            request: a starlette.requests.Request.
        """
        responses: Any = importlib.import_module("starlette.responses")
        if request.method == "GET":
            return responses.JSONResponse(self.status())
        body = await request.body()
        try:
            answers = await self.answer(read_arrays(body, self._names))
        except InputError as error:
            return self._error_response(responses, error, _BAD_REQUEST)
        except Torch2EngineError as error:
            return self._error_response(responses, error, _SERVER_ERROR)
        as_archive = body[:2] == b"PK" or len(answers) > 1
        return responses.Response(write_arrays(answers, as_archive), media_type=NPZ if as_archive else NPY)

    async def answer(self, columns: dict[str, Array]) -> dict[str, Array]:
        """Answer the rows of one caller, together with those of others.

        Args:
            columns: an array for each input, by its name; any number of rows.

        Returns:
            output name -> array with as many rows.

        Raises:
            InputError, ShapeError, DtypeError: this request can't be answered; others are not touched.
        """
        rows = self._runner.check(columns)
        self._count("requests")
        self._count("rows", rows)
        if rows > self._runner.batch_size or not rows:
            self._count("batches")
            return await asyncio.to_thread(self._runner, columns)
        found = await self._batched(_Request(columns, rows))
        if isinstance(found, _Failure):
            raise found.error
        return found

    async def _answer_together(self, requests: Sequence[_Request]) -> list[dict[str, Array] | _Failure]:
        """Answer requests, those of one kind in one batch."""
        kinds: dict[Hashable, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(request.kind, []).append(index)
        found: dict[int, dict[str, Array] | _Failure] = {}
        for members in kinds.values():
            self._count("batches")
            answers = await self._answer_one_kind([requests[index] for index in members])
            found.update(zip(members, answers, strict=True))
        return [found[index] for index in range(len(requests))]

    async def _answer_one_kind(self, requests: Sequence[_Request]) -> Sequence[dict[str, Array] | _Failure]:
        columns = {name: np.concatenate([request.columns[name] for request in requests]) for name in self._names}
        try:
            answers = await asyncio.to_thread(self._runner, columns)
        except Exception as error:  # every caller gets it, and the next batch goes on
            return [_Failure(error)] * len(requests)
        ends = np.cumsum([request.rows for request in requests])
        spans = [slice(end - request.rows, end) for request, end in zip(requests, ends, strict=True)]
        return [{name: array[span] for name, array in answers.items()} for span in spans]

    def status(self) -> dict[str, Any]:
        """The inputs and outputs of the model, and the counts of this replica."""
        signature = self._runner.signature
        return {
            "inputs": [str(spec) for spec in signature.call_inputs],
            "outputs": [str(spec) for spec in signature.outputs],
            "batch_size": self._runner.batch_size,
            **self._counts,
        }

    async def check_health(self) -> None:
        """Answer a row of zeros; Ray Serve replaces a replica that can't.

        Raises:
            Torch2EngineError: the engine or its GPU fails.
        """
        await asyncio.to_thread(self._runner.probe)

    def _error_response(self, responses: Any, error: Torch2EngineError, status: int) -> Any:
        self._count("errors")
        return responses.JSONResponse({"error": type(error).__name__, "message": str(error)}, status)

    def _count(self, name: str, amount: int = 1) -> None:
        self._counts[name] += amount
        if amount:
            self._counters[name].inc(amount)

    def __del__(self) -> None:
        runner = self.__dict__.get("_runner")  # the constructor may have failed
        if runner is not None:
            runner.close()


def deployment(
    artifact: Source,
    *,
    replicas: int = 1,
    batch_size: int | None = None,
    max_wait_s: float = 0.005,
    streams: int = 2,
    runtime_config: RuntimeConfig = RuntimeConfig(),
    **serve_options: Any,
) -> Any:
    """Make a Ray Serve application of an artifact: `ray.serve.run(deployment(folder))`.

    Requests wait up to `max_wait_s` for others and are answered together. A request with more rows than a batch is
    answered in several. A replica that is taken down first answers what it has, for up to a minute.

    Args:
        artifact: the folder that `save` wrote, where every host can read it; or a small artifact.
        replicas: how many, each on a GPU of its own for an engine.
        batch_size: rows that are answered together; None for the most that a profile allows.
        max_wait_s: how long a request waits for others, in seconds.
        streams, runtime_config: as for `Processor`.
        serve_options: passed on to `ray.serve.deployment`, e.g. ``max_queued_requests=1000`` or `autoscaling_config`.

    Returns:
        a ray.serve.Application.

    Raises:
        InstallationError: no Ray Serve.
        InputError: a wrong number, or an artifact in memory that is too large.
        ArtifactError: no artifact is there, or it is damaged.
    """
    serve = import_ray("ray.serve")
    found = find_artifact(artifact)
    rows = rows_per_call(found, batch_size)
    actor_options = {} if isinstance(found, OnnxArtifact) else {"num_gpus": 1}
    options: dict[str, Any] = {
        "name": "torch2engine",
        "num_replicas": replicas,
        "ray_actor_options": actor_options,
        # Enough for the batches under way and for the next ones.
        "max_ongoing_requests": max(_LEAST_ONGOING, 2 * _CONCURRENT_BATCHES * rows),
        "graceful_shutdown_timeout_s": _DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    if "autoscaling_config" in serve_options:
        del options["num_replicas"]
    made = serve.deployment(**{**options, **serve_options})(ModelServer)
    return made.bind(actor_argument(artifact), batch_size, max_wait_s, streams, runtime_config)

"""Ray Data and Ray Serve for real: 10 000 rows by id, though an actor is killed; 1 000 requests at once; a drain.

One Ray session for all of it, since it starts processes and takes seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import ray
import ray.data
import ray.serve
import torch

import torch2engine as t2e
from benchmarks import scale, scale_worker, serve_client
from benchmarks.evidence import Evidence
from tests.serving.dies_once import DiesOnce
from tests.serving.id_rows import images, with_images
from tests.serving.meets_others import MeetsOthers
from tests.support.deploy_models import engine, nested
from torch2engine.serving.ray import Predictor, predict
from torch2engine.serving.ray_serve import deployment

REQUESTS = 1000
DRAINED = 200
ROWS = 10_000
BLOCKS = 7  # their ends are not those of batches


@pytest.fixture(scope="module")
def session(repository: Path) -> Iterator[None]:
    """A Ray of its own on this host; it leaves no thread behind."""
    threads_before = {thread.name for thread in threading.enumerate()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray writes a token into the home folder
        patch.setenv("PYTHONPATH", str(repository))
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # or a worker starts for each core, needed or not
        ray.init(
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,  # or the root logger shows every line of other libraries
            object_store_memory=100 << 20,
        )
        yield
        ray.shutdown()
    stop_prefetchers()
    # Beside a thread that may draw random numbers, a deploy leaves the generators alone, and later tests would fail.
    assert {thread.name for thread in threading.enumerate()} - threads_before <= {"tqdm_monitor"}


def stop_prefetchers() -> None:
    """End the threads that Ray 2.60 leaves where not all batches are read."""
    for thread in threading.enumerate():
        if thread.name == "Prefetcher":
            vars(thread)["_target"].__self__.stop()
            thread.join()


@pytest.fixture(scope="module")
def dataset(session: None) -> Any:
    """10 000 rows: id and x."""
    return ray.data.range(ROWS, override_num_blocks=BLOCKS).map_batches(with_images, batch_size=None)


@pytest.fixture(scope="module")
def wanted(folder: str) -> Any:
    """The plain loop's answers, in the order of the ids."""
    return Predictor(folder)({"x": images(np.arange(ROWS, dtype=np.float32))})["output"]


def answers_by_id(answered: Any) -> Any:
    """All answers in the order of their ids, each there exactly once."""
    batches = list(answered.iter_batches(batch_size=None, batch_format="numpy"))
    assert all(set(batch) == {"id", "output"} for batch in batches)
    ids = np.concatenate([batch["id"] for batch in batches])
    assert np.array_equal(np.sort(ids), np.arange(ROWS))
    return np.concatenate([batch["output"] for batch in batches])[np.argsort(ids)]


def test_two_actors_answer_as_the_plain_loop_though_one_is_killed(
    dataset: Any, folder: str, wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row has its own answer once, beside its id; a relative path means what it means to the driver."""
    copied = shutil.copytree(folder, tmp_path / "mlp.t2e")
    monkeypatch.setattr("torch2engine.serving.ray.Predictor", DiesOnce)
    found = answers_by_id(predict(dataset, os.path.relpath(copied), actors=2))
    assert (tmp_path / "killed").read_text().isdigit()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_actor_answers_four_batches_at_a_time(
    dataset: Any, folder: str, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Ray builds and fetches the blocks of some, the engine has the others; each row keeps its own answer."""
    monkeypatch.setattr("torch2engine.serving.ray.Predictor", MeetsOthers)
    found = answers_by_id(predict(dataset, folder))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_benchmark_of_scale_compares_every_answer(
    session: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its dry run times the plain loop and Ray Data on the CPU, finds nothing wrong, and would find a wrong answer."""
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])  # it adds to it
    monkeypatch.setattr(scale, "SPARE_S", 1.0)  # or the input would be thousands of blocks
    options = argparse.Namespace(gpus=1, seconds=0.4, rounds=1, images=512, limit=0.0, serve_seconds=0.0, dry_run=True)
    evidence = Evidence()
    scale.body(evidence, options)
    figures = evidence.figures
    assert (figures["plain.wrong"], figures["ray.wrong"]) == (0, 0)
    assert min(figures["plain.checked"], figures["ray.checked"]) > 512
    assert figures["ray.ratio_to_plain_1gpu"] == pytest.approx(
        figures["ray.rate_1gpu"] / figures["plain.rate_1gpu"], 1e-2
    )
    assert {name for name in figures if name.startswith("batch.")} == {f"batch.b{n}.ms" for n in (1, 2, 4, 8, 16, 32)}
    evidence.figure("plain.rate_2gpu", 1.0)
    scale.write_one_gpu(evidence, tmp_path / "scale.json")
    one = json.loads((tmp_path / "scale.json").read_text())["figures"]
    assert set(evidence.figures) - set(one) == {"plain.rate_2gpu"}
    answers = np.random.default_rng(0).normal(size=(300, 16))
    assert scale_worker.count_wrong(answers, answers) == 0
    assert scale_worker.count_wrong(answers[::-1], answers) == 300
    assert scale_worker.count_wrong(np.full_like(answers, np.nan), answers) == 300
    with pytest.raises(RuntimeError, match="two answers differ by"):
        scale.prove_judge(np.ones((4, 16)))


@pytest.mark.parametrize("count", [1, 256, 1023, 1500, 8192])
def test_blocks_of_the_benchmark_are_large_though_the_images_are_few(count: int) -> None:
    """Ray's blocks hold every image equally often, and none is so small that the input would be thousands of blocks."""
    blocks = scale.block_ids(count)
    assert min(map(len, blocks)) >= scale.BLOCK_ROWS
    times = np.bincount(np.concatenate(blocks), minlength=count)
    assert len(times) == count
    assert set(times) == {-(-scale.BLOCK_ROWS // count)}


def test_what_predict_can_see_is_refused_before_any_actor_starts(dataset: Any, folder: str) -> None:
    """No Dataset, a large artifact in memory, none at all, or a model without a batch: the driver says so."""
    large = engine()
    with pytest.raises(t2e.InputError) as caught:
        predict(dataset, large)
    size = sum(entry["bytes"] for entry in large.manifest()["files"].values())
    assert str(caught.value) == (
        f"artifact: got an artifact of {size} bytes in memory; expected a path, or an artifact of at most 100000 "
        "bytes, since Ray can lose larger ones; save it where every worker can read it, and pass that folder"
    )
    with pytest.raises(t2e.ArtifactError, match=r"none\.t2e"):
        predict(dataset, "none.t2e")
    with pytest.raises(t2e.InputError, match="which does not begin with the batch"):
        predict(dataset, nested()[1]._artifact)
    with pytest.raises(t2e.InputError, match=r"dataset: got a list; expected a ray\.data\.Dataset"):
        predict([1], folder)


# Ray Serve


@pytest.fixture(scope="module")
def url(session: None, folder: str) -> Iterator[str]:
    """One replica behind HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"enable_access_log": False}
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    # All requests may wait in the replica, however long this machine takes to bring them there.
    ray.serve.run(deployment(folder, max_wait_s=0.2, max_ongoing_requests=REQUESTS))
    yield f"http://127.0.0.1:{port}/"
    ray.serve.shutdown()


def npy(array: Any) -> bytes:
    """The bytes of numpy.save."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


async def ask(client: aiohttp.ClientSession, url: str, number: int) -> tuple[int, Any]:
    """A request of one to three rows; its number, and the answer or what came instead."""
    ids = np.arange(1 + number % 3, dtype=np.float32) + number
    async with client.post(url, data=npy(images(ids))) as response:
        body = await response.read()
        return number, np.load(io.BytesIO(body)) if response.status == 200 else body.decode()


async def ask_all(url: str, count: int, meanwhile: Any = None) -> list[tuple[int, Any]]:
    """Requests that are all under way together; `meanwhile` runs in a thread once the first are answered."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=count)) as client:
        tasks = [asyncio.create_task(ask(client, url, number)) for number in range(count)]
        if meanwhile is not None:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(meanwhile)
        return await asyncio.gather(*tasks)


def hold_answers(found: list[tuple[int, Any]], folder: str) -> None:
    """Every request has the answer to its own rows."""
    assert all(isinstance(answer, np.ndarray) for _, answer in found), found
    ids = [np.arange(1 + number % 3, dtype=np.float32) + number for number, _ in found]
    wanted = Predictor(folder)({"x": images(np.concatenate(ids))})["output"]
    np.testing.assert_allclose(np.concatenate([answer for _, answer in found]), wanted, rtol=1e-5, atol=1e-6)


async def get(url: str) -> dict[str, Any]:
    """What the replica says of itself."""
    async with aiohttp.ClientSession() as client, client.get(url) as response:
        status: dict[str, Any] = await response.json()
        return status


def test_requests_at_once_are_answered_in_batches(url: str, folder: str) -> None:
    """1 000 requests at once: each gets its own rows' answers, and many go together into a batch."""
    found = asyncio.run(ask_all(url, REQUESTS))
    assert len(found) == REQUESTS
    hold_answers(found, folder)
    status = asyncio.run(get(url))
    assert status["inputs"] == ["x: float32[batch, 6]"]
    assert (status["requests"], status["rows"], status["errors"]) == (REQUESTS, 1999, 0)
    assert status["batches"] < REQUESTS / 2


def test_bad_request_is_told_alone(url: str) -> None:
    """What a request can't have is its own 400, with the text of the library; larger ones than a batch are answered."""
    bad = {
        "DtypeError": npy(np.zeros((2, 6))),
        "ShapeError": npy(np.zeros((2, 7), np.float32)),
        "InputError": b"not an array",
    }

    async def send() -> tuple[dict[str, tuple[int, dict[str, str]]], Any]:
        async with aiohttp.ClientSession() as client:
            answers: dict[str, tuple[int, dict[str, str]]] = {}
            for name, body in bad.items():
                async with client.post(url, data=body) as response:
                    answers[name] = response.status, await response.json()
            async with client.post(url, data=npy(images(np.arange(20, dtype=np.float32)))) as response:
                return answers, np.load(io.BytesIO(await response.read()))

    answers, large = asyncio.run(send())
    assert {name: (status, body["error"]) for name, (status, body) in answers.items()} == {
        name: (400, name) for name in bad
    }
    assert answers["DtypeError"][1]["message"].startswith("input 'x': got dtype float64; expected float32")
    assert large.shape == (20, 3)


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_load_of_the_benchmark_compares_every_answer(url: str, wanted: Any, rate: float) -> None:
    """Its closed and its open loop find right answers right, and others wrong."""
    rows = images(np.arange(64, dtype=np.float32))
    for reference, share in ((wanted[:64], 0.0), (-wanted[:64], 1.0)):
        found = asyncio.run(serve_client.send_load(url, rows, reference, 0.2, 8, rate))
        assert found["requests"] > 0
        assert found["sent"] > found["requests"]  # the lead is compared as well
        assert (found["wrong"], found["failed"]) == (share * found["sent"], 0)
        assert 0 < found["p50_ms"] <= found["p99_ms"]


def test_replica_that_is_replaced_loses_no_request(url: str, folder: str) -> None:
    """A new version comes while requests are under way: the old replica first answers what it has."""
    found = asyncio.run(ask_all(url, DRAINED, lambda: ray.serve.run(deployment(folder, max_wait_s=0.001))))
    assert len(found) == DRAINED
    hold_answers(found, folder)
    assert asyncio.run(get(url))["requests"] < DRAINED + REQUESTS  # the new replica counts from zero

"""How rates grow from one GPU to two: the plain Processor loop, Ray Data with an actor a GPU, and Ray Serve.

    python -m benchmarks.scale --gpus 2 --out DIR

Enters: one or two GPUs, pycuda, Ray. Leaves: scale.json, and scale_2gpu.json where there are two: its rounds have those
of one GPU among them. ResNet-50 in half precision takes images of bytes and scales them in the graph. Every way runs in
turn, round after round, on images that lie in memory: in its own for the plain loop, in Ray's object store for Ray
Data. Every answer is compared, by its image's number, with the answer of one plain loop on one GPU. Two processes that
share nothing are the host's ceiling. `--dry-run` runs all that on the CPU with a small model and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import torch2engine as t2e
from benchmarks import _script
from benchmarks._worker import visible_devices
from benchmarks.evidence import REPOSITORY, Evidence
from benchmarks.scale_worker import BATCH, BOUND, Array, count_wrong

__all__ = ["main", "make_images"]

COVERS = ("core", "trt", "artifact", "serving")
SCALING = t2e.Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TILES = 7  # colours on each side of an image
BLOCK_ROWS = 1024
CONNECTIONS = 64  # of the load on each replica of Ray Serve
TAIL_ROUNDS = 3  # of the loads whose slowest hundredth counts: one stall of the host then does not decide it
TAIL_SHARE = 0.5  # of the closed loop's time, for each round
QUIET_SHARE = 0.2  # of the closed loop's rate: so few requests rarely wait for each other
CEILING_SHARE = 1 / 3  # of the time of a way: the host's ceiling is only stated
STORE_BYTES = 512 << 20  # of Ray's object store, besides the images
LEAD_S = 2.0  # of Ray Data's answers before the clock starts; as long as half the time at most
SPARE_S = 30.0  # of a run, in Ray's input, so that it never runs dry


def make_images(count: int, side: int) -> Array:
    """(count, side, side, 3) uint8: tiles of random colours, so that no answer is like another's."""
    tiles = np.random.default_rng(0).integers(0, 256, (count, TILES, TILES, 3), np.uint8)
    scale = side // TILES
    return tiles.repeat(scale, axis=1).repeat(scale, axis=2)


class Small(nn.Module):
    """images: (batch, 3, side, side) float32 -> (batch, 16) float32; for a dry run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 16))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Halved(nn.Module):
    """A model in half precision behind float32 inputs and outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.half()).float()


def save_artifact(folder: Path, images: Array, dry_run: bool) -> tuple[str, torch.Tensor]:
    """Export or build the model; where it lies, and PyTorch's answers to the first batch."""
    torch.manual_seed(0)
    axes = {"images": {0: t2e.Axis("batch", 1, BATCH, BATCH)}}
    if dry_run:
        model, device = Small().eval(), "cpu"
    else:
        from benchmarks.zoo import ENTRIES

        model, device = Halved(ENTRIES["resnet50"].make()).cuda().eval(), "cuda"
    x = torch.from_numpy(images[:BATCH]).to(device)
    exported = t2e.export(model, x, axes, preprocess=SCALING)
    artifact = exported if dry_run else t2e.build(exported)
    if isinstance(artifact, t2e.EngineArtifact):
        with t2e.Processor(artifact) as processor:
            for _ in range(5):
                processor.infer(images[:BATCH])
            artifact = processor.compiled().without_onnx()  # what follows starts warm
    return str(artifact.save(folder / "model.t2e")), model(SCALING(x)).cpu()


class Worker:
    """A process of the plain loop, on one GPU."""

    def __init__(self, number: int, artifact: str, images: Path, dry_run: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.scale_worker", artifact, str(images)]
        seen = {} if dry_run else {"CUDA_VISIBLE_DEVICES": visible_devices(os.environ)[number]}
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **seen},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, command: str, **words: Any) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **words}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Wait for the answer to the last command.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker of the plain loop ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def ask(self, command: str, **words: Any) -> dict[str, float]:
        """Give a command and wait for its answer."""
        self.begin(command, **words)
        return self.answer()

    def close(self) -> None:
        """End the process; a second time does nothing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Tally:
    """What one way found, round after round.

    Args:
        rates: images a second, of each round.
        wrong, checked: answers.
        seconds: of steady state, in all.
    """

    rates: list[float] = field(default_factory=list)
    wrong: int = 0
    checked: int = 0
    seconds: float = 0.0

    def add(self, parts: Sequence[dict[str, float]]) -> None:
        """Add a round: what each process found at the same time."""
        self.rates.append(sum(part["images"] / part["seconds"] for part in parts))
        self.wrong += int(sum(part["wrong"] for part in parts))
        self.checked += int(sum(part["checked"] for part in parts))
        self.seconds += min(part["seconds"] for part in parts)

    @property
    def rate(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.rates)


def block_ids(count: int) -> list[Array]:
    """Which images each of Ray's blocks holds: int64 numbers, each image as often as every other.

    No block is smaller than BLOCK_ROWS, for a few images stand in theirs again and again. The input names its blocks
    once a pass, and Ray Data (2.60) compares a block with each equal one that waits: thousands of passes of a small
    block would keep it busy for minutes.
    """
    ids = np.tile(np.arange(count), math.ceil(BLOCK_ROWS / count))
    return np.array_split(ids, len(ids) // BLOCK_ROWS)


class RayWay:
    """Ray Data over images that lie in its object store.

    Args:
        gpus: of this host that Ray may use; 0 for a dry run.
        artifact: a folder.
        images, reference: every image and its answer.
    """

    def __init__(self, gpus: int, artifact: str, images: Array, reference: Array) -> None:
        import ray
        from ray.data.block import BlockAccessor

        self._ray, self._artifact, self._reference = ray, artifact, reference
        blocks = block_ids(len(images))
        self._rows = sum(map(len, blocks))
        self.store = _store(images[0].nbytes * self._rows)
        self._owns_session = not ray.is_initialized()
        if self._owns_session:
            cpus = max(4, len(os.sched_getaffinity(0)))
            ray.init(num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False, **self.store)
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._blocks = [ray.put(BlockAccessor.batch_to_block({"id": ids, "images": images[ids]})) for ids in blocks]

    def run(self, actors: int, seconds: float, rate: float) -> dict[str, float]:
        """Answer for some time, and compare every answer with the reference.

        Args:
            actors: how many, each on a GPU of its own.
            seconds: how long, after the first answers.
            rate: of images that are expected in a second, for the length of the input.
        """
        from torch2engine.serving.ray import predict

        spare = min(SPARE_S, 20 * seconds)
        passes = 1 + int(rate * (seconds + spare)) // self._rows
        dataset = self._ray.data.from_arrow_refs(self._blocks * passes)
        answered = predict(dataset, self._artifact, actors=actors, keep=["id"])
        images = wrong = checked = 0
        first = began = took = 0.0
        for batch in answered.iter_batches(batch_size=None, prefetch_batches=4):
            now = time.perf_counter()
            (found,) = (array for name, array in batch.items() if name != "id")
            wrong += count_wrong(found, self._reference[batch["id"]])
            checked += len(found)
            first = first or now
            if now - first < min(LEAD_S, seconds / 2) or not began:
                began = now
                continue
            images += len(found)
            took = now - began
            if took >= seconds:
                break
        del answered, batch  # ends what still runs
        if not images:
            raise RuntimeError(f"Ray Data answered {checked} images in {LEAD_S} s and then no more")
        return {"images": images, "seconds": took, "wrong": wrong, "checked": checked}

    def close(self) -> None:
        """Give the images back; end Ray if it was started here."""
        self._blocks.clear()
        if self._owns_session:
            self._ray.shutdown()


def _store(image_bytes: int) -> dict[str, Any]:
    """Where Ray keeps objects: in shared memory if that is large enough, else in files of the temporary folder."""
    size = 3 * image_bytes + STORE_BYTES
    place: dict[str, Any] = {"object_store_memory": size}
    if shutil.disk_usage("/dev/shm").free < 1.2 * size:
        os.environ["RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"] = "1"
        place["_plasma_directory"] = tempfile.gettempdir()
    return place


def median_load(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several loads of one kind found: of each figure and each latency the median, and all requests."""
    found: dict[str, Any] = {
        name: statistics.median(one[name] for one in rounds) for name in ("rate", "p50_ms", "p99_ms")
    }
    found["requests"] = sum(one["requests"] for one in rounds)
    found["spread_ms"] = np.median([one["spread_ms"] for one in rounds], axis=0).tolist()
    return found


@dataclass(frozen=True)
class Server:
    """A server under load; what each load finds is kept at once.

    Args:
        url: where requests go.
        folder: of images.npy and reference.npy.
        evidence: whose draft is written after each load.
        samples: of the evidence; load's name -> what it found.
    """

    url: str
    folder: Path
    evidence: Evidence
    samples: dict[str, Any]

    def load(self, name: str, seconds: float, connections: int, rate: float = 0.0) -> dict[str, Any]:
        """Send requests from a process of their own, as `serve_client.send_load` does."""
        files = [str(self.folder / file) for file in ("images.npy", "reference.npy")]
        command = [sys.executable, "-m", "benchmarks.serve_client", self.url, *files]
        words = [*command, str(seconds), str(connections), str(rate)]
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=True)
        found: dict[str, Any] = {"connections": connections, **json.loads(done.stdout.splitlines()[-1])}
        self.samples[name] = found
        self.evidence.write_draft()
        return found

    def load_in_rounds(self, seconds: float, connections: int, closed_rate: float) -> None:
        """The quiet and the open load, in turn; their medians stand in the samples beside the rounds."""
        shares = {"quiet": QUIET_SHARE, "open": 0.5}
        for number in range(TAIL_ROUNDS):
            for name, share in shares.items():
                self.load(f"{name}.{number}", seconds * TAIL_SHARE, 4 * connections, closed_rate * share)
        for name in shares:
            self.samples[name] = median_load([self.samples[f"{name}.{number}"] for number in range(TAIL_ROUNDS)])


def serve_figures(evidence: Evidence, replicas: int, seconds: float, artifact: str, folder: Path) -> None:
    """Ray Serve with a replica a GPU: the rate of a closed loop, and the latency at half of it, one image a request.

    A quiet load, a fifth of that rate, shows how far the latencies lie apart where no request waits for another. Both
    are the medians of several rounds.

    Args:
        evidence: takes the figures; those of two replicas end in "_2gpu".
        replicas: how many.
        seconds: of the closed loop; the other two take half as long again, in all their rounds.
        artifact: a folder.
        folder: of images.npy and reference.npy.

    Raises:
        RuntimeError: an answer was wrong or missing.
    """
    import ray.serve

    from torch2engine.serving.ray_serve import deployment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    connections = replicas * CONNECTIONS
    suffix = "" if replicas == 1 else f"_{replicas}gpu"
    samples: dict[str, Any] = evidence.samples.setdefault(f"serve{suffix}", {})
    server = Server(f"http://127.0.0.1:{port}/", folder, evidence, samples)
    quiet = {"enable_access_log": False}
    ray.serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    ray.serve.run(deployment(artifact, replicas=replicas))
    try:
        rate = server.load("closed", seconds, connections)["rate"]
        evidence.figure(f"serve.rate{suffix}", rate)
        server.load_in_rounds(seconds, connections, rate)
    finally:
        ray.serve.shutdown()
    for name in ("wrong", "failed"):
        evidence.figure(f"serve.{name}{suffix}", sum(sample.get(name, 0) for sample in samples.values()))
    evidence.figure(f"serve.load{suffix}", samples["open"]["rate"])
    for name in ("p50_ms", "p99_ms"):
        evidence.figure(f"serve.{name}{suffix}", samples["open"][name])
    if replicas == 2:
        evidence.figure("serve.efficiency_2gpu", rate / (2 * evidence.figures["serve.rate"]))
    evidence.write_draft()
    if evidence.figures[f"serve.wrong{suffix}"] or evidence.figures[f"serve.failed{suffix}"]:
        raise RuntimeError("Ray Serve's answers were wrong or missing")


def prove_judge(reference: Array) -> float:
    """The least relative distance between the answers to two images; far above what counts as the same answer.

    Raises:
        RuntimeError: another image's answer could pass for the right one.
    """
    some = reference[:256]
    distances = np.linalg.norm(some[:, None] - some[None], axis=2) / np.linalg.norm(some, axis=1)[:, None]
    closest = float(distances[~np.eye(len(some), dtype=bool)].min())
    if closest < 3 * BOUND:
        raise RuntimeError(f"two answers differ by {closest:.2g} only, and {BOUND:g} counts as the same")
    return closest


def record(evidence: Evidence, tallies: dict[str, Tally], gpus: int) -> None:
    """Write what was found so far."""
    for name, tally in tallies.items():
        if not tally.rates:
            continue
        way, _, count = name.partition(".")
        evidence.figure(f"{way}.rate_{count}gpu", tally.rate)
        evidence.figure(f"{way}.seconds_{count}gpu", tally.seconds)
        evidence.samples.setdefault("rates", {})[name] = tally.rates
    for way in ("plain", "ray", "independent"):
        found = [tally for name, tally in tallies.items() if name.startswith(way)]
        evidence.figure(f"{way}.wrong", sum(tally.wrong for tally in found))
        evidence.figure(f"{way}.checked", sum(tally.checked for tally in found))
    one = {way: tallies[f"{way}.1"].rate for way in ("plain", "ray") if tallies[f"{way}.1"].rates}
    if len(one) == 2:
        evidence.figure("ray.ratio_to_plain_1gpu", one["ray"] / one["plain"])
    if gpus == 2:
        for way, base in (("plain", "plain"), ("ray", "ray"), ("independent", "plain")):
            if tallies[f"{way}.2"].rates and base in one:
                evidence.figure(f"{way}.efficiency_2gpu", tallies[f"{way}.2"].rate / (2 * one[base]))
    evidence.write_draft()


def measure(evidence: Evidence, options: argparse.Namespace, workers: Sequence[Worker], ray_way: RayWay) -> None:
    """All ways in turn, round after round."""
    seconds = options.seconds / options.rounds
    tallies = {name: Tally() for name in ("plain.1", "ray.1", "plain.2", "independent.2", "ray.2")}

    def plain(count: int, shared: bool) -> list[dict[str, float]]:
        long = seconds if shared else CEILING_SHARE * seconds
        for rank, worker in enumerate(workers[:count]):
            worker.begin("run", seconds=long, rank=rank if shared else 0, ranks=count if shared else 1)
        return [worker.answer() for worker in workers[:count]]

    def rayed(count: int) -> list[dict[str, float]]:
        return [ray_way.run(count, seconds, 1.2 * count * tallies["plain.1"].rate)]

    ways: dict[str, Callable[[], list[dict[str, float]]]] = {
        "plain.1": lambda: plain(1, True),
        "plain.2": lambda: plain(2, True),
        "independent.2": lambda: plain(2, False),
        "ray.1": lambda: rayed(1),
        "ray.2": lambda: rayed(2),
    }
    began_s = evidence.elapsed_s
    for number in range(options.rounds):
        for name, way in ways.items():
            if name.endswith("2") and options.gpus < 2:
                continue
            tallies[name].add(way())
            print(
                f"round {number}: {name} {tallies[name].rates[-1]:.0f}/s after {evidence.elapsed_s:.0f} s", flush=True
            )
            record(evidence, tallies, options.gpus)
        evidence.samples["rounds"] = number + 1
        if evidence.elapsed_s + (evidence.elapsed_s - began_s) / (number + 1) > options.limit:
            break
    if wrong := sum(tally.wrong for tally in tallies.values()):
        raise RuntimeError(f"{wrong} answers were wrong")


def write_one_gpu(evidence: Evidence, path: Path) -> None:
    """Write what a run on two GPUs found on one of them as evidence of its own."""
    one = copy.copy(evidence)
    one.figures = {name: value for name, value in evidence.figures.items() if not name.endswith("2gpu")}
    one.samples = {name: value for name, value in evidence.samples.items() if not name.endswith("2gpu")}
    one.write(path)


def body(evidence: Evidence, options: argparse.Namespace) -> None:
    side = 28 if options.dry_run else 224
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray's ports are this host's own
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        images = make_images(options.images, side)
        np.save(folder / "images.npy", images)
        artifact, expected = save_artifact(folder, images, options.dry_run)
        print(f"model after {evidence.elapsed_s:.0f} s", flush=True)
        workers = [Worker(n, artifact, folder / "images.npy", options.dry_run) for n in range(options.gpus)]
        for worker in workers:
            stack.callback(worker.close)
            worker.answer()
        answers = str(folder / "reference.npy")
        workers[0].ask("write_reference", path=answers)
        for worker in workers:
            worker.ask("read_reference", path=answers)
        reference = np.load(answers)
        first = {"plain": torch.from_numpy(reference[:BATCH])}
        error = _script.parity(expected, first, "fp32" if options.dry_run else "fp16", "PyTorch vs plain")[0]
        evidence.figure("rel_l2", error)
        evidence.figure("closest_answers", prove_judge(reference))
        print(f"reference after {evidence.elapsed_s:.0f} s", flush=True)
        ray_way = RayWay(0 if options.dry_run else options.gpus, artifact, images, reference)
        stack.callback(ray_way.close)
        del images
        print(f"Ray after {evidence.elapsed_s:.0f} s", flush=True)
        evidence.samples["store"] = ray_way.store
        for rows, milliseconds in workers[0].ask("time_batches").items():
            evidence.figure(f"batch.b{rows}.ms", milliseconds)
        measure(evidence, options, workers, ray_way)
        for worker in workers:
            worker.close()  # Ray Serve has the GPUs for itself
        if options.serve_seconds:
            for replicas in range(1, min(options.gpus, options.serve_replicas) + 1):
                serve_figures(evidence, replicas, options.serve_seconds, artifact, folder)
    if options.gpus == 2:
        write_one_gpu(evidence, options.out / "scale.json")


def main() -> None:
    parser = _script.options(__doc__)
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1, help="of this host")
    parser.add_argument("--seconds", type=float, default=60.0, help="of steady state of each way, over all rounds")
    parser.add_argument("--rounds", type=int, default=3, help="in which every way has its turn")
    parser.add_argument("--images", type=int, default=8192, help="different ones")
    parser.add_argument("--limit", type=float, default=530.0, help="seconds; no round begins that would end later")
    parser.add_argument("--serve-seconds", type=float, default=15.0, help="of each load on Ray Serve; 0 for none")
    parser.add_argument("--serve-replicas", type=int, choices=(1, 2), default=2, help="at most, each on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a small model and ONNX Runtime")
    options = parser.parse_args()
    name = "scale" if options.gpus == 1 else "scale_2gpu"
    _script.run(name, body, parser, COVERS, needs_gpu=not options.dry_run, script="scale")


if __name__ == "__main__":
    main()

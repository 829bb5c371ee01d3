"""The real Triton server on models that `export_triton` wrote: right answers, merged requests, refusals.

    make triton

Enters: the server's binary from the wheel of nvidia-pytriton, and tritonclient. Leaves: triton.json. Separate because
both stand in an environment of their own. That wheel has no backend for ONNX Runtime or TensorRT. So its Python backend
runs the exported graph by ONNX Runtime, behind the configuration as it was written, but for the backend's name. Every
configuration is parsed by tritonclient's protobuf too. Needs no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import nn

import torch2engine as t2e
from benchmarks._script import options, run
from benchmarks.evidence import Evidence

__all__ = ["main"]

COVERS = ("artifact", "core", "exporter", "serving")
REQUESTS = 400
THREADS = 16
SIDE = 8
BATCH = {0: t2e.Axis("batch", 1, 8, 16)}
READY_S = 60.0


class Reader(nn.Module):
    """images: (batch, 3, 8, 8) float32, scale: (batch,) -> (batch, 10), and (batch,): each row's largest."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))

    def forward(self, images: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.layers(images) * scale[:, None]
        return logits, logits.max(1).values


class Centred(nn.Module):
    """Rows that influence each other: the mean of the batch is taken off."""

    def forward(self, images: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1) * scale[:, None]
        return rows - rows.mean(0)


@dataclass(frozen=True)
class Served:
    """A model behind the server.

    Args:
        name: there.
        is_merged: whether requests become rows of one call; the scale of such a request has two dimensions.
        answer: PyTorch's answers to images as bytes, and scales.
    """

    name: str
    is_merged: bool
    answer: Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]


def make_models(repository: Path) -> list[Served]:
    """Export both models; one lets its requests be merged, one does not."""
    torch.manual_seed(0)
    scaling = t2e.Preprocess(mean=0.5, std=0.25)
    sample = (torch.zeros(8, SIDE, SIDE, 3, dtype=torch.uint8), torch.ones(8))
    served: list[Served] = []
    for name, model in (("reader", Reader().eval()), ("centred", Centred().eval())):
        axes = {"images": BATCH, "scale": BATCH}
        artifact = t2e.export(model, sample, axes, preprocess={"images": scaling})
        t2e.export_triton(artifact, repository, name, max_wait_s=0.002)

        def answer(images: torch.Tensor, scale: torch.Tensor, model: nn.Module = model) -> Sequence[torch.Tensor]:
            found = model(scaling(images), scale)
            return found if isinstance(found, tuple) else (found,)

        served.append(Served(name, name == "reader", answer))
    return served


def parse(path: Path) -> Any:
    """Read a configuration by Triton's own protobuf."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def serve_by_python(repository: Path, target: Path) -> None:
    """Copy a repository, with the Python backend in the place of ONNX Runtime's."""
    shutil.copytree(repository, target)
    for config in target.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
        for version in config.parent.glob("[0-9]*"):
            shutil.copy(Path(__file__).with_name("triton_python_model.py"), version / "model.py")


@contextmanager
def running_server(folder: Path, repository: Path) -> Generator[str]:
    """Start the server and wait until it is ready; give its address."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("nvidia-pytriton is not installed; `make triton` makes an environment that has it")
    package = Path(next(iter(spec.submodule_search_locations)))
    binaries = package / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(binaries / "backends" / "python", backends / "python")
    stub = binaries / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    (backends / "python" / "triton_python_backend_stub").chmod(0o755)
    server = folder / "tritonserver"
    shutil.copy(binaries / "bin" / "tritonserver", server)
    server.chmod(0o755)
    libraries = [package.parent / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    ports = [_free_port() for _ in range(3)]
    command = [str(server), f"--model-repository={repository}", f"--backend-directory={backends}"]
    command += [f"--{what}-port={port}" for what, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, f"127.0.0.1:{ports[1]}", folder / "server.log")
            yield f"127.0.0.1:{ports[1]}"
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    from tritonclient import grpc, utils

    ends = time.monotonic() + READY_S
    with grpc.InferenceServerClient(address) as client:
        while process.poll() is None and time.monotonic() < ends:
            try:
                if client.is_server_ready():
                    return
            except utils.InferenceServerException:
                pass
            time.sleep(0.05)
    raise RuntimeError(f"the server is not ready:\n{log.read_text()[-4000:]}")


@dataclass(frozen=True)
class Load:
    """What many requests at once gave.

    Args:
        rate: requests a second.
        wrong: answers that are not PyTorch's.
        largest_error: of an answer.
    """

    rate: float
    wrong: int
    largest_error: float


def ask(client: Any, name: str, images: Any, scale: Any) -> list[Any]:
    """One request."""
    from tritonclient import grpc

    inputs = []
    for tensor, array in (("images", images), ("scale", scale)):
        kind = {"uint8": "UINT8", "float32": "FP32"}[str(array.dtype)]
        inputs.append(grpc.InferInput(tensor, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    found = client.infer(name, inputs)
    return [found.as_numpy(output.name) for output in found.get_response().outputs]


def load(address: str, served: Served) -> Load:
    """Ask many times at once, with one to three rows each, and compare every answer."""
    from tritonclient import grpc

    clients: SimpleQueue[Any] = SimpleQueue()  # a client serves one thread at a time

    def request(number: int) -> float:
        random = np.random.default_rng(number)
        rows = 1 + number % 3
        images = random.integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)
        scale = random.uniform(0.5, 2, (rows, 1)).astype(np.float32)
        client = clients.get()
        try:
            found = ask(client, served.name, images, scale if served.is_merged else scale[:, 0])
        finally:
            clients.put(client)
        wanted = served.answer(torch.from_numpy(images), torch.from_numpy(scale[:, 0]))
        pairs = zip(found, wanted, strict=True)
        return max(float(np.abs(a.reshape(b.shape) - b.detach().numpy()).max()) for a, b in pairs)

    with ExitStack() as stack, ThreadPoolExecutor(THREADS) as pool:
        for _ in range(THREADS):
            clients.put(stack.enter_context(grpc.InferenceServerClient(address)))
        began = time.perf_counter()
        errors = list(pool.map(request, range(REQUESTS)))
        seconds = time.perf_counter() - began
    return Load(REQUESTS / seconds, sum(not error < 1e-4 for error in errors), max(errors))


def executions(address: str, name: str) -> tuple[int, int]:
    """How many requests a model has answered, in how many runs."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(address) as client:
        statistics = client.get_inference_statistics(name).model_stats[0]
    return statistics.inference_stats.success.count, statistics.execution_count


def server_version(address: str) -> str:
    """The version that the server names."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(address) as client:
        return str(client.get_server_metadata().version)


def refusals(address: str) -> dict[str, str]:
    """What the server says to requests that no profile or signature allows; the next good one is answered."""
    from tritonclient import grpc, utils

    scale = np.ones((2, 1), np.float32)
    images = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    bad = {
        "side": (np.zeros((2, SIDE + 1, SIDE, 3), np.uint8), scale),
        "rank": (images[0], scale),
        "dtype": (images.astype(np.float32), scale),
        "batch": (np.zeros((17, SIDE, SIDE, 3), np.uint8), np.ones((17, 1), np.float32)),
        "rows": (images, np.ones((1, 1), np.float32)),
    }
    found: dict[str, str] = {}
    with grpc.InferenceServerClient(address) as client:
        for what, (first, second) in bad.items():
            try:
                ask(client, "reader", first, second)
            except utils.InferenceServerException as error:
                found[what] = str(error)
        ask(client, "reader", images, scale)
    if missing := bad.keys() - found.keys():
        raise RuntimeError(f"the server answered bad requests: {', '.join(sorted(missing))}")
    return found


def measure(evidence: Evidence, arguments: argparse.Namespace) -> None:
    """Serve both models and record what the server did."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder / "written")
        configs = {model.name: parse(folder / "written" / model.name / "config.pbtxt") for model in models}
        evidence.figure("triton.parsed", len(configs))
        evidence.samples["max_batch_size"] = {key: config.max_batch_size for key, config in configs.items()}
        serve_by_python(folder / "written", folder / "served")
        with running_server(folder, folder / "served") as address:
            wrong = 0
            for model in models:
                found = load(address, model)
                answered, runs = executions(address, model.name)
                wrong += found.wrong
                evidence.figure(f"triton.{model.name}.requests", answered)
                evidence.figure(f"triton.{model.name}.runs", runs)
                evidence.figure(f"triton.{model.name}.rate", found.rate)
                evidence.figure(f"triton.{model.name}.largest_error", found.largest_error)
            said = refusals(address)
            evidence.samples["server"] = server_version(address)
        evidence.samples["refusals"] = said
        evidence.figure("triton.wrong", wrong)
        evidence.figure("triton.refused", len(said))
    merged, alone = (evidence.figures[f"triton.{name}.runs"] for name in ("reader", "centred"))
    assert not wrong, f"{wrong} answers were wrong"
    assert merged < REQUESTS / 2, f"{REQUESTS} requests took {merged} runs: they were not merged"
    assert alone == REQUESTS, f"{REQUESTS} requests took {alone} runs: rows that influence each other were merged"


def main() -> None:
    """Measure and write the evidence."""
    run("triton", measure, options(__doc__), covers=COVERS, needs_gpu=False, script="triton_server")


if __name__ == "__main__":
    main()

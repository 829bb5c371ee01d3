"""TRTModule on two GPUs of one host.

Enters: the same engine on both devices. Leaves: proof that each answers on its own and never on the other's memory.
Apart from the GPU suite because that runs where there is one.
"""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import torch2engine as t2e
from tests.gpu import scenarios
from tests.gpu.models import TINY_AXES, Scale, Tiny, tiny_inputs
from tests.gpu.scenarios import CALLS, MOST_ROWS, WIDTH, Engines, Subject

WAYS = pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])


@pytest.fixture(scope="module")
def module() -> t2e.TRTModule:
    assert torch.cuda.device_count() >= 2, "run this suite on a host with two GPUs"
    deployed = t2e.deploy(Scale(), torch.randn(4, 64, device="cuda:0"), {"x": {0: t2e.Axis("n", 1, 64, 4096)}})
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


@pytest.fixture(scope="module")
def engines() -> Engines:
    """Built on cuda:0."""
    assert torch.cuda.current_device() == 0
    return Engines()


@torch.no_grad()
def test_deploy_on_the_second_gpu_while_the_first_is_current() -> None:
    """A model and sample on cuda:1 give a module on cuda:1, whatever device is current."""
    torch.manual_seed(0)
    model = Tiny().to("cuda:1").eval()
    module = t2e.deploy(model, tiny_inputs(device="cuda:1"), TINY_AXES)
    assert (module.device, torch.cuda.current_device()) == (torch.device("cuda:1"), 0)
    inputs = tiny_inputs(5, device="cuda:1")
    got = module(*inputs)["logits"]
    assert got.device == torch.device("cuda:1")
    torch.testing.assert_close(got, model(*inputs)["logits"], rtol=1e-3, atol=1e-4)
    with pytest.raises(t2e.DeviceError, match="got device cuda:0; expected cuda:1, where the module runs"):
        module(*tiny_inputs(5, device="cuda:0"))


def test_pitfall_26_module_moves_to_the_second_gpu(module: t2e.TRTModule) -> None:
    """.to("cuda:1") answers there, leaves the current device alone and keeps its memory off cuda:0."""
    moved = copy.deepcopy(module).to("cuda:1")
    x = torch.randn(1000, 64, device="cuda:1")
    before = torch.cuda.memory_allocated(0)
    result = moved(x)
    assert torch.equal(result, x * 2)
    assert result.device == x.device
    assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(0) == before
    assert module.device == torch.device("cuda:0")


def test_threads_on_both_gpus_get_their_own_answers(module: t2e.TRTModule) -> None:
    """Two threads a GPU, each with its own module or a shared one, get equal results."""
    modules = {0: module, 1: copy.deepcopy(module).to("cuda:1")}
    wrong: list[str] = []

    def work(index: int, seed: int) -> None:
        generator = torch.Generator(f"cuda:{index}").manual_seed(seed)
        for call in range(200):
            x = torch.randn(1 + (seed + call * 7) % 500, 64, device=f"cuda:{index}", generator=generator)
            if not torch.equal(modules[index](x), x * 2):
                wrong.append(f"cuda:{index}, call {call}")

    threads = [threading.Thread(target=work, args=(index % 2, index)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@WAYS
def test_both_gpus_at_once_give_equal_answers(engines: Engines, graphs: bool | str) -> None:
    """One engine on both GPUs, two threads on each, with and without that device current: equal bits, all right."""
    subject = engines.fresh("deep", cuda_graphs=graphs)
    modules = [subject.module.to("cuda:0"), copy.deepcopy(subject.module).to("cuda:1")]
    inputs = [torch.randn(rows, WIDTH) for _ in range(CALLS) for rows in (1, 100, 1000, MOST_ROWS)]

    def answers(thread: int) -> list[torch.Tensor]:
        index = thread % 2
        if thread < 2:  # cuda:0 stays current
            return [modules[index](x.to(f"cuda:{index}")).cpu() for x in inputs]
        with torch.cuda.stream(torch.cuda.Stream(index)):
            return [modules[index](x.to(f"cuda:{index}")).cpu() for x in inputs]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answers, range(4)))
    for x, first, *others in zip(inputs, *found, strict=True):
        assert subject.wrong(first.cuda(), x.cuda()) == 0
        assert all(torch.equal(first, other) for other in others)


@WAYS
def test_everything_on_the_second_gpu_stays_there(engines: Engines, graphs: bool | str) -> None:
    """Weights, working memory, graphs and results of a module on cuda:1 take nothing of cuda:0."""
    module = engines.fresh("deep", cuda_graphs=graphs, output="static").module
    inputs = [torch.randn(rows, WIDTH, device="cuda:1") for rows in (1, 100, MOST_ROWS)]
    torch.cuda.synchronize(0)
    gc.collect()  # of other tests
    allocated = [torch.cuda.memory_allocated(index) for index in range(2)]
    free, _ = torch.cuda.mem_get_info(0)
    module.to("cuda:1")
    for x in inputs:
        for _ in range(CALLS):
            assert module(x).device == x.device
    torch.cuda.synchronize(1)
    assert module.memory_bytes > 1 << 20
    assert torch.cuda.memory_allocated(1) - allocated[1] >= module.memory_bytes
    assert torch.cuda.memory_allocated(0) == allocated[0]
    assert free - torch.cuda.mem_get_info(0)[0] < 8 << 20  # the weights alone have 17 MiB
    assert torch.cuda.current_device() == 0
    del module
    assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(1) == allocated[1]


@WAYS
def test_order_is_kept_on_the_second_gpu(engines: Engines, graphs: bool | str) -> None:
    """Producers, consumers and freed memory on cuda:1 find the order that they find on cuda:0."""
    module = engines.fresh("deep", cuda_graphs=graphs, streams=1).module.to("cuda:1")
    subject = Subject(module, copy.deepcopy(engines.models["deep"]).to("cuda:1"), 1e-3)
    with torch.cuda.device(1):
        streams = scenarios.streams()
        for stream in streams.values():
            assert scenarios.delayed_producer(subject, stream) == 0
            assert scenarios.early_consumer(subject, stream) == 0
            assert scenarios.recycled_memory(subject, stream) == 0
        assert scenarios.switched_streams(subject, list(streams.values())) == 0


def test_users_graph_on_the_second_gpu(engines: Engines) -> None:
    """A module on cuda:1 is captured and replayed there."""
    module = engines.fresh("exact").module.to("cuda:1")
    with torch.cuda.device(1):
        x = torch.randn(64, WIDTH, device="cuda")
        module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            result = module(x)
        for _ in range(CALLS):
            x.normal_()
            graph.replay()
            assert torch.equal(result, x * 2)


def test_ranks_of_torchrun_share_the_images(repository: Path) -> None:
    """A rank for each GPU, by NCCL: rank 0 builds, both answer, and the example compares the gathered answers."""
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / "evaluate_ranks.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(repository), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"rank 0 of 2: 899 of 1797 images", "rank 1 of 2: 898 of 1797 images"} <= set(done.stdout.splitlines())

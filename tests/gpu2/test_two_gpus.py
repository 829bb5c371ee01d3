"""TRTModule on two GPUs of one host.

Enters: the same engine on both devices. Leaves: proof that each answers on its own and never on the other's memory.
Apart from the GPU suite because that runs where there is one.
"""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from models import TINY_AXES, Scale, Tiny, tiny_inputs

import torch2engine as t2e


@pytest.fixture(scope="module")
def module() -> t2e.TRTModule:
    assert torch.cuda.device_count() >= 2, "run this suite on a host with two GPUs"
    deployed = t2e.deploy(Scale(), torch.randn(4, 64, device="cuda:0"), {"x": {0: t2e.Axis("n", 1, 64, 4096)}})
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


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
    with pytest.raises(t2e.DeviceError, match="device is cuda:0, the module runs on cuda:1"):
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

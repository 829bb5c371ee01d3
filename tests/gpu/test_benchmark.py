"""Host and device time on a GPU: `torch2engine.deployed.benchmark` tells one from the other."""

from __future__ import annotations

import pytest
import torch

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, tiny_inputs
from torch2engine.core.errors import DeviceError, ParityError
from torch2engine.deployed.benchmark import benchmark, measure

CYCLES = 4_000_000  # about 2 ms


def nap() -> None:
    """Work of a known length for the GPU, launched in a moment."""
    torch.cuda._sleep(CYCLES)


def nap_and_wait() -> None:
    """The same, and the host waits."""
    torch.cuda._sleep(CYCLES)
    torch.cuda.synchronize()


def test_pitfall_31_launching_is_not_computing() -> None:
    """The host's time is that of the launch, the device's that of the work; a call that waits takes it of both."""
    side = torch.cuda.Stream()
    timings = measure(
        {"launched": nap, "on a stream": nap, "waited for": nap_and_wait},
        device="cuda",
        rounds=5,
        streams={"on a stream": side},
    )
    for name in ("launched", "on a stream"):
        assert timings[name].host_us < 500
        assert timings[name].device_us is not None
        assert timings[name].device_us > 1000
    assert timings["waited for"].host_us > 1000


def test_trains_do_not_fill_the_launch_queue() -> None:
    """The longer a call takes on the device, the fewer are queued at a time; never more than a queue holds."""
    # How many short calls make a train depends on what else keeps the machine busy. A long one can only take longer.
    timings = measure({"long": nap, "short": lambda: torch.cuda._sleep(100)}, device="cuda", rounds=3)
    assert timings["long"].calls <= 10
    assert timings["long"].calls < timings["short"].calls <= 200


def test_module_is_timed_beside_its_model() -> None:
    """Both sides, host and device, on the same inputs, after parity; wrong answers are not timed."""
    model = Tiny().cuda().eval()
    module = t2e.deploy(model, tiny_inputs(), TINY_AXES)
    report = benchmark(module, model, sizes=[{"batch": 1}, {"batch": 32}], rounds=3)
    assert [row.case for row in report.rows] == ["batch 1", "batch 1", "batch 32", "batch 32"]
    assert {row.candidate for row in report.rows} == {module.runtime, "PyTorch eager"}
    assert all(row.timing.host_us > 0 and (row.timing.device_us or 0) > 0 for row in report.rows)
    assert report.parity is not None
    assert report.parity.passed
    assert report.subject == torch.cuda.get_device_name()
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    with pytest.raises(ParityError):
        benchmark(module, model, rounds=1)
    with pytest.raises(DeviceError):
        benchmark(module, model.cpu(), rounds=1)


def test_module_times_itself() -> None:
    """A module's own benchmark() takes min, opt and max after parity; without a model it times the module alone."""
    model = Tiny().cuda().train()
    module = t2e.deploy(model, tiny_inputs(), TINY_AXES)
    report = module.benchmark(model, rounds=2)
    cases = ["batch 1", "batch 8", "batch 32"]
    assert report.parity is not None
    assert report.parity.passed
    assert {row.case for row in report.parity.rows} == set(cases)
    assert [(row.case, row.candidate) for row in report.rows] == [
        (case, candidate) for case in cases for candidate in (module.runtime, "PyTorch eager")
    ]
    assert model.training
    alone = module.benchmark(sizes=[{"batch": 3}], rounds=1)
    assert alone.parity is None
    assert [(row.case, row.candidate) for row in alone.rows] == [("batch 3", module.runtime)]

"""`module.explain`: calls are measured, and what makes them slow is named with a way out."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.deploy_models import deploy, mlp, nested, nested_inputs, sample
from torch2engine.core.errors import DtypeError, ShapeError
from torch2engine.core.finding import Finding
from torch2engine.core.spec import Signature, TensorSpec
from torch2engine.deployed.call_findings import (
    converted_inputs,
    default_stream,
    host_bound,
    slow_first_call,
    small_batch,
)
from torch2engine.deployed.explanation import Explanation, GraphPartRecord
from torch2engine.deployed.timing import Timing


def timing(host_us: float, device_us: float | None) -> Timing:
    """A call's times; the percentiles don't matter."""
    return Timing(host_us=host_us, host_p95_us=host_us, device_us=device_us, device_p95_us=device_us)


@pytest.mark.parametrize(("host_us", "device_us", "expected"), [(90, 100, 1), (30, 100, 0), (500, None, 0)])
def test_call_is_host_bound_where_launching_takes_most_of_it(
    host_us: float, device_us: float | None, expected: int
) -> None:
    """On the CPU there is nothing to launch."""
    assert len(list(host_bound(timing(host_us, device_us)))) == expected


def test_default_stream_is_named_with_both_times() -> None:
    """Only where it costs more than a tenth."""
    (finding,) = default_stream(timing(20, 50), timing(20, 40))
    assert finding.measured == "a call takes 50 µs on the default stream and 40 µs on a stream of its own"
    assert list(default_stream(timing(20, 42), timing(20, 40))) == []


def test_first_call_is_slow_by_its_time_and_its_share() -> None:
    """A long first call of a slow model is none, nor is a short one; the cure is what the module has."""
    (finding,) = slow_first_call(900_000, 300, {"batch": 8}, can_warm_up=True)
    assert finding.measured == "the first call takes 900 ms, later ones take 0.30 ms"
    assert finding.suggestion.startswith("module.warmup([{'batch': 8}])")
    assert "warmup" not in next(iter(slow_first_call(900_000, 300, {}, can_warm_up=False))).suggestion
    assert [*slow_first_call(900_000, 100_000, {}, True), *slow_first_call(9_000, 10, {}, True)] == []


def test_batch_is_small_where_more_entries_take_little_longer() -> None:
    """By the time of one entry."""
    (finding,) = small_batch("batch", {2: 40.0, 16: 80.0})
    assert finding.measured == "a call takes 40 µs with batch 2 and 80 µs with batch 16: 4.0 times less for each entry"
    assert list(small_batch("batch", {2: 40.0, 16: 300.0})) == []


def test_inputs_that_every_call_converts_are_named() -> None:
    """Another dtype or order in memory costs a copy in each call; what the engine takes as it is costs nothing."""
    signature = Signature(
        (TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "int64", (3,))), (TensorSpec("y", "float32", (2,)),)
    )
    (finding,) = converted_inputs(signature, [torch.rand(3, 2).t(), torch.zeros(3, dtype=torch.int32)])
    assert finding.measured == (
        "every call converts inputs: 'a' is not contiguous (strides (1, 2)); 'b' is int32, and the engine takes int64"
    )
    assert list(converted_inputs(signature, [torch.rand(2, 3), torch.zeros(3, dtype=torch.int64)])) == []


def test_small_calls_are_measured_and_inputs_stay() -> None:
    """Eight entries of a tiny model take as long as one; the caller's own tensor is neither changed nor kept."""
    _, module = mlp()
    x = sample(1, 6)
    before = x.clone()
    explanation = module.explain(x)
    (finding,) = [one for one in explanation.findings if one.name == "small batch"]
    assert "with batch 1 and " in finding.measured
    assert "with batch 8: " in finding.measured
    assert torch.equal(x, before)
    assert [(part.runs_in, part.calls) for part in explanation.parts] == [("ONNX Runtime", 1)]
    assert (explanation.engine_share, explanation.obstacles) == (1.0, ())
    assert str(finding) in str(explanation).splitlines()
    assert json.loads(json.dumps(explanation.to_json()))["findings"][-1] == finding.to_json()


def test_invented_inputs_have_the_opt_sizes() -> None:
    """Without a sample there is still an answer; nested inputs are fine."""
    _, module = nested()
    sizes: set[int] = set()
    handle = module.register_forward_pre_hook(lambda _, args: sizes.add(args[0].image.shape[0]))
    assert {one.name for one in module.explain().findings} <= {"small batch", "slow first call"}
    handle.remove()
    assert sizes == {4}
    assert module.explain(nested_inputs(4)).seconds > 0


def test_findings_of_the_deploy_are_among_them() -> None:
    """They come first, as the report has them."""
    _, module = mlp()
    planted = Finding(name="wide profile", measured="m", why="w", suggestion="s")
    loaded = type(module)(module._artifact, dataclasses.replace(module.report, findings=(planted,)))
    assert t2e.explain(loaded, sample(8, 6)).findings[0] == planted


def test_input_that_the_engine_does_not_take_is_refused() -> None:
    """As in a call; a size that another policy would answer is not the engine's own time."""
    _, module = mlp()
    with pytest.raises(ShapeError, match="got batch = 9"):
        module.explain(sample(9, 6))
    with pytest.raises(DtypeError):
        module.explain(sample(4, 6, dtype=torch.float64))


class Counter(nn.Module):
    """Counts up in place."""

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return total.add_(x)


def test_inputs_that_the_model_writes_into_are_not_changed() -> None:
    """Calls are timed on copies, which have their first values again in every call: no position runs out of range."""
    config = t2e.BuildConfig(mutations="write_back")
    x, total = torch.ones(2, 3), torch.zeros(2, 3)
    module = deploy(Counter(), (x, total.clone()), config=config)
    seen: set[float] = set()
    module.register_forward_pre_hook(lambda _, args: seen.add(float(args[1].max())))
    module.explain((x, total))
    assert torch.equal(total, torch.zeros(2, 3))
    assert seen == {0.0}


def test_table_keeps_the_figures_of_a_reason_and_ends_a_long_one_between_words() -> None:
    """Whoever reads why a part stays in PyTorch sees how far its engine was off, and how far it might be."""
    worst = (
        "parity, PyTorch vs TensorRT-RTX 1.6.1.120: got output 'output.0' of case 'sample': relative L2 is 0.000346, "
        "at most 0.00025 is allowed"
    )
    others = " | ".join(f"output 'output.{number}' of case 'sample': relative L2 is 0.1" for number in range(1, 9))
    parts = [GraphPartRecord("PyTorch", 4, "model.py:3", reason) for reason in (worst, f"{worst} | {others}", "")]
    shown = str(Explanation(parts, (), 1.0)).splitlines()
    assert shown[2].endswith(worst)
    assert worst in shown[3]
    assert shown[3].endswith(" …")
    assert len(shown[3]) < len(shown[2]) + 120
    assert shown[4].endswith("model.py:3")

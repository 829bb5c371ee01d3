"""`torch2engine.deployed.throughput`: which rates are best, how they are shown, and what counts as an item."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.deploy_models import mlp, nested
from torch2engine.core.errors import InputError
from torch2engine.core.spec import Axis, Signature, TensorSpec
from torch2engine.deployed.benchmark import BenchmarkReport
from torch2engine.deployed.throughput import Rate, ThroughputRow, batch_axis, best_rates, items_per_call, read_counts


def row(items: int, streams: int, calls_per_s: float) -> ThroughputRow:
    """A row of made-up rates, whose slowest turn had half the rate."""
    rate = Rate(calls_per_s=calls_per_s, least_calls_per_s=calls_per_s / 2, calls=100)
    return ThroughputRow(case=f"batch {items}", streams=streams, items=items, rate=rate, sizes={"batch": items})


ROWS = (row(1, 1, 900.5), row(1, 2, 1500.0), row(1, 4, 1499.0), row(32, 1, 700.0), row(32, 2, 690.0), row(32, 4, 10.0))


def signature(*shapes: tuple[int | str, ...]) -> Signature:
    """Float inputs of these shapes, with the axes that they name."""
    names = sorted({dim for shape in shapes for dim in shape if isinstance(dim, str)})
    _, module = mlp()
    return Signature(
        inputs=tuple(TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(shapes)),
        outputs=module.signature.outputs,
        axes=tuple(Axis(name, 1, 4, 8) for name in names),
        parameters=module.signature.parameters,
        output=module.signature.output,
    )


def test_best_rate_of_each_case_is_the_curve() -> None:
    """One row a case, that with the most items a second, whatever its number of streams."""
    report = BenchmarkReport(subject="NVIDIA H200", precision="fp16", rows=(), throughput=ROWS)
    assert report.best_rates == best_rates(ROWS) == (ROWS[1], ROWS[3])
    assert [best.items_per_s for best in report.best_rates] == [1500, 22_400]


def test_report_prints_rates_by_streams() -> None:
    """The whole text, to the letter; without rates there is no such table."""
    report = BenchmarkReport(subject="NVIDIA H200", precision="fp16", rows=(), throughput=ROWS)
    assert str(report).splitlines()[2:] == [
        "items per second, calls in flight on several streams:",
        "case      1 stream  2 streams  4 streams  best",
        "batch 1      900.5       1500       1499     2",
        "batch 32     22400      22080        320     1",
    ]
    assert "streams" not in str(BenchmarkReport(subject="CPU", precision="fp32", rows=()))


def test_json_has_the_rates() -> None:
    """What is printed is there as data, with the slowest turn beside the median."""
    report = BenchmarkReport(subject="NVIDIA H200", precision="fp16", rows=(), throughput=ROWS[:1])
    assert json.loads(json.dumps(report.to_json()))["throughput"] == [
        {
            "case": "batch 1",
            "streams": 1,
            "items": 1,
            "sizes": {"batch": 1},
            "items_per_s": 900.5,
            "least_items_per_s": 450.25,
            "calls": 100,
        }
    ]


def test_items_are_what_all_inputs_begin_with() -> None:
    """The batch is a dynamic axis, or else a number that all begin with; without one a call is one item."""
    assert items_per_call(signature(("batch", 3)), [torch.zeros(5, 3)]) == 5
    assert items_per_call(signature((4, 3), (4,)), [torch.zeros(4, 3), torch.zeros(4)]) == 4
    assert items_per_call(signature((4, 3), (2, 3)), [torch.zeros(4, 3), torch.zeros(2, 3)]) == 1
    assert items_per_call(signature(("batch", 3), ("rows", 3)), [torch.zeros(4, 3), torch.zeros(4, 3)]) == 1
    assert items_per_call(signature(("batch", 3), (4,)), [torch.zeros(5, 3), torch.zeros(4)]) == 5
    assert items_per_call(signature(()), [torch.zeros(())]) == 1


def test_batch_axis_is_the_one_that_inputs_begin_with() -> None:
    """Named by the signature; anything else is refused with the way out."""
    assert batch_axis(mlp()[1].signature) == "batch"
    assert batch_axis(nested()[1].signature) == "batch"
    for shapes in [(("batch", 3), ("rows", 3)), ((4, 3),), ((4, "batch"),), ((),)]:
        inputs = ", ".join(map(str, signature(*shapes).inputs))
        with pytest.raises(InputError) as caught:
            batch_axis(signature(*shapes))
        assert str(caught.value) == (
            f"batches: got a module of {inputs}; expected inputs that begin with one and the same dynamic axis; "
            "name axes and sizes instead, in sizes=[...], or leave both out"
        )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "streams: got (); expected a positive int, or several of them; e.g. streams=(1, 2, 4)"),
        ("12", "streams: got '12'; expected a positive int, or several of them; e.g. streams=(1, 2, 4)"),
        (True, "streams: got True; expected a positive int, or several of them; e.g. streams=(1, 2, 4)"),
        ((1, 2.0), "streams: got (1, 2.0); expected a positive int, or several of them; e.g. streams=(1, 2, 4)"),
        ([1, 8], "streams: got [1, 8]; expected 1..4, which may compute at once; load it otherwise"),
    ],
)
def test_what_is_no_number_of_streams_is_refused(given: object, text: str) -> None:
    """With what is allowed, and what to do for more."""
    with pytest.raises(InputError) as caught:
        read_counts("streams", given, 4, "load it otherwise")
    assert str(caught.value) == text


def test_numbers_are_read_once_each() -> None:
    """One number alone is a list of one; what is named twice is measured once."""
    assert read_counts("streams", 2) == [2]
    assert read_counts("streams", (1, 4, 1, 2)) == [1, 4, 2]
    assert read_counts("batches", range(1, 4)) == [1, 2, 3]

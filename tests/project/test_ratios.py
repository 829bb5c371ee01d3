"""`benchmarks/ratios.py`: each ratio is of the right two times, and the means are over the cases that there are."""

from __future__ import annotations

import pytest

from benchmarks.ratios import ratios_of

FIGURES = {
    "mlp.b1.t2e_default.device_us": 10.0,
    "mlp.b1.t2e_static_graph.device_us": 8.0,
    "mlp.b1.eager.device_us": 100.0,
    "mlp.b1.eager_graph.device_us": 16.0,
    "mlp.b1.compile.device_us": 40.0,
    "mlp.b1.compile_reduce_overhead.device_us": 10.0,
    "mlp.b1.torch_tensorrt.device_us": 50.0,
    "mlp.b1.torch_tensorrt_graph.device_us": 20.0,
    "mlp.b1.t2e_default.host_us": 1.0,
    "vit_b_16.b32.t2e_default.device_us": 40.0,
    "vit_b_16.b32.eager.device_us": 100.0,
    "resnet50.b1.dynamic.device_us": 11.0,
    "resnet50.b1.static.device_us": 10.0,
    "resnet50.b8.dynamic.device_us": 10.0,
    "resnet50.b8.static.device_us": 10.0,
}


def test_ratios_are_of_our_way_with_the_same_promise() -> None:
    """Below 1 is faster; of both modes of torch.compile the one that is harder to beat counts."""
    found = ratios_of(FIGURES)
    case = {name.removeprefix("mlp.b1."): value for name, value in found.items() if name.startswith("mlp.b1.")}
    assert case == {
        "ratio_to_eager": 0.1,
        "ratio_to_eager_graph": 0.5,
        "ratio_to_compile": 0.8,
        "ratio_to_tt": 0.2,
        "ratio_to_tt_graph": 0.5,
    }


def test_means_are_over_the_cases_that_were_timed() -> None:
    """A case without a peer counts in no mean of that peer, and the number of cases is told."""
    found = ratios_of(FIGURES)
    assert found["geomean.ratio_to_eager"] == pytest.approx(0.2)  # of 0.1 and 0.4
    assert (found["largest.ratio_to_eager"], found["cases.ratio_to_eager"]) == (0.4, 2)
    assert (found["geomean.ratio_to_tt_graph"], found["cases.ratio_to_tt_graph"]) == (pytest.approx(0.5), 1)
    assert not [name for name in found if name.startswith("vit_b_16") and "eager" not in name]


def test_dynamic_sizes_are_as_slow_as_their_slowest_batch() -> None:
    """The figure is the largest ratio to an engine for that batch alone."""
    assert ratios_of(FIGURES)["resnet50.dynamic_over_static"] == pytest.approx(1.1)


def test_no_figures_give_no_ratios() -> None:
    """A run that has timed nothing yet has no means."""
    assert ratios_of({"resnet50.build_s": 1.0}) == {}

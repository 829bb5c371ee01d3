"""The sentences that docs/speed.md says about its tables follow from the figures, the unfavourable ones too."""

from __future__ import annotations

from benchmarks import conclusions

TITLES = {"net": "Net, 2 layers", "other": "Other"}
PEERS = {"eager": "PyTorch eager", "graph": "eager in a CUDA graph"}
COUNTERPARTS = {"eager": "t2e_default", "graph": "t2e_static_graph"}


def whole(**changed: float) -> dict[str, float]:
    """Figures of two models at a batch each; ours take half the time of the others."""
    figures = {
        f"{case}.{way}.device_us": time
        for case in ("net.b1", "other.b32")
        for way, time in (("t2e_default", 50.0), ("t2e_static_graph", 50.0), ("eager", 100.0), ("graph", 100.0))
    }
    return figures | {name.replace("__", "."): value for name, value in changed.items()}


def test_every_case_in_which_another_way_is_faster_is_named() -> None:
    """With the factor; a way that is faster nowhere is named as such."""
    figures = whole(net__b1__graph__device_us=40.0, other__b32__t2e_default__device_us=20.0)
    assert conclusions.of_models(figures, TITLES, PEERS, COUNTERPARTS) == [
        "**Whole models against eager**: GPU time is 5.0 times shorter at best, for Other at batch 32. At worst the "
        "factor is 2.00, for Net at batch 1.",
        "**Faster on the GPU: eager in a CUDA graph**, in 1 of 2 cases: Net at batch 1 (we take 1.25 times as long).",
        "Faster on the GPU in no case that was timed: PyTorch eager (2).",
    ]


def test_precision_that_is_slower_than_fp16_or_refused_is_named() -> None:
    """Its gain over fp32 alone would mislead."""
    figures: dict[str, float] = {}
    for word, gain, error in (("fp16", 4.0, 1e-3), ("fp8", 0.97, 7e-2)):
        for model in TITLES:
            name = f"{model}.{word}"
            figures |= {f"{name}.speedup_over_fp32": gain, f"{name}.rel_l2": error, f"{name}.default_rel_l2": 6e-2}
    figures["net.fp8.speedup_over_fp32"] = 5.0
    figures["net.fp8.rel_l2"] = 1e-2
    assert conclusions.of_precisions(figures, TITLES, ("fp32", "tf32", "fp16", "fp8")) == (
        "**Precisions against fp32**: fp16 is 4.00 times as fast. fp8 is 0.97 to 5.00 times as fast, and clearly "
        "slower than fp16 in 1 of 2 models; the default tolerance refuses Other."
    )


def test_refit_that_differs_from_a_new_engine_is_said_to() -> None:
    """The largest difference counts."""
    figures = {
        f"{model}.{name}": value
        for model in TITLES
        for name, value in (("refit_ms", 20.0), ("first_call_ms", 40.0), ("refit_vs_rebuild_rel_l2", 0.0))
    }
    said = conclusions.of_refits(figures, TITLES)
    assert said.endswith(
        "20 ms, and the first call after it 40 ms. The answers are exactly those of an engine that was built afresh."
    )
    figures["other.refit_vs_rebuild_rel_l2"] = 2e-4
    assert "within 2.0e-04 of those" in conclusions.of_refits(figures, TITLES)

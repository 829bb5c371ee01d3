"""What the tables of docs/speed.md say, in sentences, for a reader who wants no tables.

Enters: the figures of the benchmarks. Leaves: a sentence or a few for each table, also about what is slower here.
Separate from `table` because each sentence follows from figures: it stays true when they are measured anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

__all__ = ["of_calls", "of_deploys", "of_models", "of_precisions", "of_processor", "of_refits", "of_throughput"]

Figures = Mapping[str, float]


def of_calls(figures: Figures) -> str:
    """The host's time of a call, and where it is not below TensorRT's own."""
    ours, raw, shapes = (figures[f"tiny.{name}.host_us"] for name in ("own_stream", "raw", "shapes64"))
    copied = figures["tiny.graph_copy.host_us"] / raw
    return (
        f"**A call** takes the host {ours:.0f} µs, where TensorRT's enqueue alone takes {raw:.0f} µs. With 64 shapes "
        f"in random order it takes {shapes:.0f} µs. Where inputs are copied into a CUDA graph's own, it takes "
        f"{copied:.2f} times the enqueue."
    )


def of_models(
    figures: Figures, titles: Mapping[str, str], peers: Mapping[str, str], counterparts: Mapping[str, str]
) -> list[str]:
    """The largest and the smallest gain over eager on the GPU, and every case in which another way is faster.

    Args:
        figures: of models.json.
        titles: of models, by their name in the figures.
        peers: names of other ways -> titles, those to compare with.
        counterparts: names of other ways -> ours with the same promise.
    """
    timed = [name.removesuffix(".eager.device_us") for name in figures if name.endswith(".eager.device_us")]
    cases = sorted(case for case in timed if f"{case}.t2e_default.device_us" in figures)
    gains = {case: figures[f"{case}.eager.device_us"] / figures[f"{case}.t2e_default.device_us"] for case in cases}
    most, least = (choose(gains, key=lambda case: gains[case]) for choose in (max, min))
    sentences = [
        f"**Whole models against eager**: GPU time is {gains[most]:.1f} times shorter at best, for "
        f"{_case(most, titles)}. At worst the factor is {gains[least]:.2f}, for {_case(least, titles)}."
    ]
    behind_everywhere: list[str] = []
    for peer, title in peers.items():
        ratios = {
            case: figures[f"{case}.{counterparts[peer]}.device_us"] / figures[f"{case}.{peer}.device_us"]
            for case in cases
            if f"{case}.{peer}.device_us" in figures and f"{case}.{counterparts[peer]}.device_us" in figures
        }
        behind = sorted((case for case in ratios if ratios[case] > 1), key=lambda case: -ratios[case])
        named = ", ".join(f"{_case(case, titles)} (we take {ratios[case]:.2f} times as long)" for case in behind)
        if behind:
            sentences.append(f"**Faster on the GPU: {title}**, in {len(behind)} of {len(ratios)} cases: {named}.")
        elif ratios:
            behind_everywhere.append(f"{title} ({len(ratios)})")
    if behind_everywhere:
        sentences.append(f"Faster on the GPU in no case that was timed: {'; '.join(behind_everywhere)}.")
    return sentences


def of_precisions(figures: Figures, titles: Mapping[str, str], precisions: Sequence[str]) -> str:
    """How much each precision gains over fp32, and what is refused or slower than fp16."""
    sentences: list[str] = []
    for word in precisions:
        gains = {model: gain for model in titles if (gain := figures.get(f"{model}.{word}.speedup_over_fp32"))}
        if word == "fp32" or not gains:
            continue
        sentence = f"{word} is {_span(gains.values(), '.2f')} times as fast"
        fp16 = {model: figures.get(f"{model}.fp16.speedup_over_fp32", 0.0) for model in gains}
        slower = [model for model in gains if gains[model] < 0.9 * fp16[model]]
        if slower and word not in ("fp16", "tf32"):
            sentence += f", and clearly slower than fp16 in {_count(slower, gains)}"
        refused = [
            _short(titles[model])
            for model in gains
            if figures[f"{model}.{word}.rel_l2"] > figures[f"{model}.{word}.default_rel_l2"]
        ]
        if refused:
            sentence += f"; the default tolerance refuses {', '.join(refused)}"
        sentences.append(f"{sentence}.")
    return " ".join(["**Precisions against fp32**:", *sentences])


def of_refits(figures: Figures, titles: Mapping[str, str]) -> str:
    """What a refit costs, and whether it gives the engine that a build gives."""
    refits = [figures[f"{model}.refit_ms"] for model in titles]
    calls = [figures[f"{model}.first_call_ms"] for model in titles]
    difference = max(figures[f"{model}.refit_vs_rebuild_rel_l2"] for model in titles)
    same = "exactly those" if difference == 0 else f"within {difference:.1e} of those"
    return (
        f"**A refit** takes {_span(refits, '.0f')} ms, and the first call after it {_span(calls, '.0f')} ms. The "
        f"answers are {same} of an engine that was built afresh."
    )


def of_deploys(figures: Figures, titles: Mapping[str, str]) -> str:
    """What deploy() takes, and beside it ways to an engine that compare nothing."""
    seconds = {model: value for model in titles if (value := figures.get(f"{model}.fp16.seconds")) is not None}
    fastest, slowest = (choose(seconds, key=lambda model: seconds[model]) for choose in (min, max))
    sentences = [
        f"**`deploy`** takes {seconds[fastest]:.1f} s for {_short(titles[fastest])}, and at most "
        f"{seconds[slowest]:.1f} s, for {_short(titles[slowest])}, the comparison with the model included."
    ]
    for ratio, title in (
        ("ratio_to_alone", "Export and build alone"),
        ("ratio_to_torch_tensorrt", "Torch-TensorRT at one size"),
    ):
        ratios = [value for model in seconds if (value := figures.get(f"{model}.fp16.{ratio}")) is not None]
        if ratios:
            sentences.append(f"{title}: we take {_span(ratios, '.1f')} times as long.")
    return " ".join(sentences)


def of_processor(figures: Figures) -> str:
    """What `infer` and `infer_stream` take beside the usual way and beside the engine."""
    batches = (1, 8, 32)
    gains = [figures[f"infer.b{batch}.tutorial_ms"] / figures[f"infer.b{batch}.ms"] for batch in batches]
    engine = [figures[f"infer.b{batch}.ms"] / figures[f"infer.b{batch}.engine_ms"] for batch in batches]
    stream = figures["infer_stream.b32.ms"] / figures["infer_stream.b32.engine_ms"]
    return (
        f"**numpy in, numpy out**: `infer` is {_span(gains, '.1f')} times as fast as the tutorials' way. It waits for "
        f"copies, and takes {_span(engine, '.1f')} times the engine's time alone. `infer_stream` overlaps them, and "
        f"takes {stream:.2f} times the engine's time."
    )


def of_throughput(figures: Figures, titles: Mapping[str, str]) -> str:
    """What several streams gain, and how busy the GPU is when arrays come from the host."""
    gains: dict[str, float] = {}
    for name, best in figures.items():
        case, _, what = name.rpartition(".")
        if what == "best_items_per_s" and f"{case}.streams1.items_per_s" in figures:
            gains[case] = best / figures[f"{case}.streams1.items_per_s"]
    most = max(gains, key=lambda case: gains[case])
    behind = [case for case in gains if figures[f"{case}.speedup_over_eager_graph"] < 1]
    eager = f" Eager in CUDA graphs answers more in {len(behind)} of {len(gains)} cases." if behind else ""
    return (
        f"**Several calls in flight** answer {_span(gains.values(), '.2f')} times as many items a second as one "
        f"stream; most for {_case(most, titles)}.{eager} With `infer_stream` the GPU computes for at least "
        f"{100 * figures['gpu_busy_share']:.1f} % of the time."
    )


def _case(name: str, titles: Mapping[str, str]) -> str:
    model, _, batch = name.rpartition(".b")
    return f"{_short(titles[model])} at batch {batch}"


def _short(title: str) -> str:
    """A model's name without its sizes."""
    return title.partition(",")[0]


def _span(values: Collection[float], form: str) -> str:
    """The smallest and the largest value, or one where both read the same."""
    ends = [format(end, form) for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def _count(some: Sequence[str], of: Mapping[str, float]) -> str:
    return "every model" if len(some) == len(of) else f"{len(some)} of {len(of)} models"

"""The figures of three pages in docs/, from the evidence: `python -m benchmarks.table`, or with `--check`.

Enters: the evidence of the benchmarks. Leaves: the pages with the text between
`<!-- speed -->` and `<!-- /speed -->` made anew; nothing stands there for evidence that does not exist. A
peer that is faster than torch2engine needs its reason in `REASONS`, or no table is made.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import conclusions
from benchmarks.evidence import REPOSITORY, complaints

__all__ = ["REASONS", "between", "generate", "main", "origin_of", "read_evidence", "rewritten"]

# Figure of models.json (or a pattern of such) -> why the peer is faster there.
_KERNELS = (
    "Its kernels are faster here: cuDNN, cuBLAS and Triton choose for this GPU, while TensorRT-RTX is made for the RTX "
    "line and keeps to kernels for any shape (see `kernel_specialization`); the graph around them costs the same."
)
_BARE = (
    "A bare replay, which looks at nothing: neither at shapes, dtypes, devices and streams, nor whether the input is "
    "the one that was captured."
)
_GRAPH = (
    "The same kernel library, from another graph: its converters wrote one that TensorRT-RTX fuses better, or chooses "
    "other kernels for."
)
REASONS: dict[str, str] = {
    "*.eager_graph.host_us": _BARE,
    "*.compile_reduce_overhead.device_us": _KERNELS,
    "*.compile.device_us": _KERNELS,
    "*.eager_graph.device_us": _KERNELS,
    "*.eager.device_us": _KERNELS,
    "*.torch_tensorrt.device_us": _GRAPH,
    "*.torch_tensorrt_graph.device_us": _GRAPH,
}

START, END = "<!-- speed -->", "<!-- /speed -->"
TITLES = {
    "tiny": "tiny MLP",
    "resnet50": "ResNet-50",
    "convnext_tiny": "ConvNeXt-T",
    "efficientnet_b0": "EfficientNet-B0",
    "mobilenet_v3": "MobileNetV3-L",
    "swin_t": "Swin-T",
    "vit_b_16": "ViT-B/16",
    "dinov2_s": "DINOv2-S",
    "bert": "BERT-base, 128 tokens",
    "llama_6": "LLaMA's form, 6 layers, 128 tokens",
    "unet": "U-Net of a diffusion model",
    "lstm": "LSTM, 2 layers, 64 steps",
}
FLOAT_TITLES = {
    "resnet50": "ResNet-50",
    "vit_b_16": "ViT-B/16",
    "bert": "BERT-base, 128 tokens",
    "convnext_tiny": "ConvNeXt-T",
    "lstm": "LSTM, 2 layers, 64 steps",
}
PROCESSOR_ROWS = {
    "infer.b1": "`infer`, batch 1",
    "infer.b8": "`infer`, batch 8",
    "infer.b32": "`infer`, batch 32",
    "infer_stream.b32": "`infer_stream`, batch 32",
    "infer_stream_pinned.b32": "the same, arrays page-locked",
    "infer_stream_uint8.b32": "the same, pageable uint8 images",
}
PHASES = ("capture", "export", "reference", "check", "precision", "build", "parity", "speed")  # of deploy()
# One of them -> why it may take more than half of the time.
LONG_PHASES = {
    "export": "torch.export and torch.onnx go through the model in Python, operator by operator",
    "parity": "TensorRT-RTX compiles its kernels for this GPU at the first call of each size",
}
REFIT_TITLES = {**FLOAT_TITLES, "efficientnet_b0": "EfficientNet-B0"}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")
# Candidate -> heading; the first two are ours, the third is what both stand on.
CANDIDATES = {
    "t2e_default": "torch2engine",
    "t2e_static_graph": "torch2engine, static",
    "raw": "TensorRT's enqueue alone",
    "eager": "PyTorch eager",
    "eager_graph": "eager in a CUDA graph",
    "compile": "torch.compile",
    "compile_reduce_overhead": "torch.compile, reduce-overhead",
    "torch_tensorrt": "Torch-TensorRT",
    "torch_tensorrt_graph": "Torch-TensorRT, CUDA graph",
    "polygraphy": "Polygraphy",
}
# Peer -> ours with the same promise: a result that lasts, or one that the next call overwrites.
COUNTERPARTS = {
    "eager": "t2e_default",
    "eager_graph": "t2e_static_graph",
    "compile": "t2e_default",
    "compile_reduce_overhead": "t2e_static_graph",
    "torch_tensorrt": "t2e_default",
    "torch_tensorrt_graph": "t2e_default",
    "polygraphy": "t2e_default",
}
# Ratio of models.json -> what it compares with.
RATIOS = {
    "ratio_to_eager": "PyTorch eager",
    "ratio_to_eager_graph": "eager in a CUDA graph",
    "ratio_to_compile": "the faster mode of torch.compile",
    "ratio_to_tt": "Torch-TensorRT",
    "ratio_to_tt_graph": "Torch-TensorRT in its CUDA graph",
}
CALLS = (
    ("own_stream", "from a stream of one's own", "raw", "TensorRT's enqueue alone"),
    ("default_stream", "from the default stream", "raw_plus_events", "the same, with the events that order it"),
    ("alternating", "two shapes in turn", "own_stream", "one shape"),
    ("shapes64", "64 shapes in random order", "shapes64_fixed", "one shape"),
    ("graph_copy", "`cuda_graphs=True`, 32 inputs in turn", "raw", "TensorRT's enqueue alone"),
    ("graph_static", '`cuda_graphs=True, output="static"`, one input', "raw", "TensorRT's enqueue alone"),
)


class TableError(Exception):
    """The evidence does not make a table that may be published."""


def read_evidence(path: Path) -> dict[str, Any] | None:
    """Read one file of evidence; None if there is none.

    Raises:
        TableError: it has another form, or comes from an unclean tree.
    """
    if not path.exists():
        return None
    evidence: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    wrong = list(complaints(evidence))
    if not evidence.get("clean"):
        wrong.append("it was not measured on a clean tree")
    if wrong:
        raise TableError(f"{path.name}: " + "; ".join(wrong))
    return evidence


def _time(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:.0f}"


def _rows(cells: Sequence[Sequence[str]]) -> list[str]:
    head, *body = cells
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]


def origin_of(evidence: Mapping[str, Any]) -> str:
    """What evidence was measured with: the GPU, the versions, the commit."""
    versions = evidence["versions"]
    names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "torch": "torch"}
    used = ", ".join(f"{title} {versions[name]}" for name, title in names.items() if name in versions)
    return f"{evidence['gpu']}, {used}, commit {evidence['commit'][:8]}"


def _calls(evidence: Mapping[str, Any]) -> list[str]:
    """The host's time of a call where nothing else counts."""
    figures = evidence["figures"]
    cells = [["a tiny MLP, half precision", "host µs per call", "ratio", "to"]]
    for name, title, base, other in CALLS:
        here, there = figures[f"tiny.{name}.host_us"], figures[f"tiny.{base}.host_us"]
        cells.append([title, _time(here), f"{here / there:.2f}", f"{other} ({_time(there)})"])
    return [
        f"Host time per call, median ({origin_of(evidence)}, `call_overhead.json`):",
        "",
        *_rows(cells),
    ]


def _precisions(evidence: Mapping[str, Any]) -> list[str]:
    """What each precision costs and gives, for whole models."""
    figures: Mapping[str, float] = evidence["figures"]
    left_out: Mapping[str, str] = evidence["samples"].get("left_out", {})
    head = ["float32 model, precision", "rel_l2", "multiply-adds in it", "batch 1, µs", "batch 8, µs", "× fp32"]
    cells = [head]
    notes: list[str] = []
    for model, title in FLOAT_TITLES.items():
        for word in PRECISIONS:
            name = f"{model}.{word}"
            if name in left_out:
                notes.append(f"{title} in {word}: {left_out[name].partition(chr(10))[0]}.")
                cells.append([f"{title}, {word}", *["–"] * 5])
                continue
            if f"{name}.rel_l2" not in figures:
                raise TableError(f"{name} is missing, and nothing says why")
            error, bound = figures[f"{name}.rel_l2"], figures[f"{name}.default_rel_l2"]
            share = "" if word in ("fp32", "tf32") else f"{100 * figures[f'{name}.mac_share']:.1f} %"
            times = [_time(figures[f"{name}.b{batch}.device_us"]) for batch in (1, 8)]
            beyond = " (refused by default)" if error > bound else ""
            speedup = f"{figures[f'{name}.speedup_over_fp32']:.2f}"
            cells.append([f"{title}, {word}", f"{error:.1e}{beyond}", share, *times, speedup])
    return [
        f"Float32 models in each precision ({origin_of(evidence)}, `precision.json`): relative L2 error of the "
        "engine, what TensorRT says that its layers compute in the precision, GPU time per call, and speed at batch 8 "
        "against fp32 (TF32 off, as for all but tf32):",
        "",
        *_rows(cells),
        *(line for note in notes for line in ("", note)),
    ]


def _refits(evidence: Mapping[str, Any]) -> list[str]:
    """How engines follow models in training, and what it costs to do without."""
    figures: Mapping[str, float] = evidence["figures"]
    cells = [
        ["float32 model, fp16 engine", "refit, ms", "next call, ms", "off the model", "off an engine built afresh"]
    ]
    for model, title in REFIT_TITLES.items():
        try:
            times = [f"{figures[f'{model}.{name}']:.1f}" for name in ("refit_ms", "first_call_ms")]
            errors = [f"{figures[f'{model}.{name}']:.1e}" for name in ("rel_l2", "refit_vs_rebuild_rel_l2")]
        except KeyError as error:
            raise TableError(f"refit.json: {error} is missing") from None
        cells.append([title, *times, *errors])
    deploy, parser = figures["resnet50.deploy_s"], figures["resnet50.reexport_lower_parser_refit_s"]
    speedup = figures["resnet50.refit_speedup_over_deploy"]
    cached, keyed = figures["resnet50.cached_deploy_s"], figures["resnet50.keyed_deploy_s"]
    return [
        f"Engines that follow a model in training ({origin_of(evidence)}, `refit.json`): a refit after each of "
        f"{evidence['samples']['options']['steps']} optimizer steps, medians; relative L2 error of the answers, the "
        "largest one:",
        "",
        *_rows(cells),
        "",
        f"Without a refit ResNet-50 takes {deploy:.1f} s to deploy again, {speedup:.0f} times as long, or "
        f"{parser:.1f} s to export, to lower and to hand to TensorRT's refitter of ONNX files. In a new process, with "
        f"its engine in the cache, deploy takes {cached:.2f} s beside the export, and {keyed:.2f} s in all with other "
        "weights under a `cache_key`.",
    ]


def _processor(evidence: Mapping[str, Any]) -> list[str]:
    """numpy in, numpy out, beside the usual way and the engine alone."""
    figures: Mapping[str, float] = evidence["figures"]
    columns = ("the tutorials' way", "with our choice of profile", "engine alone", "with its first profile")
    cells = [["ResNet-50 in half precision, float32 images", "ms", *(f"{column}, ms" for column in columns)]]
    try:
        for row, title in PROCESSOR_ROWS.items():
            times = [
                figures[f"{row}.ms"],
                *(figures.get(f"{row}.tutorial{way}_ms", 0) for way in ("", "_same_profile")),
            ]
            times += [figures[f"{row}.engine_ms"], figures.get(f"{row}.engine_all_sizes_ms", 0)]
            cells.append([title, *(f"{time:.2f}" if time else "" for time in times)])
        start, threads = figures["cold_start_s"], figures["processor.stress.threads"]
        calls, wrong = figures["processor.stress.calls"], figures["processor.stress.wrong"]
    except KeyError as error:
        raise TableError(f"processor.json: {error} is missing") from None
    return [
        f"`Processor`, numpy in and numpy out ({origin_of(evidence)}, `processor.json`): medians; of a stream the "
        "time for each item. The engine has a profile for batches of 1 to 32, and one of its own for each batch of the "
        "table, which a `Processor` chooses. The tutorials' way takes its memory anew in every call, waits, and uses "
        "the first profile for all; the engine alone is TensorRT's enqueue with its inputs on the GPU:",
        "",
        *_rows(cells),
        "",
        f"A process without PyTorch has its first answer {start:.2f} s after its start. {calls:.0f} calls of "
        f"{threads:.0f} threads, with a TRTModule's between them: {wrong:.0f} wrong.",
    ]


def _throughput(evidence: Mapping[str, Any]) -> list[str]:
    """Items a second by batch and number of streams, and through a Processor."""
    figures: Mapping[str, float] = evidence["figures"]
    found = [re.fullmatch(r"(\w+)\.b(\d+)\.streams(\d+)\.items_per_s", name) for name in figures]
    keys = [match.groups() for match in found if match]
    counts = sorted({int(streams) for _, _, streams in keys})
    streams = [f"{count} stream{'s' * (count > 1)}" for count in counts]
    cells = [["half precision, items a second", *streams, "eager in CUDA graphs, at best"]]
    is_behind = False
    try:
        for model, title in TITLES.items():
            for batch in sorted({int(batch) for name, batch, _ in keys if name == model}):
                begin = f"{model}.b{batch}"
                rates = [figures[f"{begin}.streams{count}.items_per_s"] for count in counts]
                eager = max(figures[f"{begin}.streams{count}.eager_graph_items_per_s"] for count in counts)
                is_behind |= eager > max(rates)
                mark = " (1)" if eager > max(rates) else ""
                cells.append([f"{title}, batch {batch}", *(f"{rate:.0f}" for rate in rates), f"{eager:.0f}{mark}"])
        sentences = [_fed_by_the_host(figures, model) for model in TITLES if any(name == model for name, _, _ in keys)]
    except KeyError as error:
        raise TableError(f"throughput.json: {error} is missing") from None
    return [
        f"Calls in flight on several streams at once ({origin_of(evidence)}, `throughput.json`): medians. The engine "
        "has a profile for each batch. Beside it stands PyTorch in CUDA graphs, one for each stream:",
        "",
        *_rows(cells),
        "",
        *([f"(1) {_KERNELS}", ""] if is_behind else []),
        " ".join(sentences),
    ]


def _fed_by_the_host(figures: Mapping[str, float], model: str) -> str:
    """What `infer_stream` makes of the GPU with a model, at the largest batch."""
    found = [re.fullmatch(rf"{model}\.processor\.b(\d+)\.items_per_s", name) for name in figures]
    batch = max((int(match[1]) for match in found if match), default=0)
    rate, share = (figures[f"{model}.processor.b{batch}.{what}"] for what in ("items_per_s", "gpu_busy_share"))
    return (
        f"From pageable float32 arrays, `infer_stream` answers {rate:.0f} items a second with {TITLES[model]} at batch "
        f"{batch}. An engine is computing for {100 * share:.1f} % of the time."
    )


def _deploys(evidence: Mapping[str, Any]) -> list[str]:
    """The seconds of deploy(), by its phases, beside ways that compare nothing."""
    figures: Mapping[str, float] = evidence["figures"]
    errors: Mapping[str, str] = evidence["samples"]["errors"]
    phases = [phase for phase in PHASES if any(f".phase.{phase}_s" in name for name in figures)]
    cells = [["half precision, s", "deploy", *phases, "export and build alone", "Torch-TensorRT, one size"]]
    notes: list[str] = []
    for model, title in TITLES.items():
        name = f"{model}.fp16"
        for kind, begin, suffix in (("deploy", "", ""), ("four_profiles", "four_profiles_", ", four profiles")):
            failure = errors.get(f"{model} {kind}", "")
            if f"{name}.{begin}seconds" not in figures and not failure:
                continue
            columns = [f"{begin}seconds", *(f"{begin}phase.{phase}_s" for phase in phases)]
            columns += ["alone.seconds", "torch_tensorrt_s"] if kind == "deploy" else []
            shown = [figures.get(f"{name}.{column}") for column in columns]
            texts = ["–" if value is None else f"{value:.1f}" for value in shown]
            cells.append([f"{title}{suffix}", *texts, *[""] * (len(cells[0]) - 1 - len(texts))])
            notes += [f"{title}{suffix}: {failure.partition(chr(10))[0]}."] if failure else []
            notes += _long_phases(figures, f"{name}.{begin}", f"{title}{suffix}", phases)
    together = int(evidence["samples"]["options"].get("at_a_time", "1"))
    beside = f", {together} processes at a time" if together > 1 else ""
    return [
        f"Seconds of `deploy`, each in a fresh process ({origin_of(evidence)}{beside}, `deploy.json`). What the last "
        "two columns make is compared with nothing. A dash was not timed, or failed:",
        "",
        *_rows(cells),
        *(line for note in notes for line in ("", note)),
    ]


def _long_phases(figures: Mapping[str, float], begin: str, title: str, phases: Sequence[str]) -> list[str]:
    """Why a phase takes more than half of the time.

    Raises:
        TableError: nothing says why.
    """
    notes: list[str] = []
    for phase in phases:
        share = figures.get(f"{begin}phase.{phase}_s", 0.0) / figures.get(f"{begin}seconds", 1.0)
        if share <= 0.5:
            continue
        if phase not in LONG_PHASES:
            raise TableError(
                f"{begin}phase.{phase}_s is {share:.0%} of the time: say why in LONG_PHASES, or shorten it"
            )
        notes.append(f"{title}: {phase} is {share:.0%} of the time. {LONG_PHASES[phase]}.")
    return notes


class _Models:
    """The table of whole models, with its notes."""

    def __init__(self, evidence: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
        self.evidence, self.reasons = evidence, reasons
        self.figures: Mapping[str, float] = evidence["figures"]
        self.left_out: Mapping[str, str] = evidence["samples"].get("left_out", {})
        self.notes: list[str] = []
        self.slower: set[str] = set()  # models that a peer is faster with

    def lines(self) -> list[str]:
        found = sorted(
            {
                (list(TITLES).index(match[1]), int(match[2]), match[1])
                for name in self.figures
                if (match := re.match(r"(\w+)\.b(\d+)\.\w+\.host_us", name))
            }
        )
        known = {part for figure in (*self.figures, *self.left_out) for part in figure.split(".")[2:3]}
        names = [name for name in CANDIDATES if name in known]
        cells = [["model, batch", *(CANDIDATES[name] for name in names)]]
        for _, batch, model in found:
            prefix = f"{model}.b{batch}"
            cells.append([f"{TITLES[model]}, {batch}", *(self.cell(prefix, name) for name in names)])
        profiles = ", with a profile of its own for each batch" if "own_profiles" in self.evidence["samples"] else ""
        kind = f"half precision{profiles}"
        return [
            f"Time per call in µs, GPU / host, medians ({origin_of(self.evidence)}, {kind}, `models.json`):",
            "",
            *_rows(cells),
            "",
            "Static: `cuda_graphs=True, output=\"static\"` from a stream of one's own; like a CUDA graph of PyTorch's "
            "and reduce-overhead it hands out results that the next call overwrites. TensorRT's enqueue alone has "
            "its shapes, addresses and memory set beforehand. The other columns are called from the default stream and "
            "give results that last. A dash was not timed.",
            *(line for number, note in enumerate(self.notes, 1) for line in ("", f"({number}) {note}")),
            *self.findings(),
            *self.ratios(),
            *self.first_answer(),
        ]

    def findings(self) -> list[str]:
        """What `explain` says of the engines that a peer is faster than."""
        known: Mapping[str, list[str]] = self.evidence["samples"].get("findings", {})
        lines: list[str] = []
        for model in sorted(self.slower & set(known), key=list(TITLES).index):
            said = "; ".join(finding.partition(". ")[0] for finding in known[model]) or "nothing that could be mended"
            lines += ["", f"`explain` finds in the engine of {TITLES[model]}: {said}."]
        return lines

    def ratios(self) -> list[str]:
        """Geometric means, and what has a figure of its own."""
        lines: list[str] = []
        cells = [["our GPU time over that of", "geometric mean", "largest", "cases"]]
        for ratio, title in RATIOS.items():
            if f"geomean.{ratio}" in self.figures:
                values = [self.figures[f"{kind}.{ratio}"] for kind in ("geomean", "largest", "cases")]
                cells.append([title, f"{values[0]:.2f}", f"{values[1]:.2f}", f"{values[2]:.0f}"])
        if len(cells) > 1:
            lines += ["", *_rows(cells)]
        shares = {model: self.figures.get(f"{model}.fused_share") for model in TITLES}
        named = [f"{TITLES[model]} {100 * share:.0f} %" for model, share in shares.items() if share is not None]
        if named:
            lines += ["", f"Attention that runs as one kernel, by TensorRT's inspector: {'; '.join(named)}."]
        dynamic = self.figures.get("resnet50.dynamic_over_static")
        if dynamic is not None:
            lines += [
                "",
                f"A ResNet-50 for batches of 1 to 32 without sizes of their own takes at most {dynamic:.2f} times as "
                "long as engines that were each built for one batch.",
            ]
        return lines

    def cell(self, prefix: str, name: str) -> str:
        figure = f"{prefix}.{name}"
        if f"{figure}.host_us" not in self.figures:
            why = self.left_out.get(figure)
            if why is None:
                raise TableError(f"{figure} is missing, and nothing says why")
            return "–" if why.startswith("not timed") else f"– {self.note(f'{CANDIDATES[name]}: {why}')}"
        cell = " / ".join(_time(self.figures[f"{figure}.{what}"]) for what in ("device_us", "host_us"))
        marks = [self.faster(prefix, name, what) for what in ("device_us", "host_us")]
        return " ".join([cell, *dict.fromkeys(mark for mark in marks if mark)])

    def faster(self, prefix: str, name: str, what: str) -> str:
        """The mark of the reason why a peer is faster than we are, or ""."""
        if name not in COUNTERPARTS:
            return ""
        figure = f"{prefix}.{name}.{what}"
        ours = self.figures.get(f"{prefix}.{COUNTERPARTS[name]}.{what}")
        if ours is None or self.figures[figure] >= ours:
            return ""
        if what == "device_us":
            self.slower.add(prefix.partition(".")[0])
        for pattern, reason in self.reasons.items():
            if fnmatch.fnmatchcase(figure, pattern):
                return self.note(reason)
        raise TableError(f"{figure} is {self.figures[figure]}, ours {ours}: say why in REASONS, or be faster")

    def note(self, text: str) -> str:
        if text not in self.notes:
            self.notes.append(text)
        return f"({self.notes.index(text) + 1})"

    def first_answer(self) -> list[str]:
        names = ("context_mib_b1", "context_mib_engine", "warm_start_s", "cold_start_s")
        found = [self.figures.get(f"resnet50.{name}") for name in names]
        if None in found:
            return []
        here, whole, warm, cold = found
        return [
            "",
            f"The ResNet-50 works in {here:.0f} MiB at batch 1, where its engine may need {whole:.0f}. A fresh process "
            f"loads it and has its first answer {warm:.2f} s after imports, {cold:.2f} s without the kernels that "
            "`save` keeps.",
        ]


def generate(results: Path, reasons: Mapping[str, str] = REASONS) -> str:
    """The text between the marks.

    Args:
        results: the folder of evidence.
        reasons: as `REASONS`.

    Returns:
        Markdown, "" without evidence.

    Raises:
        TableError: evidence of another form or from an unclean tree, a peer that is faster for no stated reason, or
            one that is missing for none.
    """
    calls, models = read_evidence(results / "call_overhead.json"), read_evidence(results / "models.json")
    precisions, refits = read_evidence(results / "precision.json"), read_evidence(results / "refit.json")
    processor, deploys = read_evidence(results / "processor.json"), read_evidence(results / "deploy.json")
    throughput = read_evidence(results / "throughput.json")
    parts: list[list[str]] = []
    sentences: list[str] = []
    if calls is not None:
        parts.append(_calls(calls))
        sentences.append(conclusions.of_calls(calls["figures"]))
    if models is not None:
        parts.append(_Models(models, reasons).lines())
        peers = {name: CANDIDATES[name] for name in COUNTERPARTS}
        sentences += conclusions.of_models(models["figures"], TITLES, peers, COUNTERPARTS)
    if precisions is not None:
        parts.append(_precisions(precisions))
        sentences.append(conclusions.of_precisions(precisions["figures"], FLOAT_TITLES, PRECISIONS))
    if refits is not None:
        parts.append(_refits(refits))
        sentences.append(conclusions.of_refits(refits["figures"], REFIT_TITLES))
    if processor is not None:
        parts.append(_processor(processor))
        sentences.append(conclusions.of_processor(processor["figures"]))
    if throughput is not None:
        parts.append(_throughput(throughput))
        sentences.append(conclusions.of_throughput(throughput["figures"], TITLES))
    if deploys is not None:
        parts.append(_deploys(deploys))
        sentences.append(conclusions.of_deploys(deploys["figures"], TITLES))
    if not parts:
        return ""
    summary = ["What the tables say:", "", *(f"- {sentence}" for sentence in sentences)]
    return "\n\n".join("\n".join(part) for part in [summary, *parts])


def between(page: str) -> str:
    """What stands between the marks.

    Raises:
        TableError: the marks are not there once each.
    """
    if page.count(START) != 1 or page.count(END) != 1 or page.index(START) > page.index(END):
        raise TableError(f"the page needs {START} and {END}, once each and in this order")
    return page.partition(START)[2].partition(END)[0].strip()


def rewritten(page: str, text: str) -> str:
    """The page with `text` between the marks."""
    between(page)
    before, after = page.partition(START)[0], page.partition(END)[2]
    return f"{before}{START}\n{text}\n{END}{after}" if text else f"{before}{START}\n{END}{after}"


def main() -> None:
    from benchmarks import fallback_table, fleet_table  # which show figures by the functions above

    docs = REPOSITORY / "docs"
    makers = {"fleet.md": fleet_table.generate, "fallback.md": fallback_table.generate}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page says anything else")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, nargs="+", default=[docs / "speed.md", *(docs / name for name in makers)])
    options = parser.parse_args()
    for path in options.page:
        try:
            page = path.read_text(encoding="utf-8")
            made = rewritten(page, makers.get(path.name, generate)(options.results))
        except TableError as error:
            sys.exit(str(error))
        if options.check and made != page:
            sys.exit(f"{path.name} does not say what the evidence says: run `python -m benchmarks.table`")
        if not options.check:
            path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Made-up evidence, in the form of what the benchmarks write.

Enters: figures. Leaves: sheets, and folders that hold them. A room of its own because the tests of the form and those
of the tables of speed start from the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import table


def sheet(name: str, figures: dict[str, float], **samples: Any) -> dict[str, Any]:
    """Evidence of that name with these figures."""
    return {
        "schema": 2,
        "name": name,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "clean": True,
        "covers": ["torch2engine"],
        "gpu": "NVIDIA H200",
        "gpu_count": 1,
        "driver": "580.1",
        "versions": {"torch": "2.11.0", "tensorrt_rtx": "1.6.1.120"},
        "started": "2026-01-01T00:00:00Z",
        "seconds": 1.5,
        "figures": figures,
        "samples": samples,
        "tests": [],
    }


def overhead() -> dict[str, Any]:
    """Made-up evidence of call_overhead."""
    names = {name for name, _, _, _ in table.CALLS} | {base for _, _, base, _ in table.CALLS}
    return sheet("call_overhead", {f"tiny.{name}.host_us": 20.0 + index for index, name in enumerate(sorted(names))})


def whole(**peers: float) -> dict[str, Any]:
    """Made-up evidence of models: ours takes 100 µs of the GPU and 40 of the host, peers the given times half of it."""
    figures = {
        f"resnet50.{name}": value
        for name, value in (("context_mib_b1", 31.3), ("context_mib_engine", 131.8), ("warm_start_s", 0.31))
    }
    figures["resnet50.cold_start_s"] = 3.2
    for batch in (8, 32, 1):
        for name in table.CANDIDATES:
            device_us = peers.get(name, 100.0 if name in ("raw", "t2e_default", "t2e_static_graph") else 250.0)
            figures[f"resnet50.b{batch}.{name}.device_us"] = device_us
            figures[f"resnet50.b{batch}.{name}.host_us"] = 0.4 * device_us
    return sheet("models", figures)


def precisions(**left_out: str) -> dict[str, Any]:
    """Made-up evidence of precision: each next type has ten times the error and half the time."""
    figures: dict[str, float] = {}
    for model in table.FLOAT_TITLES:
        for index, word in enumerate(table.PRECISIONS):
            found = {
                "rel_l2": 1e-5 * 10**index,
                "default_rel_l2": 0.05,
                "mac_share": 0.975,
                "b1.device_us": 100 / 2**index,
                "b8.device_us": 800 / 2**index,
                "speedup_over_fp32": 2.0**index,
            }
            figures |= {f"{model}.{word}.{name}": value for name, value in found.items()}
    return sheet("precision", figures, left_out=left_out)


def published(folder: Path, *sheets: dict[str, Any]) -> Path:
    """A folder with this evidence."""
    for data in sheets:
        (folder / f"{data['name']}.json").write_text(json.dumps(data))
    return folder


def refits() -> dict[str, Any]:
    """Made-up evidence of refit: each next model takes a millisecond more."""
    figures: dict[str, float] = {}
    for index, model in enumerate(table.REFIT_TITLES):
        figures[f"{model}.refit_ms"] = 12.34 + index
        figures[f"{model}.first_call_ms"] = 30.0 + index
        figures[f"{model}.rel_l2"] = 2e-3
        figures[f"{model}.refit_vs_rebuild_rel_l2"] = 1e-5
    figures["resnet50.deploy_s"], figures["resnet50.refit_speedup_over_deploy"] = 24.68, 2000.0
    figures["resnet50.reexport_lower_parser_refit_s"] = 15.0
    figures["resnet50.cached_deploy_s"], figures["resnet50.keyed_deploy_s"] = 0.84, 1.26
    return sheet("refit", figures, options={"steps": "50"})


def processor() -> dict[str, Any]:
    """Made-up evidence of processor: each next row takes a tenth of a millisecond more."""
    figures: dict[str, float] = {"cold_start_s": 0.987}
    for index, row in enumerate(table.PROCESSOR_ROWS):
        figures[f"{row}.ms"] = 2 + index / 10
        figures[f"{row}.engine_ms"] = 1.9
        if row.startswith("infer."):
            figures[f"{row}.tutorial_ms"] = 4.0
            figures[f"{row}.tutorial_same_profile_ms"] = 3.0
            figures[f"{row}.engine_all_sizes_ms"] = 2.5
        elif "uint8" not in row:
            figures[f"{row}.tutorial_ms"] = 9.2
            figures[f"{row}.tutorial_same_profile_ms"] = 8.0
    stress = {"calls": 10_000, "wrong": 0, "threads": 4}
    return sheet("processor", figures | {f"processor.stress.{name}": value for name, value in stress.items()})


def throughput() -> dict[str, Any]:
    """Made-up evidence of throughput: two streams answer half as much again, and eager more at a batch of 8 alone."""
    figures: dict[str, float] = {"gpu_busy_share": 0.98765}
    for model, rate in (("resnet50", 1000.0), ("vit_b_16", 500.0)):
        for batch in (1, 8):
            name = f"{model}.b{batch}"
            for streams, factor in ((1, 1.0), (2, 1.5)):
                figures[f"{name}.streams{streams}.items_per_s"] = rate * batch * factor
                figures[f"{name}.streams{streams}.eager_graph_items_per_s"] = rate * batch * (0.75 if batch == 1 else 2)
            figures[f"{name}.best_items_per_s"] = rate * batch * 1.5
            figures[f"{name}.best_streams"] = 2
            figures[f"{name}.speedup_over_eager_graph"] = 2.0 if batch == 1 else 0.75
        figures[f"{model}.processor.b8.items_per_s"] = 1234.5
        figures[f"{model}.processor.b8.gpu_busy_share"] = 0.98765
    return sheet("throughput", figures)


def deploys(**errors: str) -> dict[str, Any]:
    """Made-up evidence of deploy: each next model takes a second more; ViT-B/16 also has four profiles."""
    figures: dict[str, float] = {}
    for index, model in enumerate(("resnet50", "vit_b_16", "bert")):
        for begin in ("", "four_profiles_") if model == "vit_b_16" else ("",):
            figures[f"{model}.fp16.{begin}seconds"] = 10.0 + index
            phases = zip(
                ("capture", "export", "reference", "check", "build", "parity"), (1, 3, 1, 1, 2, 2), strict=True
            )
            figures |= {f"{model}.fp16.{begin}phase.{phase}_s": float(seconds) for phase, seconds in phases}
        figures[f"{model}.fp16.alone.seconds"] = 5.0
        figures[f"{model}.fp16.ratio_to_alone"] = (10 + index) / 5
    return sheet("deploy", figures, errors=errors, options={"at_a_time": "1"})

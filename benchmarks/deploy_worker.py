"""One model of the benchmark `deploy`, made callable in one kind of way, in a process of its own.

Enters: a model's name and a kind. Leaves: seconds, as a report to `phased_jobs`. Apart because what a process has
exported or compiled before makes the next one faster. All imports come before the clock starts: what a script imports
at its top, and what PyTorch's exporters load by themselves at their first use. Their seconds are a figure of its own.

The kinds: "deploy" is deploy() with one profile, "four_profiles" with those of the benchmark `models`. "build" is
torch.onnx.export and TensorRT's build alone, without any comparison. "torch_tensorrt" is Torch-TensorRT at one size.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

import torch2engine as t2e
from benchmarks import _script
from benchmarks.peers import torch_tensorrt
from benchmarks.phased_jobs import say, say_done, wait_for_turn
from benchmarks.zoo import ENTRIES, Entry

__all__ = ["KINDS"]

OWN_SIZES = (1, 8, 32)  # of the profiles beside the one for all sizes
# What torch.export, torch.onnx and Torch-TensorRT load by themselves.
LOADED_AT_FIRST_USE = (
    "torch._dynamo",
    "torch._inductor.codecache",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
    "onnxruntime",
)
PREFIXES = {"four_profiles": "four_profiles_", "build": "alone.", "torch_tensorrt": "torch_tensorrt_"}


def deploy(entry: Entry, model: torch.nn.Module, has_four_profiles: bool = False) -> dict[str, float]:
    """The seconds of deploy(), and those of each phase."""
    axis = entry.batch
    ranges = [axis.range, *((size, size, size) for size in OWN_SIZES)] if has_four_profiles else [axis.range]
    began = time.perf_counter()
    module = t2e.deploy(
        model,
        tuple(entry.inputs(axis.opt).values()),
        entry.axes(),
        profiles=[{axis.name: sizes} for sizes in ranges],
        cache=False,
        progress=None,
    )
    seconds = {"seconds": time.perf_counter() - began}
    return {**seconds, **{f"phase.{name}_s": value for name, value in module.report.seconds.items()}}


def four_profiles(entry: Entry, model: torch.nn.Module) -> dict[str, float]:
    """The same, with a profile for all sizes and one for each of three."""
    return {f"four_profiles_{name}": value for name, value in deploy(entry, model, has_four_profiles=True).items()}


def build(entry: Entry, model: torch.nn.Module) -> dict[str, float]:
    """The seconds of torch.onnx.export and of TensorRT's build, which compare nothing with the model."""
    axis = entry.batch
    inputs = entry.inputs(axis.opt)
    batch = torch.export.Dim(axis.name, min=axis.min, max=axis.max)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        began = time.perf_counter()
        torch.onnx.export(
            model,
            (),
            path,
            kwargs=inputs,
            dynamo=True,
            external_data=False,
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
        )
        exported = time.perf_counter()
        t2e.build(path, [{axis.name: axis.range}])
        built = time.perf_counter()
    return {"alone.export_s": exported - began, "alone.build_s": built - exported, "alone.seconds": built - began}


def compile_by_torch_tensorrt(entry: Entry, model: torch.nn.Module) -> dict[str, float]:
    """The seconds of Torch-TensorRT, its first answer included."""
    inputs = entry.inputs(entry.batch.opt)
    began = time.perf_counter()
    torch_tensorrt(model, inputs)(False).answer()
    torch.cuda.synchronize()
    return {"torch_tensorrt_s": time.perf_counter() - began}


KINDS = {
    "deploy": deploy,
    "four_profiles": four_profiles,
    "build": build,
    "torch_tensorrt": compile_by_torch_tensorrt,
}


def import_for(kind: str) -> float:
    """Import what a script that works in this way imports, at its top or later.

    Returns:
        the seconds, beside other processes that prepare.
    """
    began = time.perf_counter()
    if kind == "torch_tensorrt":
        importlib.import_module("torch_tensorrt")
    elif kind == "build":
        assert callable(t2e.build)  # public names are found, and their modules imported, when they are first used
    else:
        assert callable(t2e.deploy)
    for name in LOADED_AT_FIRST_USE:
        with suppress(ImportError):  # not in this version
            importlib.import_module(name)
    return time.perf_counter() - began


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=tuple(ENTRIES), required=True)
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    chosen = parser.parse_args()
    _script.require_gpu()
    import_s = import_for(chosen.kind)
    entry = ENTRIES[chosen.model]
    torch.manual_seed(0)
    with torch.no_grad():
        model = entry.make()
        model(**entry.inputs(entry.batch.opt))
        torch.cuda.synchronize()
        wait_for_turn()
        found = {f"{PREFIXES.get(chosen.kind, '')}import_s": import_s, **KINDS[chosen.kind](entry, model)}
    say({"figures": {f"{chosen.model}.fp16.{name}": value for name, value in found.items()}})
    say_done()


if __name__ == "__main__":
    main()

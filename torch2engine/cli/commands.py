"""The commands on models and engines, as functions.

Enters: options, as click has read them. Leaves: an `Outcome`. Separate because `app` declares what the words are, and
this file does what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.plan_file import PlanFile
from torch2engine.builder.build import build
from torch2engine.cli.candidates import describe, import_onnx, in_options, is_answering_path, open_candidate
from torch2engine.cli.outcome import FAILED, PASSED, Outcome
from torch2engine.cli.targets import (
    dynamic_axes,
    read_arrays,
    read_axis,
    read_model,
    read_ranges,
    read_sample,
    read_sizes,
)
from torch2engine.core.config import BuildConfig, Runtime, Tolerance
from torch2engine.core.errors import ArtifactError, InputError, InstallationError
from torch2engine.core.finding import Finding
from torch2engine.core.precisions import DEFAULT_PRECISION, Float32PrecisionName, PrecisionName
from torch2engine.core.spec import Signature
from torch2engine.deploy import deploy
from torch2engine.modules.deployed import DeployedModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.pipeline.compare_deployed import compare_modules, compare_with_model
from torch2engine.pipeline.diagnose import diagnose
from torch2engine.pipeline.load import saved_report
from torch2engine.precision.graph.engine_findings import engine_findings
from torch2engine.precision.precision_report import precision_report

__all__ = [
    "BoundOptions",
    "bench",
    "build_engine",
    "check",
    "compare",
    "deploy_model",
    "diagnose_model",
    "inspect",
    "run",
    "show_report",
]


_KINDS = {OnnxArtifact: "exported model", EngineArtifact: "engine", PartsArtifact: "model in parts"}


@dataclass(frozen=True)
class BoundOptions:
    """By what answers are judged.

    Args:
        precision: whose default tolerance counts; None for the candidate's.
        rel_l2, max_rel: bounds of the user's own; None for the default.
    """

    precision: PrecisionName | None = None
    rel_l2: float | None = None
    max_rel: float | None = None

    @property
    def tolerance(self) -> Tolerance | None:
        """The user's bounds; None where there are none."""
        if self.rel_l2 is None and self.max_rel is None:
            return None
        return Tolerance(rel_l2=self.rel_l2, max_rel=self.max_rel)


def deploy_model(
    target: str,
    output: Path | None,
    sample: Sequence[str],
    axes: Sequence[str],
    runtime: Runtime,
    bounds: BoundOptions,
    config: BuildConfig,
    cache: bool,
) -> Outcome:
    """Deploy a PyTorch module, and save what came out."""
    model = read_model(target)
    inputs = read_sample(sample)
    words = [read_axis(word) for word in axes]
    try:
        module = deploy(
            model,
            inputs,
            dynamic_axes(words, model, inputs),
            precision=bounds.precision or DEFAULT_PRECISION,
            tolerance=bounds.tolerance,
            runtime=runtime,
            config=config,
            cache=cache,
            progress=True,
        )
    except InstallationError as error:
        raise in_options(error) from error
    lines = [repr(module), str(module.report)]
    data = {"module": repr(module), "report": module.report.to_json()}
    if output is not None:
        module.save(output)
        lines.append(f"saved to {output}")
        data["saved"] = str(output)
    return Outcome("\n".join(lines), data)


def build_engine(
    source: Path,
    output: Path,
    axes: Sequence[str],
    precision: Float32PrecisionName | None,
    config: BuildConfig,
    cache: bool,
) -> Outcome:
    """Build an engine of an ONNX file, or of an exported model that torch2engine saved."""
    ranges = read_ranges(axes)
    is_saved = source.is_dir()
    onnx = OnnxArtifact.load(source) if is_saved else import_onnx(source, ranges)
    profiles = {axis.name: axis.range for axis in ranges} if is_saved else {}
    engine = build(onnx, profiles or None, precision=precision, config=config, cache=cache, progress=True)
    engine.save(output)
    data = _facts(engine)
    return Outcome(f"{_text_of(engine)}\nsaved to {output}", {**data, "saved": str(output)})


def check(
    candidate: Path,
    reference: str,
    sample: Sequence[str],
    axes: Sequence[str],
    runtime: Any,
    bounds: BoundOptions,
) -> Outcome:
    """Compare a candidate with a PyTorch module, or with an ONNX file."""
    if is_answering_path(reference):
        return compare(Path(reference), candidate, None, axes, runtime, bounds)
    model = read_model(reference)
    inputs = read_sample(sample)
    module = open_candidate(candidate, read_ranges(axes), runtime, bounds.precision)
    report = compare_with_model(model, module, inputs, precision=bounds.precision, tolerance=bounds.tolerance)
    return _outcome_of(report)


def diagnose_model(
    candidate: Path,
    target: str,
    sample: Sequence[str],
    runtime: Any,
    rel_l2: float | None,
    max_rel: float | None,
) -> Outcome:
    """Find the first module of a PyTorch model whose output differs in a saved folder."""
    model = read_model(target)
    inputs = read_sample(sample)
    module = open_candidate(candidate, (), runtime)
    found = diagnose(model, module, inputs, tolerance=BoundOptions(None, rel_l2, max_rel).tolerance)
    return Outcome(str(found), found.to_json(), PASSED if found.passed else FAILED)


def compare(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    axes: Sequence[str],
    runtime: Any,
    bounds: BoundOptions,
) -> Outcome:
    """Compare the answers of two saved models or engines."""
    ranges = read_ranges(axes)
    first = open_candidate(reference, ranges, _runtime_of(reference, runtime), bounds.precision)
    second = open_candidate(candidate, ranges, _runtime_of(candidate, runtime), bounds.precision)
    leaves = None if inputs is None else _leaves(second, inputs)
    report = compare_modules(first, second, inputs=leaves, precision=bounds.precision, tolerance=bounds.tolerance)
    return _outcome_of(report)


def show_report(path: Path, output: Path | None) -> Outcome:
    """Show the report that lies in a saved folder."""
    report = saved_report(load_artifact(path))
    data = report.to_json()
    if output is None:
        return Outcome(str(report), data)
    report.to_html(output, title=path.name)
    return Outcome(f"{report.verdict}; written to {output}", {**data, "written": str(output)})


def run(path: Path, inputs: Path, output: Path | None, axes: Sequence[str], runtime: Any) -> Outcome:
    """Answer the arrays of an .npz file."""
    module = open_candidate(path, read_ranges(axes), _runtime_of(path, runtime))
    leaves = [leaf.to(module.device or "cuda") for leaf in _leaves(module, inputs)]
    answers = {name: value.cpu() for name, value in module.infer(leaves).items()}
    lines = [f"{name}: {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for name, value in answers.items()]
    data: dict[str, Any] = {
        "runtime": module.runtime,
        "outputs": {name: {"dtype": str(value.dtype), "shape": list(value.shape)} for name, value in answers.items()},
    }
    if output is not None:
        arrays: dict[str, Any] = {name: _array(value) for name, value in answers.items()}
        np.savez(output, **arrays)
        lines.append(f"saved to {output}")
        data["saved"] = str(output)
    return Outcome("\n".join(lines), data)


def bench(
    path: Path, model: str | None, sizes: Sequence[str], rounds: int, axes: Sequence[str], runtime: Any
) -> Outcome:
    """Time calls, and those of the model in PyTorch eager beside them."""
    module = open_candidate(path, read_ranges(axes), _runtime_of(path, runtime))
    reference = None if model is None else read_model(model)
    if reference is not None and module.device is not None:
        reference = reference.to(module.device)
    report = module.benchmark(reference, sizes=[read_sizes(sizes)] if sizes else None, rounds=rounds)
    rates = [f"{row.candidate}, {row.case}: {1e6 / _slowest(row.timing):.0f} calls per second" for row in report.rows]
    return Outcome("\n".join([str(report), *rates]), report.to_json())


def inspect(path: Path) -> Outcome:
    """Tell what a saved model, an ONNX file or an engine file is."""
    found = describe(path)
    return Outcome(_text_of(found), _facts(found))


def _outcome_of(report: ParityReport) -> Outcome:
    return Outcome(str(report), {"parity": report.to_json()}, PASSED if report.passed else FAILED)


def _runtime_of(path: Path, runtime: Any) -> Any:
    """The runtime that was chosen, for what has a choice: a folder with an engine and its exported model."""
    return runtime if path.is_dir() else None


def _leaves(module: DeployedModule[Any], path: Path) -> list[torch.Tensor]:
    """The arrays of an .npz file in the module's order: by name, or as numpy has numbered them."""
    arrays = read_arrays(str(path))
    names = [spec.name for spec in module.signature.inputs]
    if set(names) <= set(arrays):
        return [torch.from_numpy(arrays[name]) for name in names]
    numbered = [f"arr_{index}" for index in range(len(names))]
    if set(numbered) == set(arrays):
        return [torch.from_numpy(arrays[name]) for name in numbered]
    raise InputError(
        f"file '{path}'",
        got=f"the arrays {', '.join(arrays) or 'none'}",
        allowed=f"one for each input: {', '.join(map(str, module.signature.inputs))}",
        fix="write it with numpy.savez(path, " + ", ".join(f"{name}=..." for name in names) + ")",
    )


def _array(value: torch.Tensor) -> Any:
    """As numpy; it has no bfloat16, which float32 holds without loss."""
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _slowest(timing: Any) -> float:
    """What bounds the rate of calls: the host or the device, in µs."""
    return max(timing.host_us, timing.device_us or 0.0)


def _facts(found: OnnxArtifact | EngineArtifact | PartsArtifact | PlanFile | Signature) -> dict[str, Any]:
    if isinstance(found, PlanFile):
        return found.to_json()
    if isinstance(found, Signature):
        return {"inputs": [str(spec) for spec in found.inputs], "outputs": [str(spec) for spec in found.outputs]}
    facts = found.manifest()
    share = _precision_share(found)
    return {
        **facts,
        "computed": None if share is None else share.to_json(),
        "findings": [finding.to_json() for finding in _findings_of(found, share)],
    }


def _findings_of(found: OnnxArtifact | EngineArtifact | PartsArtifact, share: Any) -> tuple[Finding, ...]:
    """What makes an engine slower than it could be: what its deploy found, or what shows without a GPU."""
    if not isinstance(found, EngineArtifact):
        return ()
    return saved_report(found).findings or engine_findings(found, share)


def _precision_share(found: OnnxArtifact | EngineArtifact | PartsArtifact) -> Any:
    if isinstance(found, PartsArtifact):  # its engines have a share each
        return None
    try:
        return precision_report(found)
    except ArtifactError:  # an engine without its ONNX
        return None


def _text_of(found: OnnxArtifact | EngineArtifact | PartsArtifact | PlanFile | Signature) -> str:
    if isinstance(found, PlanFile):
        lines = [f"a plan of {found.flavour} {found.version}, {len(found.plan)} bytes"]
        if found.metadata:
            lines.append("metadata of ultralytics: " + ", ".join(sorted(found.metadata)))
        return "\n".join([*lines, "its inputs and outputs are known where TensorRT reads it, on a GPU"])
    if isinstance(found, Signature):
        return "\n".join(["ONNX model", *_tensor_lines(found)])
    lines = [f"{_KINDS[type(found)]} in {found.precision}"]
    lines += _tensor_lines(found.signature)
    lines += [f"profile {number}: {profile}" for number, profile in enumerate(found.profiles) if profile.ranges]
    hardware = None if isinstance(found, OnnxArtifact) else found.hardware
    if hardware is not None:
        where = f" on {hardware.gpu}" if hardware.gpu else ", without a GPU"
        lines.append(f"built by {hardware.flavour} {hardware.flavour_version}{where}")
    lines.append("made with " + ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items())))
    share = _precision_share(found)
    lines += [] if share is None else [share.summary()]
    return "\n".join([*lines, *map(str, _findings_of(found, share))])


def _tensor_lines(signature: Signature) -> list[str]:
    inputs = [f"input   {spec}" for spec in signature.inputs]
    return [*inputs, *(f"output  {spec}" for spec in signature.outputs)]

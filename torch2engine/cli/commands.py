"""The commands on models and engines, as functions.

Enters: options, as click has read them. Leaves: an `Outcome`. Separate because `app` declares the options, and this
file does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.bundle import bundle
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.parts_artifact import PartsArtifact
from torch2engine.artifact.plan_file import PlanFile
from torch2engine.builder.build import build
from torch2engine.cli.arguments import (
    make_dynamic_axes,
    read_arrays,
    read_axis,
    read_file_axes,
    read_model,
    read_sample,
    read_sizes,
)
from torch2engine.cli.candidates import (
    Content,
    import_onnx,
    is_candidate_path,
    open_candidate,
    read_content,
    with_cli_options,
)
from torch2engine.cli.outcome import FAILED, PASSED, Outcome
from torch2engine.cli.random_weights import advice_on_random_weights
from torch2engine.core.config import BuildConfig, Runtime, Tolerance
from torch2engine.core.errors import ArtifactError, InputError, InstallationError, ParityError
from torch2engine.core.finding import Finding
from torch2engine.core.precision_report import PrecisionReport
from torch2engine.core.precisions import DEFAULT_PRECISION, Float32PrecisionName, PrecisionName
from torch2engine.core.spec import Signature
from torch2engine.deploy import deploy
from torch2engine.deploy_steps.public_functions.compare_deployed import compare_modules, compare_with_model
from torch2engine.deploy_steps.public_functions.diagnose import diagnose
from torch2engine.deploy_steps.public_functions.load import saved_report
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision.computed_precisions import precision_report
from torch2engine.precision.graph.engine_findings import engine_findings
from torch2engine.trt.local_hardware import choose_engine

__all__ = [
    "BoundOptions",
    "bench",
    "build_engine",
    "bundle_engines",
    "check",
    "compare",
    "deploy_model",
    "diagnose_model",
    "inspect",
    "run",
    "show_report",
]


_LAYERS_UNKNOWN = (
    "layers: read where an engine runs; deploy() or torch2engine.precision_report on its GPU tells precision and fused "
    "attention of each layer, and save() keeps what deploy() found"
)
_KINDS = {
    OnnxArtifact: "exported model",
    EngineArtifact: "engine",
    PartsArtifact: "model in parts",
    BundleArtifact: "bundle",
}


@dataclass(frozen=True)
class BoundOptions:
    """The options that decide when answers count as equal.

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
    model_spec: str,
    output: Path | None,
    sample: Sequence[str],
    axes: Sequence[str],
    runtime: Runtime,
    bounds: BoundOptions,
    config: BuildConfig,
    cache: bool,
) -> Outcome:
    """Deploy a PyTorch module, and save what came out."""
    model = read_model(model_spec)
    inputs = read_sample(sample)
    axis_arguments = [read_axis(text) for text in axes]
    try:
        module = deploy(
            model,
            inputs,
            make_dynamic_axes(axis_arguments, model, inputs),
            precision=bounds.precision or DEFAULT_PRECISION,
            tolerance=bounds.tolerance,
            runtime=runtime,
            config=config,
            cache=cache,
            progress=True,
        )
    except InstallationError as error:
        raise with_cli_options(error) from error
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
    ranges = read_file_axes(axes)
    is_saved = source.is_dir()
    onnx = OnnxArtifact.load(source) if is_saved else import_onnx(source, ranges)
    profiles = {axis.name: axis.range for axis in ranges} if is_saved else {}
    engine = build(onnx, profiles or None, precision=precision, config=config, cache=cache, progress=True)
    engine.save(output)
    data = _content_facts(engine)
    return Outcome(f"{_content_text(engine)}\nsaved to {output}", {**data, "saved": str(output)})


def check(
    candidate: Path,
    reference: str,
    sample: Sequence[str],
    axes: Sequence[str],
    runtime: Any,
    bounds: BoundOptions,
) -> Outcome:
    """Compare a candidate with a PyTorch module, or with an ONNX file."""
    if is_candidate_path(reference):
        return compare(Path(reference), candidate, None, axes, runtime, bounds)
    model = read_model(reference)
    inputs = read_sample(sample)
    module = open_candidate(candidate, read_file_axes(axes), runtime, bounds.precision)
    report = compare_with_model(model, module, inputs, precision=bounds.precision, tolerance=bounds.tolerance)
    return _parity_outcome(report, "" if report.passed else advice_on_random_weights(reference, model))


def diagnose_model(
    candidate: Path,
    model_spec: str,
    sample: Sequence[str],
    runtime: Any,
    rel_l2: float | None,
    max_rel: float | None,
) -> Outcome:
    """Find the first module of a PyTorch model whose output differs in a saved folder."""
    model = read_model(model_spec)
    inputs = read_sample(sample)
    module = open_candidate(candidate, (), runtime)
    diagnosis = diagnose(model, module, inputs, tolerance=BoundOptions(None, rel_l2, max_rel).tolerance)
    advice = "" if diagnosis.passed else advice_on_random_weights(model_spec, model)
    return _comparison_outcome(str(diagnosis), diagnosis.to_json(), diagnosis.passed, advice)


def compare(
    reference: Path,
    candidate: Path,
    inputs: Path | None,
    axes: Sequence[str],
    runtime: Any,
    bounds: BoundOptions,
) -> Outcome:
    """Compare the answers of two saved models or engines."""
    ranges = read_file_axes(axes)
    first = open_candidate(reference, ranges, _runtime_for(reference, runtime), bounds.precision)
    second = open_candidate(candidate, ranges, _runtime_for(candidate, runtime), bounds.precision)
    leaves = None if inputs is None else _load_inputs(second, inputs)
    report = compare_modules(first, second, inputs=leaves, precision=bounds.precision, tolerance=bounds.tolerance)
    return _parity_outcome(report)


def show_report(path: Path, output: Path | None, timed: bool) -> Outcome:
    """Show the report that lies in a saved folder, and the times of calls where they are asked for."""
    artifact = load_artifact(path)
    if isinstance(artifact, BundleArtifact):
        artifact = choose_engine(artifact)
    report = saved_report(artifact)
    benchmark = open_candidate(path, (), _runtime_for(path, None)).benchmark() if timed else None
    data = report.to_json()
    if benchmark is not None:
        data["benchmark"] = benchmark.to_json()
    if output is None:
        return Outcome("\n".join(map(str, filter(None, (report, benchmark)))), data)
    report.to_html(output, title=path.name, benchmark=benchmark)
    return Outcome(f"{report.verdict}; written to {output}", {**data, "written": str(output)})


def run(path: Path, inputs: Path, output: Path | None, axes: Sequence[str], runtime: Any) -> Outcome:
    """Answer the arrays of an .npz file."""
    module = open_candidate(path, read_file_axes(axes), _runtime_for(path, runtime))
    leaves = [leaf.to(module.device or "cuda") for leaf in _load_inputs(module, inputs)]
    answers = {name: value.cpu() for name, value in module.infer(leaves).items()}
    lines = [f"{name}: {str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for name, value in answers.items()]
    data: dict[str, Any] = {
        "runtime": module.runtime,
        "outputs": {name: {"dtype": str(value.dtype), "shape": list(value.shape)} for name, value in answers.items()},
    }
    if output is not None:
        arrays: dict[str, Any] = {name: _to_numpy(value) for name, value in answers.items()}
        np.savez(output, **arrays)
        lines.append(f"saved to {output}")
        data["saved"] = str(output)
    return Outcome("\n".join(lines), data)


def bench(
    path: Path, model: str | None, sizes: Sequence[str], rounds: int, axes: Sequence[str], runtime: Any
) -> Outcome:
    """Time calls, and those of the model in PyTorch eager beside them."""
    module = open_candidate(path, read_file_axes(axes), _runtime_for(path, runtime))
    reference = None if model is None else read_model(model)
    if reference is not None and module.device is not None:
        reference = reference.to(module.device)
    try:
        report = module.benchmark(reference, sizes=[read_sizes(sizes)] if sizes else None, rounds=rounds)
    except ParityError as error:
        advice = "" if model is None or reference is None else advice_on_random_weights(model, reference)
        if advice:
            replace(error.report, advice=advice).raise_if_failed()
        raise
    rates = [f"{row.candidate}, {row.case}: {1e6 / row.bottleneck_us:.0f} calls per second" for row in report.rows]
    return Outcome("\n".join([str(report), *rates]), report.to_json())


def bundle_engines(output: Path, sources: Sequence[Path]) -> Outcome:
    """Put engines of one model into one folder."""
    bundle(output, sources)
    made = BundleArtifact.load(output)
    return Outcome(f"{_content_text(made)}\nsaved to {output}", {**_content_facts(made), "saved": str(output)})


def inspect(path: Path) -> Outcome:
    """Tell what a saved model, an ONNX file or an engine file is."""
    content = read_content(path)
    return Outcome(_content_text(content), _content_facts(content))


def _parity_outcome(report: ParityReport, advice: str = "") -> Outcome:
    return _comparison_outcome(str(report), {"parity": report.to_json()}, report.passed, advice)


def _comparison_outcome(text: str, data: dict[str, Any], passed: bool, advice: str) -> Outcome:
    if advice:
        text, data = f"{text}\nadvice: {advice}", {**data, "advice": advice}
    return Outcome(text, data, PASSED if passed else FAILED)


def _runtime_for(path: Path, runtime: Any) -> Any:
    """The runtime that was chosen, for what has a choice: a folder with an engine and its exported model."""
    return runtime if path.is_dir() else None


def _load_inputs(module: DeployedModule[Any], path: Path) -> list[torch.Tensor]:
    """The arrays of an .npz file in the module's order: by name, or as numpy has numbered them."""
    arrays = read_arrays(str(path))
    names = [spec.name for spec in module.signature.call_inputs]
    live = list(module.live_parameters.values())
    if set(names) <= set(arrays):
        return [*(torch.from_numpy(arrays[name]) for name in names), *live]
    numbered = [f"arr_{index}" for index in range(len(names))]
    if set(numbered) == set(arrays):
        return [*(torch.from_numpy(arrays[name]) for name in numbered), *live]
    raise InputError(
        f"file '{path}'",
        got=f"the arrays {', '.join(arrays) or 'none'}",
        allowed=f"one for each input: {', '.join(map(str, module.signature.call_inputs))}",
        fix="write it with numpy.savez(path, " + ", ".join(f"{name}=..." for name in names) + ")",
    )


def _to_numpy(value: torch.Tensor) -> Any:
    """Give a tensor as an array; bfloat16, which numpy lacks, becomes float32 without loss."""
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _content_facts(content: Content) -> dict[str, Any]:
    if isinstance(content, PlanFile):
        return content.to_json()
    if isinstance(content, Signature):
        return {"inputs": [str(spec) for spec in content.inputs], "outputs": [str(spec) for spec in content.outputs]}
    facts = content.manifest()
    share = _precision_share(content)
    report = saved_report(content)
    return {
        **facts,
        "computed": None if share is None else share.to_json(),
        "has_engine_layers": share is not None and share.has_engine,
        "memory_bytes": report.memory_bytes,
        "model_bytes": content.model_bytes if isinstance(content, (OnnxArtifact, EngineArtifact)) else None,
        "parts": [asdict(part) for part in report.parts],
        "findings": [finding.to_json() for finding in _findings_of(content, share)],
    }


def _findings_of(content: Artifact, share: Any) -> tuple[Finding, ...]:
    """The findings that make an engine slow: those of its deploy, or those that show without a GPU."""
    if not isinstance(content, EngineArtifact):
        return ()
    return saved_report(content).findings or engine_findings(content, share)


def _precision_share(content: Artifact) -> PrecisionReport | None:
    """What TensorRT said of the engine's layers at its deploy, or else what the graph has."""
    if isinstance(content, BundleArtifact):
        content = content.exported()
    if not isinstance(content, (OnnxArtifact, EngineArtifact)):  # of a model in parts, each engine has a share
        return None
    if isinstance(content, EngineArtifact) and (measured := saved_report(content).computed) is not None:
        return measured
    try:
        return precision_report(content)
    except ArtifactError:  # an engine without its ONNX
        return None


def _content_text(content: Content) -> str:
    if isinstance(content, PlanFile):
        lines = [f"a plan of {content.flavour} {content.version}, {len(content.plan)} bytes"]
        if content.metadata:
            lines.append("metadata of ultralytics: " + ", ".join(sorted(content.metadata)))
        return "\n".join([*lines, "its inputs and outputs are known where TensorRT reads it, on a GPU"])
    if isinstance(content, Signature):
        return "\n".join(["ONNX model", *_tensor_lines(content)])
    lines = [f"{_KINDS[type(content)]} in {content.precision}"]
    lines += _tensor_lines(content.signature)
    lines += [f"profile {number}: {profile}" for number, profile in enumerate(content.profiles) if profile.ranges]
    lines += _hardware_lines(content)
    lines.append("made with " + ", ".join(f"{name} {version}" for name, version in sorted(content.versions.items())))
    share = _precision_share(content)
    lines += _memory_lines(content)
    lines += [] if share is None else [str(share)]
    if isinstance(content, EngineArtifact) and not (share is not None and share.has_engine):
        lines.append(_LAYERS_UNKNOWN)
    return "\n".join([*lines, *map(str, _findings_of(content, share))])


def _hardware_lines(content: Artifact) -> list[str]:
    """How each plan was built."""
    if isinstance(content, BundleArtifact):
        return [f"plan {name}: {_build_text(hardware)}" for name, hardware in content.plans.items()]
    hardware = content.hardware if isinstance(content, (EngineArtifact, PartsArtifact)) else None
    return [] if hardware is None else [_build_text(hardware)]


def _build_text(hardware: Hardware) -> str:
    where = f" on {hardware.gpu}" if hardware.gpu else ", without a GPU"
    return f"built by {hardware.flavour} {hardware.flavour_version}{where}"


def _memory_lines(content: Artifact) -> list[str]:
    """The size of the model, and the working memory that deploy() measured."""
    if isinstance(content, PartsArtifact):
        return [f"part {number}: {part.summary()}" for number, part in enumerate(saved_report(content).parts)]
    if not isinstance(content, (OnnxArtifact, EngineArtifact)):  # a bundle has a plan for each GPU
        return []
    name = "plan" if isinstance(content, EngineArtifact) else "ONNX model"
    working = saved_report(content).memory_bytes
    measured = f", working memory {working / 2**20:.1f} MiB at its deploy" if working else ""
    return [f"memory: {name} {content.model_bytes / 2**20:.1f} MiB{measured}"]


def _tensor_lines(signature: Signature) -> list[str]:
    inputs = [f"input   {spec}" for spec in signature.inputs]
    return [*inputs, *(f"output  {spec}" for spec in signature.outputs)]

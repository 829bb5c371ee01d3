"""An accepted engine and its model on the same GPU → a note where PyTorch is the faster one.

Enters: the module, the model, and inputs at each profile's opt. Leaves: at most one sentence with figures and reasons.
Separate because it decides nothing: a user who deploys for speed must hear that the model itself is faster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

import torch

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.finding import Finding
from torch2engine.deploy_steps.report_builder import ReportBuilder
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.module_access import artifact_of
from torch2engine.deployed.speed_at_opt import SpeedAtOpt, speed_at_opts
from torch2engine.deployed.trt.trt_module import TRTModule
from torch2engine.trt.gpu import require_gpu

__all__ = ["note_if_pytorch_is_faster", "note_on_speed"]

_SECONDS = 1.0  # for all profiles together
_NAMED = ("wide profile", "precision not taken", "float32 islands", "unfused attention", "reformats")
_DATA_CENTRE = (9, 10)  # major compute capabilities that TensorRT-RTX 1.6 has no kernels of its own for
_logger = logging.getLogger("torch2engine.deploy")


def note_if_pytorch_is_faster(
    module: TRTModule[Any],
    request: DeployRequest,
    cases: Sequence[ParityCase],
    own_cases: Sequence[ParityCase],
    report: ReportBuilder,
) -> None:
    """Time an accepted module beside its model at each profile's opt; a note tells where the model is faster.

    It takes under a second, or three calls of each where these take long. Nothing is timed where the model is on
    another device than the engine, or where `BuildConfig.compare_speed` is off. A model that fails here, for want of
    memory say, only has no figures.

    Args:
        module: on its GPU.
        request: the model, which is left as it was.
        cases: inputs in the model's dtypes.
        own_cases: the same in the engine's.
        report: takes the phase "speed" and the note.
    """
    device = module.device
    if not request.config.compare_speed or device is None or not _is_on(device, request, cases):
        return
    with report.phase("speed"):
        try:
            found = speed_at_opts(module, request.model, cases, own_cases, _SECONDS)
        except Exception as error:
            _logger.info("the model's speed is not known: %s: %s", type(error).__name__, error)
            return
        gpu = require_gpu(device.index)
        is_rtx = cast("EngineArtifact", artifact_of(module)).hardware.flavour == "tensorrt_rtx"
        foreign_gpu = gpu.name if is_rtx and gpu.compute_capability[0] in _DATA_CENTRE else ""
        report.add_lasting_notes(note_on_speed(found, report.findings, foreign_gpu))


def _is_on(device: torch.device, request: DeployRequest, cases: Sequence[ParityCase]) -> bool:
    """Whether the model and its inputs are on the engine's GPU."""
    tensors = chain(request.model.parameters(), request.model.buffers(), *(case.inputs for case in cases))
    return {tensor.device for tensor in tensors} == {device}


def note_on_speed(found: Sequence[SpeedAtOpt], findings: Iterable[Finding], foreign_gpu: str) -> list[str]:
    """Write one note if PyTorch's calls or PyTorch's kernels are faster; none otherwise.

    Args:
        found: the times at each opt.
        findings: what makes the engine slower than it could be.
        foreign_gpu: the GPU's name if TensorRT-RTX has no kernels of its own for it; else "".
    """
    slower = [one for one in found if one.is_slower]
    behind = [one for one in found if not one.is_slower and one.has_slower_kernels]
    sentences = [
        f"PyTorch eager is faster{_at(one)}: a call takes {one.eager.call_us:.0f} µs, and {one.engine.call_us:.0f} µs "
        "in the engine."
        for one in slower
    ]
    sentences += [
        f"PyTorch's kernels are faster{_at(one)}: {one.eager.kernels_us:.0f} µs, and {one.engine.kernels_us:.0f} µs in "
        f"the engine. In eager their launches take longer ({one.eager.call_us:.0f} µs a call), but not in a CUDA graph."
        for one in behind
    ]
    if not sentences:
        return []
    return [" ".join([*sentences, _reasons([*slower, *behind], findings, foreign_gpu)])]


def _at(one: SpeedAtOpt) -> str:
    return f" at {one.case}" if one.case else ""


def _reasons(slower: Sequence[SpeedAtOpt], findings: Iterable[Finding], foreign_gpu: str) -> str:
    names = {finding.name for finding in findings}
    reasons = [name for name in _NAMED if name in names]
    if any(one.is_host_bound for one in slower):
        reasons.append("host-bound calls (see RuntimeConfig.cuda_graphs and output)")
    if foreign_gpu:
        reasons.append(f"TensorRT-RTX has no kernels made for {foreign_gpu}")
    if not reasons:
        return "No finding explains it: TensorRT's kernels are slower here. The model itself may be the better choice."
    return f"Reasons: {'; '.join(reasons)}."

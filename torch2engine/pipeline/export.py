"""A live module → `OnnxArtifact`: the public step `export`.

Enters: a module and a sample. Leaves: its ONNX model, not yet compared with it. Separate because `export` is a step of
its own for users, and composes the same two stages as `deploy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.spec import Preprocess
from torch2engine.exporter.export import export_onnx

__all__ = ["export"]


def export(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    profiles: Sequence[Any] | None = None,
    refittable: bool = False,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> OnnxArtifact:
    """Export a module to ONNX, without checking or building it.

    Args:
        model, sample_input, dynamic_axes, profiles, preprocess: as for `deploy`.
        refittable: record how the ONNX graph's weights follow from the module's, for BuildConfig(refittable=True).

    Returns:
        the artifact; its `save` writes it to a folder, `torch2engine.build` builds an engine from it.

    Raises:
        InputError, DynamicAxisError, ExportError, UnsupportedOperatorError: as `deploy` does.
    """
    model = unwrap(model)
    with undisturbed(model):
        captured = capture_call(model, sample_input, dynamic_axes, profiles, preprocess)
        return export_onnx(captured, refittable)

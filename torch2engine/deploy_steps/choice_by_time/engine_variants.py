"""Ways to build and run an engine that may be faster, as a table: BuildConfig(optimize="measure") tries them.

Enters: the arguments of deploy(), and what the plain engine is. Leaves: changed arguments for each variant that means
something for this engine. Separate because whoever measures iterates this table, so a further variant is one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.precisions import CAST_PRECISIONS
from torch2engine.deployed.module_access import artifact_of
from torch2engine.deployed.trt.trt_module import TRTModule

__all__ = ["PLAIN", "VARIANTS", "EngineVariant"]

_Arguments: TypeAlias = "Mapping[str, Any]"


@dataclass(frozen=True, kw_only=True)
class EngineVariant:
    """One way to build and run an engine.

    Args:
        name: what is other than in the plain engine.
        changes: given deploy()'s arguments, those that differ.
        suits: whether it means anything, given the plain engine and deploy()'s arguments.
    """

    name: str
    changes: Callable[[_Arguments], dict[str, Any]]
    suits: Callable[[TRTModule[Any], _Arguments], bool]


PLAIN = "the plain engine"
"""What deploy() builds by its rules; each variant is compared with it."""


def _other_attention(arguments: _Arguments) -> dict[str, Any]:
    config = arguments["config"]
    other = "products" if config.attention_form == "node" else "node"
    return {"config": replace(config, attention=other)}


def _has_attention(module: TRTModule[Any], arguments: _Arguments) -> bool:
    """Whether the engine's attention has two forms: in half precision on TensorRT-RTX, unless it is refittable."""
    computed = module.report.computed
    low = module.precision in CAST_PRECISIONS or arguments["precision"] in CAST_PRECISIONS
    may_choose = _is_rtx(module) and not arguments["config"].refittable
    return may_choose and low and computed is not None and bool(computed.attention)


def _is_rtx(module: TRTModule[Any]) -> bool:
    artifact = artifact_of(module)
    return isinstance(artifact, EngineArtifact) and artifact.hardware.flavour == "tensorrt_rtx"


def _own_profiles(arguments: _Arguments) -> dict[str, Any]:
    return {"profiles": "auto"}


def _has_range(module: TRTModule[Any], arguments: _Arguments) -> bool:
    """Whether the user left the profiles to deploy(), and sizes differ."""
    return arguments["profiles"] is None and not _has_single_sizes(module)


def _has_single_sizes(module: TRTModule[Any]) -> bool:
    profiles = artifact_of(module).profiles
    return all(low == high for profile in profiles for low, _, high in profile.ranges.values())


def _specialized(arguments: _Arguments) -> dict[str, Any]:
    return {"runtime_config": replace(arguments["runtime_config"], kernel_specialization="eager")}


def _may_specialize(module: TRTModule[Any], arguments: _Arguments) -> bool:
    """Whether every shape that can be called is one at which deploy() compares the engine."""
    chosen = arguments["runtime_config"].kernel_specialization
    return _is_rtx(module) and chosen == "none" and _has_single_sizes(module)


VARIANTS = (
    EngineVariant(name="attention in the other form", changes=_other_attention, suits=_has_attention),
    EngineVariant(name="a profile for each size", changes=_own_profiles, suits=_has_range),
    EngineVariant(name="kernels for single shapes", changes=_specialized, suits=_may_specialize),
)

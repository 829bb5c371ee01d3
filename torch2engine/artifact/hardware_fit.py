"""Whether a plan runs on a GPU, and which of several plans is the best for it.

Enters: the hardware of builds and of this machine. Leaves: the first difference that matters, or the name of a plan.
Separate because an engine and a bundle of engines follow the same rules, which need neither TensorRT nor a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch2engine.artifact.manifest_fields import Hardware

__all__ = ["Mismatch", "choose_plan", "describe_target", "find_mismatch"]

# How well a plan fits that runs: it was built on this GPU; for its compute capability; for many; TensorRT-RTX decides.
_THIS_GPU = 0
_THIS_CAPABILITY = 1
_PORTABLE = 2
_UNKNOWN = 3
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Mismatch:
    """Why a plan does not run.

    Args:
        got: the plan, in words.
        allowed: what would run here, in words.
    """

    got: str
    allowed: str


def find_mismatch(built: Hardware, current: Hardware) -> Mismatch | None:
    """Find what keeps a plan from running.

    A plan belongs to the flavour and the major.minor.patch that built it. A TensorRT plan also belongs to its compute
    capability, unless it was built for all from 8.0 on. A TensorRT-RTX plan belongs to those it was built for, if they
    were recorded; otherwise TensorRT-RTX decides. Other drivers and other GPUs of the same compute capability are
    fine.

    Args:
        built: the plan's.
        current: this machine's; without a GPU its compute capability is None and is not compared.
    """
    if (built.flavour, _patch(built.flavour_version)) != (current.flavour, _patch(current.flavour_version)):
        return Mismatch(
            f"a plan of {built.flavour} {built.flavour_version}",
            f"one of {current.flavour} {current.flavour_version}, since a plan runs in its own version only",
        )
    if built.hardware_compatibility == "ampere_plus":
        return _find_older_gpu(current)
    fits = built.compute_capabilities
    if not fits and built.flavour == "tensorrt" and built.compute_capability is not None:
        fits = (built.compute_capability,)
    if fits and current.compute_capability is not None and current.compute_capability not in fits:
        return _other_gpu(_dotted(fits), current.compute_capability, current.gpu)
    return None


def _find_older_gpu(current: Hardware) -> Mismatch | None:
    if current.compute_capability is None or current.compute_capability >= _AMPERE:
        return None
    return _other_gpu("8.0 and later", current.compute_capability, current.gpu)


def _other_gpu(fits: str, capability: tuple[int, int], gpu: str | None) -> Mismatch:
    name = f" ({gpu})" if gpu else ""
    return Mismatch(f"a plan for compute capability {fits}", f"one for {_dotted([capability])}, that of this GPU{name}")


def choose_plan(plans: Mapping[str, Hardware], current: Sequence[Hardware]) -> str | None:
    """Choose the plan that fits best.

    One that was built on a GPU of this name comes first, then one for its compute capability, then one for all GPUs
    from 8.0 on. The last is one of which only TensorRT-RTX knows whether it runs. Among equals, the first flavour of
    `current` counts, then the plan for the fewest GPUs, then the name.

    Args:
        plans: name -> the hardware of its build.
        current: this machine, once for each flavour that is installed; the preferred one first.

    Returns:
        Its name, or None if none fits.
    """
    ranked = [
        (_fit(built, here), place, len(built.compute_capabilities), name)
        for name, built in plans.items()
        for place, here in enumerate(current)
        if find_mismatch(built, here) is None
    ]
    return min(ranked)[-1] if ranked else None


def describe_target(built: Hardware) -> str:
    """The GPUs that a plan is for, in words."""
    if built.hardware_compatibility == "ampere_plus":
        return "compute capability 8.0 and later"
    if built.compute_capabilities:
        return f"compute capability {_dotted(built.compute_capabilities)}"
    return built.gpu or "GPUs that it does not name"


def _fit(built: Hardware, current: Hardware) -> int:
    if built.hardware_compatibility == "ampere_plus":
        return _PORTABLE
    if built.compute_capabilities:
        return _THIS_CAPABILITY
    if built.gpu is not None and built.gpu == current.gpu:
        return _THIS_GPU
    is_same = built.compute_capability is not None and built.compute_capability == current.compute_capability
    return _THIS_CAPABILITY if is_same else _UNKNOWN


def _patch(version: str) -> list[str]:
    """major.minor.patch; TensorRT's fourth number is the build of the same library."""
    return version.split(".")[:3]


def _dotted(capabilities: Iterable[tuple[int, int]]) -> str:
    return " or ".join(f"{major}.{minor}" for major, minor in capabilities)

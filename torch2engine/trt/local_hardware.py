"""What a plan must fit here: a GPU of this process, once for each installed flavour.

Enters: the GPU's number and flavours. Leaves: `Hardware`, and the engine of a bundle that fits it. Separate because
loading and serving choose by the same facts, which only TensorRT and the driver know.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.core.config import FLAVOURS
from torch2engine.core.errors import InstallationError
from torch2engine.trt.bindings import TensorRT, find_tensorrt
from torch2engine.trt.gpu import Gpu, current_gpu_index, list_gpus

__all__ = ["choose_engine", "hardware_of", "local_hardware"]


def hardware_of(rt: TensorRT, gpu: Gpu | None) -> Hardware:
    """The facts of one TensorRT on one GPU; without a GPU, those of TensorRT alone."""
    if gpu is None:
        return Hardware(flavour=rt.name, flavour_version=rt.version)
    return Hardware(
        flavour=rt.name,
        flavour_version=rt.version,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
    )


def local_hardware(flavours: Iterable[str], index: int | None = None) -> tuple[Hardware, ...]:
    """The facts of one GPU with each of the flavours that is installed, in the order of preference.

    Args:
        flavours: the ones to look for; others are not imported.
        index: the GPU's number as CUDA counts the visible devices; None for the calling thread's current one.
    """
    gpus = list_gpus()
    place = (current_gpu_index() or 0) if index is None else index
    gpu = gpus[place] if place < len(gpus) else None
    wanted = set(flavours)
    installed = [rt for name in FLAVOURS if name in wanted and (rt := _installed(name)) is not None]
    return tuple(hardware_of(rt, gpu) for rt in installed)


def choose_engine(bundle: BundleArtifact, index: int | None = None) -> EngineArtifact:
    """Choose the engine of a bundle for a GPU of this process.

    Args:
        bundle: the plans.
        index: as for `local_hardware`.

    Raises:
        ArtifactError: no plan runs there.
    """
    return bundle.engine_for(local_hardware({built.flavour for built in bundle.plans.values()}, index))


def _installed(flavour: str) -> TensorRT | None:
    try:
        return find_tensorrt(flavour)
    except InstallationError:
        return None

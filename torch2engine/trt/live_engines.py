"""`EngineArtifact` and a device → its live `Engine`, of which there is one for all who run the same plan there.

Enters: artifacts, in any number of equal copies. Leaves: one engine for each content and device, as long as somebody
holds it. Separate from `engine` because what is shared, and what is not, is a rule of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.core.fork_safe_lock import ForkSafeLock
from torch2engine.trt.engine import Engine

__all__ = ["LiveObjects", "live_engine"]


class _Shareable(Protocol):
    @property
    def is_constant(self) -> bool:
        """Whether no holder can change it."""
        ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=_Shareable)


class LiveObjects(Generic[K, V]):
    """Objects by key, each as long as somebody holds it; threads may share the table.

    An object that its holders can change is never shared. A forked child finds none of its parent's.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._objects: WeakValueDictionary[tuple[int, K], V] = WeakValueDictionary()

    def obtain(self, key: K, make: Callable[[], V], fits: Callable[[V], bool]) -> V:
        """Give the object of a key, made if nobody holds one.

        Args:
            key: what decides about the object.
            make: makes it; other threads that ask wait for it.
            fits: whether one that is there suits the caller, as far as the key does not say.
        """
        place = (os.getpid(), key)
        with self._lock:
            found = self._objects.get(place)
            if found is not None and fits(found):
                return found
            made = make()
            if found is None and made.is_constant:
                self._objects[place] = made
            return made


@dataclass(frozen=True)
class _Content:
    """What an engine computes, and where.

    Args:
        plan_sha256: the plan's hash.
        hardware: of the build, against which the device is checked.
        precision: the arithmetic, which decides how its contexts are made.
        index: the device's number.
        kernel_specialization: as in `RuntimeConfig`.
    """

    plan_sha256: str
    hardware: Hardware
    precision: str
    index: int
    kernel_specialization: str


_engines: LiveObjects[_Content, Engine] = LiveObjects()


def live_engine(artifact: EngineArtifact, index: int, kernel_specialization: str = "none") -> Engine:
    """Give the live engine of an artifact; all who run the same plan on a device share it, its weights and kernels.

    An engine that can be refitted belongs to its caller alone, since a refit changes it.

    Args:
        artifact, index, kernel_specialization: as for `Engine`. Where an equal engine is live already, the artifact's
            runtime cache is not read.

    Raises:
        InstallationError, ArtifactError, InputError: as `Engine`.
    """
    content = _Content(artifact.plan_sha256, artifact.hardware, artifact.precision, index, kernel_specialization)
    return _engines.obtain(
        content,
        make=lambda: Engine(artifact, index, kernel_specialization),
        fits=lambda engine: engine.signature == artifact.signature,
    )

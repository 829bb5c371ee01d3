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

    def find_or_make(self, key: K, make: Callable[[], V], suits: Callable[[V], bool]) -> V:
        """Give the object of a key; make it if nobody holds one.

        Args:
            key: what decides about the object.
            make: makes it; other threads that ask wait for it.
            suits: whether an object of this key, made for another caller, suits this one.
        """
        table_key = (os.getpid(), key)
        with self._lock:
            found = self._objects.get(table_key)
            if found is not None and suits(found):
                return found
            made = make()
            if found is None and made.is_constant:
                self._objects[table_key] = made
            return made


@dataclass(frozen=True)
class _EngineKey:
    """The facts by which two engines are the same: what they compute, and where.

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


_engines: LiveObjects[_EngineKey, Engine] = LiveObjects()


def live_engine(artifact: EngineArtifact, index: int, kernel_specialization: str = "none") -> Engine:
    """Give the live engine of an artifact; all who run the same plan on a device share it, its weights and kernels.

    An engine that can be refitted belongs to its caller alone, since a refit changes it.

    Args:
        artifact, index, kernel_specialization: as for `Engine`. Where an equal engine is live already, the artifact's
            runtime cache is not read.

    Raises:
        InstallationError, ArtifactError, InputError: as `Engine`.
    """
    key = _EngineKey(artifact.plan_sha256, artifact.hardware, artifact.precision, index, kernel_specialization)
    return _engines.find_or_make(
        key,
        make=lambda: Engine(artifact, index, kernel_specialization),
        suits=lambda engine: engine.signature == artifact.signature,
    )

"""Engines that were built before, by everything that decides what TensorRT makes.

Enters: facts, and a way to build. Leaves: an engine, built now or then; the same bytes either way. A room of its own
because several processes share the store, and any of them may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch2engine._folder import remove_abandoned
from torch2engine._manifest import NAME, canonical
from torch2engine.artifact import EngineArtifact
from torch2engine.errors import ArtifactError, InputError

__all__ = ["Cache", "CacheEntry", "EngineCache", "cache_of", "key_of"]

# Another layout, or another way to build from the same facts, is another number.
_VERSION = 1
_KEY = re.compile(r"[0-9a-f]{64}")
_TRASH = ".trash-"
_MAX_BYTES = 20 << 30
_LOG = logging.getLogger("torch2engine.cache")

Cache: TypeAlias = "EngineCache | str | Path | bool | None"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """An engine in a cache.

    Args:
        key: what it is found by, 64 hex digits.
        size_bytes: of its files.
        used: when it was last stored or taken, in seconds since 1970.
        path: its folder, which `torch2engine.load` reads.
    """

    key: str
    size_bytes: int
    used: float
    path: Path


class EngineCache:
    """A folder of engines, shared by threads and processes of one machine.

    An entry appears whole or not at all. One process builds an engine, others that want the same one wait for it. What
    is damaged is removed with a warning and built anew.

    Args:
        folder: None means "torch2engine" in the user's cache folder (`XDG_CACHE_HOME`, else ``~/.cache``). What others
            may write to is no place for it: an engine is code.
        max_bytes: beyond it the engines that were used least recently go.

    Raises:
        InputError: a size that is no positive int.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = _MAX_BYTES) -> None:
        size = cast("object", max_bytes)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError("EngineCache.max_bytes", got=repr(size), allowed="a positive int, in bytes")
        if folder is None:
            import platformdirs

            folder = platformdirs.user_cache_path("torch2engine")
        self._folder = Path(folder).absolute() / f"engines-{_VERSION}"
        self._max_bytes = max_bytes

    @property
    def folder(self) -> Path:
        """Where the entries lie."""
        return self._folder

    def engine(self, key: str, build: Callable[[], EngineArtifact]) -> tuple[EngineArtifact, bool]:
        """Take an engine, or build and store it.

        Args:
            key: from `key_of`.
            build: called if there is none; what it raises is raised here, and nothing is stored.

        Returns:
            the engine, which stays whatever becomes of the entry; and whether it was there.
        """
        with self._locked(key) as usable:
            found = self._take(key) if usable else None
            if found is not None:
                return found, True
            made = build()
            if usable:
                self._store(key, made)
        if usable:
            self.prune(keep=key)
        return made, False

    def update(self, key: str, engine: EngineArtifact) -> None:
        """Put an engine in an entry's place, with kernels that TensorRT-RTX has compiled since, say."""
        with self._locked(key) as usable:
            if usable and (self._folder / key).is_dir():
                self._store(key, engine)

    def remove(self, key: str) -> bool:
        """Remove an entry; False if there is none, or a process is just building or reading it."""
        with self._locked(key, wait=False) as free:
            return free and self._discard(self._folder / key)

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is there, the least recently used first."""
        found: list[CacheEntry] = []
        for path in self._paths():
            with contextlib.suppress(OSError):  # another process may just be removing it
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(CacheEntry(key=path.name, size_bytes=size, used=(path / NAME).stat().st_mtime, path=path))
        return tuple(sorted(found, key=lambda entry: entry.used))

    def prune(self, max_bytes: int | None = None, keep: str = "") -> int:
        """Remove the least recently used engines until the rest fits, and what killed processes left.

        Args:
            max_bytes: None means the cache's own bound.
            keep: a key that stays.

        Returns:
            the bytes that were freed.
        """
        self._sweep()
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        bound = self._max_bytes if max_bytes is None else max_bytes
        freed = 0
        for entry in entries:
            if total - freed <= bound:
                break
            if entry.key != keep and self.remove(entry.key):
                freed += entry.size_bytes
        return freed

    def clear(self) -> int:
        """Remove every engine that no process is building or reading; the bytes that were freed."""
        return self.prune(0)

    def _paths(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if _KEY.fullmatch(path.name) and path.is_dir()]

    @contextlib.contextmanager
    def _locked(self, key: str, wait: bool = True) -> Generator[bool]:
        """Hold a key's lock, which goes with the process; False where the folder can't be used, or nobody waits."""
        if not _KEY.fullmatch(key):
            raise InputError("cache key", got=repr(key), allowed="64 hex digits, as key_of gives them")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._unusable(error)
            yield False
            return
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                _LOG.info("another process builds this engine; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: the same engine may be built twice, and stored whole
                pass
            yield True
        finally:
            os.close(lock)

    def _unusable(self, error: Exception) -> None:
        warnings.warn(f"the engine cache '{self._folder}' can't be used, engines are built anew: {error}", stacklevel=4)

    def _take(self, key: str) -> EngineArtifact | None:
        path = self._folder / key
        if not path.is_dir():
            return None
        try:
            found = EngineArtifact.load(path).linked()
            now = time.time()
            os.utime(path / NAME, (now, now))
        except (ArtifactError, OSError) as error:
            warnings.warn(f"an engine in the cache is damaged and is built anew: {error}", stacklevel=4)
            self._discard(path)
            return None
        return found

    def _store(self, key: str, engine: EngineArtifact) -> None:
        try:
            engine.save(self._folder / key)
        except ArtifactError as error:
            self._unusable(error)

    def _discard(self, path: Path) -> bool:
        """Remove a folder so that nobody sees half of it."""
        aside = self._folder / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            path.rename(aside)
        except OSError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        if not self._folder.is_dir():
            return
        for path in list(self._folder.iterdir()):
            if path.name.startswith(_TRASH):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith("."):
                remove_abandoned(self._folder / path.name[1:65])


def cache_of(cache: object) -> EngineCache | None:
    """The cache that a `cache` argument means.

    Raises:
        InputError: something else.
    """
    if cache is None or cache is False:
        return None
    if isinstance(cache, EngineCache):
        return cache
    if cache is True:
        return EngineCache()
    if isinstance(cache, (str, Path)):
        return EngineCache(cache)
    raise InputError("cache", got=repr(cache), allowed="True, False, a folder or an EngineCache")


def key_of(facts: Mapping[str, Any]) -> str:
    """The key of an engine.

    Args:
        facts: JSON values, all that decides what TensorRT makes.
    """
    return hashlib.sha256(canonical(facts)).hexdigest()

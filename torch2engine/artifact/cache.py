"""Engines that were built before, by everything that decides what TensorRT makes.

Enters: a key, and engines that their makers found right. Leaves: engines, and what was found out about them for a
whole request. A room of its own because several processes share the store, and any may be killed at any moment: entries
and notes appear and go by one rename each, so that reading needs no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch2engine.artifact.artifacts import EngineArtifact
from torch2engine.artifact.folder import remove_abandoned
from torch2engine.artifact.manifest import NAME, canonical
from torch2engine.core.errors import ArtifactError, InputError

__all__ = ["Cache", "CacheEntry", "EngineCache", "cache_of", "key_of"]

# Another layout, or another way to build from the same facts, is another number.
_VERSION = 2
_KEY = re.compile(r"[0-9a-f]{64}")
_TRASH, _LOCKS, _NOTES = ".trash-", "locks", "notes"
_ENGINE = "engine"  # in a note: the key of the engine that it is about
_MAX_BYTES = 20 << 30
_POLL_S = 0.1
_SETTLED_S = 60.0
_OLD_S = 90 * 24 * 3600.0
_LOG = logging.getLogger("torch2engine.cache")

Cache: TypeAlias = "EngineCache | str | Path | bool | None"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """An engine in a cache.

    Args:
        key: what it is found by, 64 hex digits.
        size_bytes: of its files.
        used: when it was last stored or taken, in seconds since 1970.
        path: its folder.
    """

    key: str
    size_bytes: int
    used: float
    path: Path


class EngineCache:
    """A folder of engines, shared by threads and processes of one machine.

    Args:
        folder: None means "torch2engine" in the user's cache folder (`XDG_CACHE_HOME`, else ``~/.cache``). An engine is
            code: a folder that everybody may write to is not used.
        max_bytes: beyond it the engines that were used least recently go.

    Raises:
        InputError: an empty folder name, or a size that is no positive int.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = _MAX_BYTES) -> None:
        size = cast("object", max_bytes)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError("EngineCache.max_bytes", got=repr(size), allowed="a positive int, in bytes")
        if folder is None:
            import platformdirs

            folder = platformdirs.user_cache_path("torch2engine")
        elif not str(folder):
            raise InputError("EngineCache.folder", got="''", allowed="a folder, or None for the user's cache folder")
        self._folder = Path(folder).expanduser().absolute() / f"engines-{_VERSION}"
        self._max_bytes = max_bytes

    @property
    def folder(self) -> Path:
        """Where the entries lie."""
        return self._folder

    def take(self, key: str) -> EngineArtifact | None:
        """An engine, which stays whatever becomes of its entry; None if there is none.

        An entry that is damaged is removed, with a warning.
        """
        path = self._folder / _checked(key)
        try:
            if not path.is_dir() or not self._is_safe():
                return None
            found = EngineArtifact.load(path)
        except (ArtifactError, OSError) as error:
            if self._discard(path):  # else somebody else has just removed it
                warnings.warn(f"an engine in the cache was damaged and is built anew: {error}", stacklevel=2)
            return None
        try:
            found = found.linked()
        except ArtifactError as error:
            _LOG.warning("an engine in the cache can't be taken and is built anew: %s", error)
            return None
        with contextlib.suppress(OSError):  # a cache that can only be read
            os.utime(path / NAME)
        return found

    def store(self, key: str, engine: EngineArtifact) -> None:
        """Put an engine into the cache, in another one's place if there is one, and keep to the bound.

        Where that fails the logger ``torch2engine.cache`` says so.
        """
        path = self._folder / _checked(key)
        try:
            if not self._is_ready():
                return
            engine.save(path)
        except (ArtifactError, OSError) as error:
            _LOG.warning("the engine cache '%s' can't keep an engine: %s", self._folder, error)
            return
        self.prune(keep=key)

    def remove(self, key: str) -> bool:
        """Remove an entry; False if there is none."""
        return self._discard(self._folder / _checked(key))

    def note(self, key: str, engine: str, facts: Mapping[str, Any]) -> None:
        """Keep what was found out about an engine for a request, as long as the engine stays.

        Where that fails the logger ``torch2engine.cache`` says so.

        Args:
            key: the request's.
            engine: the engine's key.
            facts: JSON values.
        """
        data = canonical({"facts": facts, _ENGINE: _checked(engine)})
        place = self._folder / _NOTES / _checked(key)
        aside = place.with_name(f".{key}-{secrets.token_hex(8)}")
        try:
            if not self._is_ready():
                return
            place.parent.mkdir(exist_ok=True)
            try:
                aside.write_bytes(hashlib.sha256(data).hexdigest().encode("ascii") + b"\n" + data)
                aside.replace(place)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("the engine cache '%s' can't keep a note: %s", self._folder, error)

    def noted(self, key: str) -> tuple[str, dict[str, Any]] | None:
        """An engine's key and what was noted of it for a request; None where nothing was, or it can't be read."""
        try:
            if not self._is_safe():
                return None
            digest, _, data = (self._folder / _NOTES / _checked(key)).read_bytes().partition(b"\n")
            if hashlib.sha256(data).hexdigest().encode("ascii") != digest:
                return None  # a machine that lost power amid it
            found = json.loads(data)
        except OSError:
            return None
        return found[_ENGINE], found["facts"]  # read by who has the same version: that is in the key

    def touch(self, key: str) -> None:
        """Let a note pass for a new one, since it was of use."""
        with contextlib.suppress(OSError):
            os.utime(self._folder / _NOTES / _checked(key))

    def forget(self, key: str) -> None:
        """Remove the note of a request, if there is one."""
        with contextlib.suppress(OSError):
            (self._folder / _NOTES / _checked(key)).unlink()

    @contextlib.contextmanager
    def building(self, key: str, waiting: Callable[[], object] = lambda: None) -> Generator[None]:
        """Let nobody else build this engine meanwhile, on file systems that have locks.

        Args:
            key: the engine's.
            waiting: called ten times a second as long as somebody else does; what it raises ends the wait.
        """
        place = self._folder / _LOCKS / _checked(key)
        lock, held = self._open_lock(place), False
        try:
            while lock is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                    break
                except BlockingIOError:
                    waiting()
                    time.sleep(_POLL_S)
                except OSError:
                    break
            yield
        finally:
            if lock is not None and held:
                with contextlib.suppress(OSError):
                    place.unlink()  # who waits on it goes on; who comes now finds the entry
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone leaves it to a process forked meanwhile
            if lock is not None:
                os.close(lock)

    def entries(self) -> tuple[CacheEntry, ...]:
        """What is there, the least recently used first."""
        found: list[CacheEntry] = []
        for path in self._children(_KEY.fullmatch):
            with contextlib.suppress(OSError):  # another process may just be removing it
                files = {file.name: file.stat() for file in path.iterdir()}
                used = files[NAME] if NAME in files else path.stat()
                size = sum(status.st_size for status in files.values())
                found.append(CacheEntry(key=path.name, size_bytes=size, used=used.st_mtime, path=path))
        return tuple(sorted(found, key=lambda entry: entry.used))

    def prune(self, max_bytes: int | None = None, keep: str = "") -> int:
        """Remove the least recently used engines until the rest fits, and what killed processes left.

        Args:
            max_bytes: None means the cache's own bound.
            keep: a key that stays.

        Returns:
            the bytes that were freed.
        """
        for path in self._children(lambda name: name.startswith(".")):
            if path.name.startswith(_TRASH):
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove_abandoned(self._folder / path.name[1:65])
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        bound = self._max_bytes if max_bytes is None else max_bytes
        freed = 0
        for entry in entries:
            if total - freed <= bound:
                break
            if entry.key != keep and self.remove(entry.key):
                freed += entry.size_bytes
        self._prune_notes()
        return freed

    def clear(self) -> int:
        """Remove every engine; the bytes that were freed."""
        return self.prune(0)

    def _prune_notes(self) -> None:
        """Remove notes of engines that are gone, old ones, and what killed processes left."""
        try:
            paths = list((self._folder / _NOTES).iterdir())
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                age_s = time.time() - path.stat().st_mtime
                if age_s < _SETTLED_S:
                    continue  # somebody may just be storing its engine
                found = self.noted(path.name) if _KEY.fullmatch(path.name) else None
                if found is None or age_s > _OLD_S or not (self._folder / found[0]).is_dir():
                    path.unlink(missing_ok=True)

    def _children(self, wanted: Callable[[str], object]) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if wanted(path.name) and path.is_dir()]
        except OSError:
            return []

    def _is_safe(self) -> bool:
        mode = self._folder.stat().st_mode
        if mode & stat.S_IWOTH:
            _LOG.warning("the engine cache '%s' is not used: everybody may write to it", self._folder)
        return not mode & stat.S_IWOTH

    def _is_ready(self) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._is_safe()

    def _open_lock(self, place: Path) -> int | None:
        """The lock's descriptor; None where there can be none."""
        try:
            if not self._is_ready():
                return None
            place.parent.mkdir(exist_ok=True)
            return os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _LOG.warning("the engine cache '%s' can't be used: %s", self._folder, error)
            return None

    def _discard(self, path: Path) -> bool:
        """Remove a folder so that nobody sees half of it."""
        aside = self._folder / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            path.rename(aside)
        except OSError:
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InputError("cache key", got=repr(key), allowed="64 hex digits, as key_of gives them")
    return key


def cache_of(cache: object, cache_key: object = None) -> EngineCache | None:
    """The cache that a `cache` argument means, and a look at the `cache_key` beside it.

    Raises:
        InputError: something else, or a key that is no text or has no cache.
    """
    if cache_key is not None and (not isinstance(cache_key, str) or not cache_key):
        raise InputError(
            "cache_key",
            got=repr(cache_key),
            allowed="a text that names the model's code, or None",
            fix="pass a name that you change with the model's code, e.g. 'resnet50-v1'",
        )
    if cache is None or cache is False:
        if cache_key is not None:
            raise InputError(
                "cache_key",
                got=f"{cache_key!r} without a cache",
                allowed="one beside cache=True",
                fix="pass cache=True or a folder, or leave cache_key out",
            )
        return None
    if isinstance(cache, EngineCache):
        return cache
    if cache is True:
        return EngineCache()
    if isinstance(cache, (str, Path)):
        return EngineCache(cache)
    fix = "pass cache=True for the user's cache folder"
    raise InputError("cache", got=repr(cache), allowed="True, False, a folder or an EngineCache", fix=fix)


def key_of(facts: Mapping[str, Any]) -> str:
    """The key of an engine.

    Args:
        facts: JSON values, all that decides what TensorRT makes.
    """
    return hashlib.sha256(canonical(facts)).hexdigest()

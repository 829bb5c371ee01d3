"""Engines that were built before, found by a hash of everything that decides what TensorRT makes.

Enters: a key, and engines that passed their checks. Leaves: engines, and records that say which engine answered which
request. Separate because several processes share the folder, and each may be killed at any moment. One rename each
makes or removes an entry or a record, so that reading needs no lock.
"""

from __future__ import annotations

import contextlib
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
from typing import Any, TypeAlias

from torch2engine.artifact.atomic_folder import remove_abandoned
from torch2engine.artifact.build_lock import build_lock
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest import NAME, canonical
from torch2engine.core.config import is_count
from torch2engine.core.errors import ArtifactError, InputError
from torch2engine.core.package import public

__all__ = ["Cache", "CacheEntry", "EngineCache", "RequestRecord", "hash_facts", "resolve_cache"]

# Raise it with every change of the layout, and of the way in which an engine is built from the same facts.
_VERSION = 2
_KEY = re.compile(r"[0-9a-f]{64}")
_TRASH_PREFIX = ".trash-"
_LOCKS_FOLDER = "locks"
_RECORDS_FOLDER = "requests"
_DEFAULT_MAX_BYTES = 20 << 30
_RECORD_GRACE_S = 60.0  # a younger record stays, because its engine may not be stored yet
_RECORD_LIFETIME_S = 90 * 24 * 3600.0
_LOG = logging.getLogger("torch2engine.cache")

Cache: TypeAlias = "EngineCache | str | Path | bool | None"


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """An engine in a cache.

    Args:
        key: a hash of all facts that decide what TensorRT makes, 64 hex digits.
        size_bytes: of its files.
        used: time of the last store or take, in seconds since 1970.
        path: its folder.
    """

    key: str
    size_bytes: int
    used: float
    path: Path


@dataclass(frozen=True)
class RequestRecord:
    """Facts about a cached engine that were found for one request.

    Args:
        engine_key: the key of the engine.
        facts: JSON values.
    """

    engine_key: str
    facts: Mapping[str, Any]


@public
class EngineCache:
    """A folder of engines, shared by threads and processes of one machine.

    Args:
        folder: None means "torch2engine" in the user's cache folder (`XDG_CACHE_HOME`, else ``~/.cache``). An engine is
            code: a folder that everybody may write to is not used.
        max_bytes: above it, the engines that were used least recently are removed.

    Raises:
        InputError: an empty folder name, or a size that is no positive int.
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = _DEFAULT_MAX_BYTES) -> None:
        if not is_count(max_bytes):
            raise InputError(
                "EngineCache.max_bytes",
                got=repr(max_bytes),
                allowed="a positive int, in bytes",
                fix="e.g. max_bytes=10 * 2**30",
            )
        if folder is None:
            import platformdirs

            folder = platformdirs.user_cache_path("torch2engine")
        elif not str(folder):
            raise InputError(
                "EngineCache.folder", got="''", allowed="a folder", fix="pass None for the user's cache folder"
            )
        self._folder = Path(folder).expanduser().absolute() / f"engines-{_VERSION}"
        self._max_bytes = max_bytes

    @property
    def folder(self) -> Path:
        """Where the entries lie."""
        return self._folder

    def take(self, key: str) -> EngineArtifact | None:
        """Take an engine out, which stays usable after its entry is removed; None if there is none.

        A damaged entry is removed, with a warning.
        """
        path = self._folder / _checked(key)
        try:
            if not path.is_dir() or not self._is_safe():
                return None
            cached = EngineArtifact.load(path)
        except (ArtifactError, OSError) as error:
            if self._discard(path):  # otherwise another process has just removed it
                warnings.warn(f"an engine in the cache was damaged and is built anew: {error}", stacklevel=2)
            return None
        try:
            engine = cached.linked()
        except ArtifactError as error:
            _LOG.warning("an engine in the cache can't be taken and is built anew: %s", error)
            return None
        with contextlib.suppress(OSError):  # the cache may be read-only
            os.utime(path / NAME)
        return engine

    def store(self, key: str, engine: EngineArtifact) -> None:
        """Put an engine into the cache, instead of an earlier one, and remove others above the bound.

        If that fails, the logger ``torch2engine.cache`` says so.
        """
        path = self._folder / _checked(key)
        try:
            if not self._make_folder():
                return
            engine.save(path)
        except (ArtifactError, OSError) as error:
            _LOG.warning("the engine cache '%s' can't keep an engine: %s", self._folder, error)
            return
        self.prune(keep=key)

    def remove(self, key: str) -> bool:
        """Remove an entry; False if there is none."""
        return self._discard(self._folder / _checked(key))

    def write_record(self, request_key: str, record: RequestRecord) -> None:
        """Store facts about an engine for a request; the record is removed once the engine is gone.

        If that fails, the logger ``torch2engine.cache`` says so.
        """
        data = canonical({"facts": record.facts, "engine": _checked(record.engine_key)})
        path = self._record_path(request_key)
        staging = path.with_name(f".{request_key}-{secrets.token_hex(8)}")
        try:
            if not self._make_folder():
                return
            path.parent.mkdir(exist_ok=True)
            try:
                staging.write_bytes(hashlib.sha256(data).hexdigest().encode("ascii") + b"\n" + data)
                staging.replace(path)
            finally:
                staging.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("the engine cache '%s' can't keep a record: %s", self._folder, error)

    def read_record(self, request_key: str) -> RequestRecord | None:
        """Find the record of a request; None if there is none, or if it can't be read."""
        try:
            if not self._is_safe():
                return None
            digest, _, data = self._record_path(request_key).read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest().encode("ascii") != digest:
            return None  # the machine lost power during the write
        record = json.loads(data)
        # No further check: the key holds the version of torch2engine, so the same version wrote it.
        return RequestRecord(record["engine"], record["facts"])

    def refresh_record(self, request_key: str) -> None:
        """Reset the age of a record, because it was used."""
        with contextlib.suppress(OSError):
            os.utime(self._record_path(request_key))

    def remove_record(self, request_key: str) -> None:
        """Remove the record of a request, if there is one."""
        with contextlib.suppress(OSError):
            self._record_path(request_key).unlink()

    def _record_path(self, request_key: str) -> Path:
        return self._folder / _RECORDS_FOLDER / _checked(request_key)

    @contextlib.contextmanager
    def building(self, key: str, waiting: Callable[[], object] = lambda: None) -> Generator[None]:
        """Lock an engine's key, so that no other process builds the engine meanwhile.

        On file systems without locks nothing is locked.

        Args:
            key: the engine's.
            waiting: called ten times a second while another process holds the lock. An exception from it ends the wait.

        Raises:
            BuildError: the process that holds the lock is stopped or hangs; the message says which it is.
        """
        place = self._folder / _LOCKS_FOLDER / _checked(key)
        lock = self._open_lock(place)
        if lock is None:
            yield
            return
        try:
            with build_lock(lock, place, waiting):
                yield
        finally:
            os.close(lock)

    def entries(self) -> tuple[CacheEntry, ...]:
        """List the cached engines, the least recently used first."""
        entries: list[CacheEntry] = []
        for path in self._children(_KEY.fullmatch):
            with contextlib.suppress(OSError):  # another process may be removing it now
                files = {file.name: file.stat() for file in path.iterdir()}
                used = files[NAME] if NAME in files else path.stat()
                size = sum(status.st_size for status in files.values())
                entries.append(CacheEntry(key=path.name, size_bytes=size, used=used.st_mtime, path=path))
        return tuple(sorted(entries, key=lambda entry: entry.used))

    def prune(self, max_bytes: int | None = None, keep: str = "") -> int:
        """Remove the least recently used engines until the rest fits, and leftovers of killed processes.

        Args:
            max_bytes: None means the cache's own bound.
            keep: the key of an engine that stays.

        Returns:
            the number of bytes freed.
        """
        for path in self._children(lambda name: name.startswith(".")):
            if path.name.startswith(_TRASH_PREFIX):
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
        self._prune_records()
        return freed

    def clear(self) -> int:
        """Remove every engine and return the number of bytes freed."""
        return self.prune(0)

    def _prune_records(self) -> None:
        """Remove old records, records of engines that are gone, and leftovers of killed processes."""
        try:
            paths = list((self._folder / _RECORDS_FOLDER).iterdir())
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                age_s = time.time() - path.stat().st_mtime
                if age_s < _RECORD_GRACE_S:
                    continue
                record = self.read_record(path.name) if _KEY.fullmatch(path.name) else None
                if record is None or age_s > _RECORD_LIFETIME_S or not (self._folder / record.engine_key).is_dir():
                    path.unlink(missing_ok=True)

    def _children(self, select: Callable[[str], object]) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if select(path.name) and path.is_dir()]
        except OSError:
            return []

    def _is_safe(self) -> bool:
        """Whether nobody but the owner and their group can write here: an engine is code."""
        mode = self._folder.stat().st_mode
        if mode & stat.S_IWOTH:
            _LOG.warning("the engine cache '%s' is not used: everybody may write to it", self._folder)
        return not mode & stat.S_IWOTH

    def _make_folder(self) -> bool:
        """Make the folder if it is missing; False if it must not be used."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._is_safe()

    def _open_lock(self, place: Path) -> int | None:
        """Open the lock's file; None where that is impossible."""
        try:
            if not self._make_folder():
                return None
            place.parent.mkdir(exist_ok=True)
            return os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _LOG.warning("the engine cache '%s' can't be used: %s", self._folder, error)
            return None

    def _discard(self, path: Path) -> bool:
        """Remove a folder in one step, so that no process reads half of it; False if it is gone already."""
        trash = self._folder / f"{_TRASH_PREFIX}{secrets.token_hex(8)}"
        try:
            path.rename(trash)
        except OSError:
            return False
        shutil.rmtree(trash, ignore_errors=True)
        return True


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InputError("cache key", got=repr(key), allowed="64 hex digits", fix="take a key from entries()")
    return key


def resolve_cache(cache: object, cache_key: object = None) -> EngineCache | None:
    """Find the cache that a `cache` argument means, and check the `cache_key` beside it.

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


def hash_facts(facts: Mapping[str, Any]) -> str:
    """Make a cache key of JSON values: all facts that decide what TensorRT makes."""
    return hashlib.sha256(canonical(facts)).hexdigest()

"""Engines that were built before, found by a hash of everything that decides what TensorRT makes.

Enters: a key, and engines that passed their checks. Leaves: engines, and records that say which engine answered which
request. Separate because several processes share the folder, and each may be killed at any moment. One rename each
makes or removes an entry or a record, so that reading needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
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
from typing import Any, TypeAlias

from torch2engine.artifact.atomic_folder import remove_abandoned
from torch2engine.artifact.build_lock import build_lock
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.file_access import read_file, write_file
from torch2engine.artifact.manifest import LIMIT_BYTES, NAME, canonical
from torch2engine.artifact.manifest_fields import decode_non_finite, encode_non_finite
from torch2engine.artifact.trust import distrust, is_own_folder
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
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENXIO)
_logger = logging.getLogger("torch2engine.cache")

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
    """What was found out about a cached engine for one request.

    Args:
        engine_key: the key of the engine.
        findings: JSON values.
    """

    engine_key: str
    findings: Mapping[str, Any]


@public
class EngineCache:
    """A folder of engines, shared by threads and processes of one machine.

    Args:
        folder: None means "torch2engine" in the user's cache folder (`XDG_CACHE_HOME`, else ``~/.cache``). An engine is
            code. So a folder is not used if it, or a link or a folder above it, belongs to another user, or if others
            may write to it.
        max_bytes: above it, the engines that were used least recently are removed.

    Raises:
        InputError: no folder's name, a user without a home folder, or a size that is no positive int.

    >>> cache = t2e.EngineCache("engines", max_bytes=5 * 2**30)
    >>> built = t2e.build(onnx, cache=cache)
    >>> again = t2e.build(onnx, cache=cache)  # not built, but taken out
    >>> len(cache.entries())
    1
    """

    def __init__(self, folder: str | Path | None = None, max_bytes: int = _DEFAULT_MAX_BYTES) -> None:
        if not is_count(max_bytes):
            raise InputError(
                "EngineCache.max_bytes",
                got=repr(max_bytes),
                allowed="a positive int, in bytes",
                fix="e.g. max_bytes=10 * 2**30",
            )
        self._folder = _absolute_folder(folder) / f"engines-{_VERSION}"
        self._max_bytes = max_bytes

    @property
    def folder(self) -> Path:
        """The folder of the entries."""
        return self._folder

    def take(self, key: str) -> EngineArtifact | None:
        """Take an engine out, which stays usable after its entry is removed; None if there is none.

        A damaged entry is removed, with a warning.
        """
        path = self._folder / _checked(key)
        try:
            if not self._is_safe() or not is_own_folder(path):
                return None
            cached = EngineArtifact.load(path)
        except (ArtifactError, OSError) as error:
            if not _is_damage(error):
                _logger.warning("an engine in the cache can't be read and is built anew: %s", error)
            elif self._discard(path):  # otherwise another process has just removed it
                warnings.warn(f"an engine in the cache was damaged and is built anew: {error}", stacklevel=2)
            return None
        try:
            engine = cached.linked()
        except ArtifactError as error:
            _logger.warning("an engine in the cache can't be taken and is built anew: %s", error)
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
            if path.is_symlink():  # `save` would replace the folder that the link points to
                _logger.warning("the engine cache '%s' can't keep an engine: '%s' is a link", self._folder, path)
                return
            engine.save(path)
            path.chmod(0o700)  # whatever the umask
        except (ArtifactError, OSError) as error:
            _logger.warning("the engine cache '%s' can't keep an engine: %s", self._folder, error)
            return
        self.prune(keep=key)

    def remove(self, key: str) -> bool:
        """Remove an entry; False if there is none."""
        return self._discard(self._folder / _checked(key))

    def write_record(self, record_key: str, record: RequestRecord) -> None:
        """Store facts about an engine for a request; the record is removed once the engine is gone.

        If that fails, the logger ``torch2engine.cache`` says so.
        """
        engine_key = _checked(record.engine_key)
        path = self._record_path(record_key)
        staging = path.with_name(f".{record_key}-{secrets.token_hex(8)}")
        try:
            data = canonical({"facts": encode_non_finite(record.findings), "engine": engine_key})
            if not self._make_folder() or not _make_own_folder(path.parent):
                return
            try:
                write_file(staging, hashlib.sha256(data).hexdigest().encode("ascii") + b"\n" + data)
                staging.replace(path)
            finally:
                staging.unlink(missing_ok=True)
        except (OSError, TypeError, ValueError) as error:
            _logger.warning("the engine cache '%s' can't keep a record: %s", self._folder, error)

    def read_record(self, record_key: str) -> RequestRecord | None:
        """Find the record of a request; None if there is none, or if it can't be read."""
        try:
            path = self._record_path(record_key)
            if not self._is_safe() or not is_own_folder(path.parent):
                return None
            digest, _, data = read_file(path, LIMIT_BYTES).partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest().encode("ascii") != digest:
            return None  # the machine lost power during the write
        record = json.loads(data)
        # No further check: the key holds the version of torch2engine, so the same version wrote it.
        return RequestRecord(record["engine"], decode_non_finite(record["facts"]))

    def refresh_record(self, record_key: str) -> None:
        """Reset the age of a record, because it was used."""
        with contextlib.suppress(OSError):
            os.utime(self._record_path(record_key))

    def remove_record(self, record_key: str) -> None:
        """Remove the record of a request, if there is one."""
        with contextlib.suppress(OSError):
            self._record_path(record_key).unlink()

    def _record_path(self, record_key: str) -> Path:
        return self._folder / _RECORDS_FOLDER / _checked(record_key)

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
        if not is_own_folder(self._folder / _RECORDS_FOLDER):  # behind a link lie somebody else's files
            return
        try:
            paths = list((self._folder / _RECORDS_FOLDER).iterdir())
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError):
                age_s = time.time() - path.stat().st_mtime
                is_of_the_future = age_s < -_RECORD_GRACE_S  # otherwise it would stay until then
                if age_s < _RECORD_GRACE_S and not is_of_the_future:
                    continue
                record = self.read_record(path.name) if _KEY.fullmatch(path.name) else None
                is_outdated = is_of_the_future or age_s > _RECORD_LIFETIME_S
                if record is None or is_outdated or not (self._folder / record.engine_key).is_dir():
                    path.unlink(missing_ok=True)

    def _children(self, select: Callable[[str], object]) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if select(path.name) and path.is_dir()]
        except OSError:
            return []

    def _is_safe(self) -> bool:
        """Whether nobody else can write here, or put another folder in this one's place: an engine is code."""
        reason = distrust(self._folder)
        if reason:
            _logger.warning("the engine cache '%s' is not used: %s", self._folder, reason)
        return not reason

    def _make_folder(self) -> bool:
        """Make the folder if it is missing; False if it must not be used."""
        for folder in (*reversed(self._folder.parents), self._folder):
            if not folder.exists():
                folder.mkdir(exist_ok=True, mode=0o700)  # whatever the umask
        return self._is_safe()

    def _open_lock(self, place: Path) -> int | None:
        """Open the lock's file; None where that is impossible."""
        try:
            if not self._make_folder() or not _make_own_folder(place.parent):
                return None
            return os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            _logger.warning("the engine cache '%s' can't be used: %s", self._folder, error)
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


def _absolute_folder(folder: str | Path | None) -> Path:
    """The folder of a cache; None means the user's."""
    fix = "pass a folder that exists for this user, or set XDG_CACHE_HOME"
    if folder is None:
        import platformdirs

        try:
            folder = platformdirs.user_cache_path("torch2engine")
        except RuntimeError as error:
            raise _homeless(fix) from error
    elif not str(folder) or "\0" in str(folder):
        raise InputError(
            "EngineCache.folder", got=repr(str(folder)), allowed="a folder", fix="pass None for the user's cache folder"
        )
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise _homeless(fix) from error
    except OSError as error:  # the working directory is gone
        raise InputError("EngineCache.folder", got=f"'{error}'", allowed="a folder", fix=fix) from error


def _homeless(fix: str) -> InputError:
    """The error for a user with neither HOME nor an entry in the system's list of users."""
    return InputError("EngineCache.folder", got="a user without a home folder", allowed="a folder", fix=fix)


def _make_own_folder(folder: Path) -> bool:
    """Make a folder inside the cache; False if there is something else, such as a link."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    is_own = is_own_folder(folder)
    if not is_own:
        _logger.warning("the engine cache '%s' is not used: '%s' is not its own folder", folder.parent, folder.name)
    return is_own


def _is_damage(error: ArtifactError | OSError) -> bool:
    """Whether an entry is wrong itself, or the process only lacks descriptors, memory or rights to read it."""
    cause = error.__cause__ if isinstance(error, ArtifactError) else error
    return not isinstance(cause, OSError) or cause.errno in _DAMAGE


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InputError("cache key", got=repr(key), allowed="64 hex digits", fix="take a key from entries()")
    return key


def resolve_cache(cache: object, cache_key: object = None) -> EngineCache | None:
    """Find the cache that a `cache` argument means, and check the `cache_key` beside it.

    Raises:
        InputError: no cache and no path, or a key that is not a text or has no cache.
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
        try:
            return EngineCache()
        except InputError as error:
            _logger.warning("no engine cache is used: %s", error)
            return None
    if isinstance(cache, (str, Path)):
        return EngineCache(cache)
    fix = "pass cache=True for the user's cache folder"
    raise InputError("cache", got=repr(cache), allowed="True, False, a folder or an EngineCache", fix=fix)


def hash_facts(facts: Mapping[str, Any]) -> str:
    """Make a cache key of JSON values: all facts that decide what TensorRT makes."""
    return hashlib.sha256(canonical(facts)).hexdigest()

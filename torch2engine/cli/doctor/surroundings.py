"""Checks of the interpreter, the environment's variables, the engine cache and the disk.

Enters: a `Machine`. Leaves: findings. Separate because these have to do with no package.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from torch2engine.cli.doctor.doctor_finding import DoctorFinding
from torch2engine.cli.doctor.machine import Machine, release

__all__ = ["check_surroundings"]

_OLDEST_PYTHON = (3, 10)
_ENOUGH_BYTES = 2 << 30


def check_surroundings(machine: Machine, free_bytes: int | None = None) -> Iterator[DoctorFinding]:
    """Look at everything around the packages.

    Args:
        machine: the facts.
        free_bytes: of the disk that holds the cache; None asks the system.
    """
    yield from _check_python(machine)
    yield from _check_variables(machine)
    yield from _check_cache(machine, free_bytes)


def _check_python(machine: Machine) -> Iterator[DoctorFinding]:
    version = str(machine.python.get("version", ""))
    if release(version) < _OLDEST_PYTHON:
        yield DoctorFinding(
            name="python-old",
            severity="fault",
            found=f"Python {version}",
            why="torch2engine needs Python 3.10 or later",
            cure="make an environment of a newer one, e.g. python3.12 -m venv .venv",
        )
    place = f"{machine.python.get('system')} {machine.python.get('machine')}"
    if place != "Linux x86_64":
        yield DoctorFinding(
            name="system-untested",
            severity="warning",
            found=place,
            why="torch2engine is tested on Linux x86_64 alone",
            cure="use a container or a machine with Linux x86_64",
        )


def _check_variables(machine: Machine) -> Iterator[DoctorFinding]:
    override = machine.environment.get("NVIDIA_TF32_OVERRIDE")
    if override is not None:
        effect = "switches TF32 off everywhere" if override == "0" else "lets every library use TF32"
        yield DoctorFinding(
            name="tf32-override",
            severity="warning",
            found=f"NVIDIA_TF32_OVERRIDE={override}",
            why=f"it {effect}, so PyTorch's own answers, with which engines are compared, depend on it",
            cure="unset NVIDIA_TF32_OVERRIDE",
        )
    if machine.environment.get("CUDA_LAUNCH_BLOCKING") == "1":
        yield DoctorFinding(
            name="launch-blocking",
            severity="warning",
            found="CUDA_LAUNCH_BLOCKING=1",
            why="every call waits for the GPU, so nothing that is timed here means anything",
            cure="unset CUDA_LAUNCH_BLOCKING",
        )


def _check_cache(machine: Machine, free_bytes: int | None) -> Iterator[DoctorFinding]:
    folder = _cache_folder(machine)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield DoctorFinding(
            name="cache-read-only",
            severity="warning",
            found=f"nothing can be written to {existing}",
            why="no engine is kept, so every deploy builds anew",
            cure="export XDG_CACHE_HOME=$HOME/.cache, or pass cache='a folder of yours'",
        )
        return
    engines = [place for place in folder.glob("engines-*") if place.stat().st_mode & stat.S_IWOTH]
    for place in engines:
        yield DoctorFinding(
            name="cache-open-to-all",
            severity="warning",
            found=f"everybody may write to {place}",
            why="an engine is code, so torch2engine does not use such a cache",
            cure=f"chmod o-w {place}",
        )
    free = shutil.disk_usage(existing).free if free_bytes is None else free_bytes
    if free < _ENOUGH_BYTES:
        yield DoctorFinding(
            name="disk-full",
            severity="warning",
            found=f"{free / 2**30:.1f} GiB free at {existing}",
            why="an engine of a large model, with its ONNX file, may need more",
            cure="torch2engine cache prune --max-bytes 1000000000",
        )


def _cache_folder(machine: Machine) -> Path:
    """The folder of `EngineCache`, without the library that finds it: it may be missing."""
    home = machine.environment.get("XDG_CACHE_HOME") or ""
    parent = Path(home) if home.strip() else Path(machine.environment.get("HOME", "/")) / ".cache"
    return parent / "torch2engine"

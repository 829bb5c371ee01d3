"""The real bindings, fetched once: wheels of a few megabytes, imported on stub libraries, dumped as `Api`.

Enters: the lock file that names and hashes the wheels, and a folder to keep things in. Leaves: one `Api` per version.
A room of its own because it is the only part that needs pip, a compiler and, the first time, the network.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.conformance.api import Api

_HERE = Path(__file__).parent
_SCRIPTS = (_HERE / "dump.py", _HERE / "stub.c")


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of bindings; `requirement` is its line of the lock file, hashes included."""

    name: str
    version: str
    requirement: str

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX."""
        return "-rtx-" in self.name

    @property
    def title(self) -> str:
        """The version as reports name it."""
        return f"{'tensorrt_rtx' if self.is_rtx else 'tensorrt'} {self.version}"

    @property
    def package(self) -> str:
        """The package inside."""
        return "tensorrt_rtx_bindings" if self.is_rtx else "tensorrt_bindings"

    @property
    def libraries(self) -> tuple[str, ...]:
        """The shared libraries that the bindings are linked to."""
        if self.is_rtx:
            return "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"
        major = self.version.partition(".")[0]
        return tuple(f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"))


def read_lock(path: Path) -> list[Wheel]:
    """Read the wheels of a lock file."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines()]
    return [Wheel(*re.split("==| ", line)[:2], line) for line in lines if line]


def load(lock: Path, folder: Path) -> list[Api]:
    """Give the API of every version in a lock file; what is missing is fetched, compiled and dumped.

    Args:
        lock: the lock file.
        folder: where wheels, stub libraries and dumps are kept between runs.

    Raises:
        RuntimeError: pip, the compiler or the bindings failed; with what they said.
    """
    return [Api(wheel.title, wheel.is_rtx, _dump(wheel, folder)) for wheel in read_lock(lock)]


def _dump(wheel: Wheel, folder: Path) -> dict[str, object]:
    home = folder / f"{wheel.name}-{wheel.version}-{sys.implementation.cache_tag}"
    home.mkdir(parents=True, exist_ok=True)
    scripts = hashlib.sha256(b"".join(script.read_bytes() for script in _SCRIPTS)).hexdigest()
    kept = home / f"{scripts[:16]}.json"
    with _alone(home):
        if not kept.exists():
            if not (home / "wheel").exists():
                _fetch(wheel, home)
            _compile(wheel, home / "stubs")
            script = [sys.executable, "-S", "-E", str(_SCRIPTS[0]), str(home / "wheel"), wheel.package]
            _write(kept, _run(script, LD_LIBRARY_PATH=str(home / "stubs")))
    return json.loads(kept.read_text(encoding="utf-8"))


def _fetch(wheel: Wheel, home: Path) -> None:
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        wanted = Path(scratch, "requirement.txt")
        wanted.write_text(wheel.requirement, encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        _run([*pip, "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", scratch])
        (archive,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(Path(scratch, "wheel"))
        Path(scratch, "wheel").rename(home / "wheel")


def _compile(wheel: Wheel, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in wheel.libraries:
        _run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(_SCRIPTS[1])])


def _run(command: Sequence[str], **environment: str) -> str:
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def _write(path: Path, text: str) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(text, encoding="utf-8")
    scratch.rename(path)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keep test processes that run at the same time from fetching the same wheel."""
    with (home / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

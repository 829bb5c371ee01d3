"""The facts about a machine, collected by a child process that may crash.

Enters: an environment, and the folders where packages lie. Leaves: a `Machine`. Separate because the checks only read
facts, and only this file starts processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch2engine.artifact.scratch_folder import scratch_folder

__all__ = ["MODULES", "Driver", "Imported", "Machine", "examine_machine", "release"]

MODULES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "platformdirs",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda.driver",
    "modelopt",
)
_PROBE = Path(__file__).with_name("probe.py")
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Imported:
    """The outcome of importing a module.

    Args:
        error: "" where it worked; else class and text of what it raised, or how the process died.
        missing: the module that was not found, which may be one that it needs itself.
        file: the file that was imported; None for a folder without an `__init__.py`.
        folders: where its parts lie.
        version: `__version__`, or "".
        facts: what else it tells, for torch its CUDA version and architectures.
    """

    error: str = ""
    missing: str | None = None
    file: str | None = None
    folders: tuple[str, ...] = ()
    version: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def works(self) -> bool:
        """Whether there is such a module, and it could be imported."""
        return not self.error and self.file is not None

    def is_absent(self, name: str) -> bool:
        """Whether there is no module of this name at all."""
        return self.missing is not None and (self.missing == name or self.missing == name.partition(".")[0])


@dataclass(frozen=True)
class Driver:
    """The facts that NVIDIA's driver gives.

    Args:
        has_library: whether libcuda could be loaded.
        error: why it could not; or how the child process died.
        status: of cuInit; 0 for a driver that starts.
        cuda: the newest CUDA version that it supports, e.g. (13, 0).
        gpus: name and compute capability of each visible GPU.
    """

    has_library: bool = False
    error: str = ""
    status: int = 0
    cuda: tuple[int, int] = (0, 0)
    gpus: tuple[tuple[str, tuple[int, int]], ...] = ()


@dataclass(frozen=True)
class Machine:
    """Facts about a machine.

    Args:
        python: version, executable, system, machine, libc and path.
        distributions: {name in lower case with dashes: its versions}.
        imports: {module: what came of importing it}.
        driver: what the driver says.
        environment: the variables of the environment.
    """

    python: Mapping[str, Any]
    distributions: Mapping[str, Sequence[str]]
    imports: Mapping[str, Imported]
    driver: Driver
    environment: Mapping[str, str]

    def version_of(self, distribution: str) -> str:
        """The version of a distribution; "" if it is not installed."""
        versions = self.distributions.get(distribution, ())
        return versions[0] if versions else ""

    def folders_of(self, variable: str) -> list[Path]:
        """The folders that a variable such as LD_LIBRARY_PATH lists."""
        return [Path(part) for part in self.environment.get(variable, "").split(":") if part]


def examine_machine(environment: Mapping[str, str], python: Sequence[str] = (sys.executable,)) -> Machine:
    """Collect the facts.

    Args:
        environment: what the child process gets.
        python: the interpreter with its options; by default the running one.
    """
    facts: list[dict[str, Any]] = []
    died: dict[str, Imported] = {}
    names = list(MODULES)
    while True:
        found, ending = _probe(environment, python, names)
        facts += found
        begun = [fact["name"] for fact in found if fact["kind"] == "begin"]
        done = {fact["name"] for fact in found if fact["kind"] == "import"}
        unfinished = [name for name in begun if name not in done and name != "driver"]
        if not unfinished:
            break
        died[unfinished[-1]] = Imported(error=f"the process that imports it {ending}")
        names = names[names.index(unfinished[-1]) + 1 :]
    by_kind = {fact["kind"]: fact for fact in facts}
    imports = {fact["name"]: _imported(fact) for fact in facts if fact["kind"] == "import"}
    return Machine(
        python=by_kind.get("python", {}),
        distributions=by_kind.get("distributions", {}).get("versions", {}),
        imports={**imports, **died},
        driver=_driver(by_kind.get("driver", {"library": False, "error": "a driver that ends the process"})),
        environment=environment,
    )


def _probe(
    environment: Mapping[str, str], python: Sequence[str], names: Sequence[str]
) -> tuple[list[dict[str, Any]], str]:
    """Run the child process once; what it wrote, and how it ended."""
    with scratch_folder() as folder:
        report = folder / "facts.jsonl"
        command = [*python, str(_PROBE), str(report), *names]
        try:
            done = subprocess.run(command, env=dict(environment), capture_output=True, check=False, timeout=_TIMEOUT_S)
            ending = f"dies by signal {-done.returncode}" if done.returncode < 0 else f"ends with {done.returncode}"
        except subprocess.TimeoutExpired:
            ending = f"hangs for {_TIMEOUT_S} s"
        lines = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
    return [json.loads(line) for line in lines], ending


def _imported(fact: Mapping[str, Any]) -> Imported:
    known = {"kind", "name", "error", "missing", "file", "folders", "version"}
    return Imported(
        error=fact.get("error", ""),
        missing=fact.get("missing"),
        file=fact.get("file"),
        folders=tuple(fact.get("folders", ())),
        version=fact.get("version", ""),
        facts={name: value for name, value in fact.items() if name not in known},
    )


def _driver(fact: Mapping[str, Any]) -> Driver:
    major, minor = fact.get("cuda", (0, 0))
    gpus = tuple((gpu["name"], (gpu["capability"][0], gpu["capability"][1])) for gpu in fact.get("gpus", ()))
    return Driver(fact["library"], fact.get("error", ""), fact.get("status", 0), (major, minor), gpus)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version, to compare it by.

    >>> release("2.13.0+cpu"), release("1.6.1.120") < release("1.7")
    ((2, 13, 0), True)
    """
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)

"""The doctor: facts → findings → text and JSON.

Enters: an environment. Leaves: an `Outcome` whose exit code says whether something is broken. Separate because it puts
the checks in their order, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch2engine.cli.doctor.doctor_finding import DoctorFinding
from torch2engine.cli.doctor.flavours import check_flavours
from torch2engine.cli.doctor.gpus import check_driver
from torch2engine.cli.doctor.machine import Machine, examine_machine
from torch2engine.cli.doctor.packages import REQUIRED, check_packages
from torch2engine.cli.doctor.surroundings import check_surroundings
from torch2engine.cli.outcome import FAILED, PASSED, Outcome
from torch2engine.core.config import read_environment
from torch2engine.core.version import __version__

__all__ = ["examine", "findings_of"]

_SEVERITIES = ("fault", "warning", "note")
_SHOWN = (*REQUIRED, "nvidia-modelopt", "pycuda", "tensorrt", "tensorrt-rtx")


def examine() -> Outcome:
    """Examine this machine."""
    environment = read_environment()
    machine = examine_machine(environment)
    findings = findings_of(machine)
    data = {
        "torch2engine": __version__,
        "python": {name: value for name, value in machine.python.items() if name != "path"},
        "distributions": _versions(machine),
        "gpus": [{"name": name, "compute_capability": list(capability)} for name, capability in machine.driver.gpus],
        "cuda_of_driver": list(machine.driver.cuda),
        "findings": [finding.to_json() for finding in findings],
    }
    broken = any(finding.severity == "fault" for finding in findings)
    return Outcome(_text(machine, findings), data, FAILED if broken else PASSED)


def findings_of(machine: Machine) -> list[DoctorFinding]:
    """Everything that the checks find, the worst first."""
    found = list(_all_checks(machine))
    return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))


def _all_checks(machine: Machine) -> Iterator[DoctorFinding]:
    yield from check_driver(machine)
    yield from check_packages(machine)
    yield from check_flavours(machine)
    yield from check_surroundings(machine)


def _versions(machine: Machine) -> Mapping[str, str]:
    return {name: machine.version_of(name) for name in _SHOWN if machine.version_of(name)}


def _text(machine: Machine, findings: Sequence[DoctorFinding]) -> str:
    python = machine.python
    gpus = [f"{name} (compute capability {major}.{minor})" for name, (major, minor) in machine.driver.gpus]
    counts = {word: sum(finding.severity == word for finding in findings) for word in _SEVERITIES}
    lines = [
        f"torch2engine {__version__}, Python {python.get('version')} on {python.get('system')} {python.get('machine')}",
        "packages: " + (", ".join(f"{name} {version}" for name, version in _versions(machine).items()) or "none"),
        "GPUs: " + (", ".join(gpus) or "none"),
        *map(str, findings),
        f"{counts['fault']} faults, {counts['warning']} warnings, {counts['note']} notes",
    ]
    return "\n".join(lines)

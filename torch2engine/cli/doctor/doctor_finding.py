"""One finding of the doctor.

Enters: what a check has seen. Leaves: a value that prints itself. Separate because every check makes some.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["DoctorFinding", "Severity", "fault"]

Severity = Literal["fault", "warning", "note"]


@dataclass(frozen=True, kw_only=True)
class DoctorFinding:
    """Something that a user should know.

    Args:
        name: a short name of the kind, e.g. "torch-cpu-build"; it stays the same between versions.
        severity: "fault" for what does not work, "warning" for what works otherwise than expected, "note" for the rest.
        found: what is there.
        why: what follows from it.
        cure: the line to type or the thing to do.
    """

    name: str
    severity: Severity
    found: str
    why: str
    cure: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.severity.upper()}  {self.found}", f"    why   {self.why}", f"    fix   {self.cure}"]
        return "\n".join(lines)


def fault(name: str, found: str, why: str, cure: str) -> DoctorFinding:
    """A finding of severity "fault"; the arguments are those of `DoctorFinding`."""
    return DoctorFinding(name=name, severity="fault", found=found, why=why, cure=cure)

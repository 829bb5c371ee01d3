"""Check a package against every version of the bindings at once.

Enters: the package's folder and the APIs. Leaves: `Report`: the uses that were checked and every problem, with the
versions that it breaks. A room of its own because some questions need all versions: a guard must let somebody through.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.conformance.api import Api
from tests.support.conformance.notes import Findings, Note
from tests.support.conformance.source import Package
from tests.support.conformance.statements import Walker


@dataclass(frozen=True)
class Problem:
    """Something in the source that a version of the bindings would refuse, or that nobody can check."""

    note: Note
    versions: tuple[str, ...]

    def __str__(self) -> str:
        place = f"{self.note.path}:{self.note.line}"
        return f"{place}: {self.note.expression}\n    {self.note.message} [{', '.join(self.versions)}]"


@dataclass(frozen=True)
class Report:
    """What was checked and what is wrong.

    uses: (path, line, "Class.member") of every checked use, whichever version checked it.
    problems: in the source's order.
    """

    uses: frozenset[tuple[str, int, str]]
    problems: tuple[Problem, ...]

    @property
    def members(self) -> frozenset[str]:
        """The distinct classes, members and calls that the source uses."""
        return frozenset(member for _, _, member in self.uses)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) or f"{len(self.uses)} uses, no problem"


def check(folder: Path, apis: Sequence[Api]) -> Report:
    """Check every file below a package's folder against every API."""
    package = Package(folder)
    findings = {api.title: Walker(package, api, apis).walk() for api in apis}
    notes: dict[Note, list[str]] = {}
    for title, found in findings.items():
        for note in found.problems:
            notes.setdefault(note, []).append(title)
    everywhere = [api.title for api in apis]
    for note in (*_locked_out(findings.values()), *_unreached(package, findings.values()), *_aliases(package, apis)):
        notes[note] = everywhere
    uses = frozenset(use for found in findings.values() for use in found.uses)
    return Report(uses, tuple(Problem(note, tuple(notes[note])) for note in sorted(notes)))


def _locked_out(findings: Sequence[Findings]) -> list[Note]:
    """Guards that ask for a member that no version has."""
    return [note for found in findings for note, exists in found.guards.items() if not exists]


def _unreached(package: Package, findings: Sequence[Findings]) -> Iterator[Note]:
    """First lines that no version reaches, so that nothing in them was checked."""
    reached = {statement for found in findings for statement in found.reached}
    for module in package.modules.values():
        yield from _first_unreached(module.path, module.tree, reached)


def _first_unreached(path: str, parent: ast.AST, reached: set[ast.stmt]) -> Iterator[Note]:
    silenced = False
    for child in ast.iter_child_nodes(parent):
        if isinstance(child, ast.stmt) and child not in reached:
            if not silenced:
                first_line = ast.unparse(child).splitlines()[0]
                yield Note(path, child.lineno, first_line, "no version reaches this, so it is not checked")
            silenced = True
        else:
            yield from _first_unreached(path, child, reached)


def _aliases(package: Package, apis: Sequence[Api]) -> Iterator[Note]:
    """Annotation names that are no class in any version."""
    for name, line in package.aliases.items():
        if not any(api.class_called(name) for api in apis):
            yield Note(package.door.path, line, name, "no version has a class of that name")

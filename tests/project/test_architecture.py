"""ARCHITECTURE.md speaks of the package as it is: its paths, its names, its layers, and where each change goes."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, REPOSITORY
from torch2engine.core.precisions import PRECISION_TYPES

PAGE = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

Mark = Callable[[ast.AST], bool]


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, its head left out."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def constant(value: str) -> Mark:
    """Code that has this very text as a constant."""
    return lambda node: isinstance(node, ast.Constant) and node.value == value


def attribute(name: str) -> Mark:
    """Code that reads an attribute of this name."""
    return lambda node: isinstance(node, ast.Attribute) and node.attr == name


def decisions(tree: ast.AST) -> list[ast.AST]:
    """All code but the defaults of parameters and fields, which show users what they get."""
    defaults: set[ast.AST] = set()
    for node in ast.walk(tree):
        values: list[ast.expr | None] = []
        if isinstance(node, ast.arguments):
            values = [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.ClassDef):
            values = [field.value for field in node.body if isinstance(field, ast.AnnAssign)]
        defaults.update(inner for value in values if value is not None for inner in ast.walk(value))
    return [node for node in ast.walk(tree) if node not in defaults]


@cache
def tree_of(file: str) -> ast.AST:
    """A file of the package, parsed once."""
    return ast.parse(FILES[file].read_text("utf-8"))


@cache
def texts_of_decisions(file: str) -> set[str]:
    """The texts that stand in a file's code, its defaults left out."""
    constants = [node.value for node in decisions(tree_of(file)) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


@cache
def markable_nodes(file: str) -> list[ast.AST]:
    """The nodes of a file that a mark may be."""
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.Constant, ast.Attribute))]


def files_with(mark: Mark) -> set[str]:
    """The package's files in which a mark stands."""
    return {file for file in FILES if any(map(mark, markable_nodes(file)))}


# What an existing example of each kind of change leaves in the code: fp8, the ONNX Runtime backend, named tuples, the
# narrowest of several profiles, and the field "hardware".
MARKS: dict[str, Mark] = {
    "a new precision": constant("fp8"),
    "a new backend": constant("torch2engine.deployed.onnxruntime.ort_module"),
    "a new pytree kind": constant("namedtuple"),
    "another choice of profile for a shape": attribute("breadth"),
    "a new manifest field": constant("hardware"),
}


DTYPE_TABLES = {
    "artifact/onnx_outline.py",
    "core/dtypes.py",
    "trt/bindings.py",
}  # "int8" and "int4" are names of dtypes there


@pytest.mark.parametrize("name", PRECISION_TYPES)
def test_name_of_a_precision_stands_in_its_files_alone(name: str) -> None:
    """Other files ask the table of precisions; only defaults name one."""
    listed = {kind: set(re.findall(r"`([\w/]+\.py)`", files)) for kind, files in rows("Where a change goes")}
    found = {file for file in FILES if name in texts_of_decisions(file)}
    is_dtype = PRECISION_TYPES[name].dtype == name
    assert found - (DTYPE_TABLES if is_dtype else set()) <= listed["a new precision"]


def test_decisions_are_all_code_but_defaults() -> None:
    """A comparison shows, and so does an argument; the default of a parameter or a field does not."""
    planted = ast.parse(
        'def f(x="fp16", *, y="bf16"):\n    return x == "tf32" or g(z="fp8")\nclass C:\n    a: str = "fp32"\n'
    )
    found = {name for name in PRECISION_TYPES if any(map(constant(name), decisions(planted)))}
    assert found == {"tf32", "fp8"}


@pytest.mark.parametrize("change", MARKS)
def test_change_touches_the_files_that_the_page_lists(change: str) -> None:
    """The marks of a change of this kind stand in listed files, and in no other."""
    listed = {kind: set(re.findall(r"`([\w/]+\.py)`", files)) for kind, files in rows("Where a change goes")}
    found = files_with(MARKS[change])
    assert found
    assert found <= listed[change]


def test_page_lists_every_marked_change() -> None:
    """No kind of change is listed that nothing holds."""
    assert [kind for kind, _ in rows("Where a change goes")] == list(MARKS)


def test_marks_are_found_wherever_they_stand() -> None:
    """A mark in a further file would show."""
    planted = ast.parse('if precision == "fp8":\n    profile.breadth\n')
    assert any(map(constant("fp8"), ast.walk(planted)))
    assert any(map(attribute("breadth"), ast.walk(planted)))
    assert not any(map(constant("fp8"), ast.walk(ast.parse('"""Quantises to "fp8"."""\n'))))


def test_every_path_of_the_page_exists() -> None:
    """Folders and files that the page names are there, below the package or the repository."""
    named = set(re.findall(r"`([\w/]+(?:\.py|\.toml|/))`", PAGE)) | set(re.findall(r"\b(\w+/)  ", PAGE))
    assert len(named) > 20
    assert [name for name in sorted(named) if not _exists(name)] == []


def _exists(name: str) -> bool:
    return any((root / name).exists() for root in (PACKAGE, REPOSITORY)) or name == "deployed/NAME/"


@pytest.mark.parametrize(("question", "place"), rows("Where is it?"))
def test_name_stands_in_the_file_that_the_page_gives(question: str, place: str) -> None:
    """Each answer names a function, a class or a table of that file."""
    file, name = re.findall(r"`([^`]+)`", place)
    tree = ast.parse(FILES[file].read_text("utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    tables = {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
    assert name in defined | tables, question


def test_layers_of_the_page_are_those_of_the_import_rules() -> None:
    """The picture of the layers and the contract that holds them are the same list."""
    rules = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    contract = re.search(r"^layers = \[\n(.*?)^\]", rules, re.MULTILINE | re.DOTALL)
    assert contract is not None
    held = [set(re.findall(r"\w+", line)) for line in contract[1].splitlines()]
    drawn = section("Layers").split("```")[1].strip().splitlines()
    assert [set(re.findall(r"\w+", line)) for line in drawn] == held


def test_every_entry_of_the_package_is_on_the_page() -> None:
    """A newcomer who lists the package finds each entry explained."""
    entries = {Path(name).parts[0] for name in FILES} - {"__init__.py"}
    picture = PAGE.split("```")[1]
    missing = [entry for entry in sorted(entries) if f"{entry}/ " not in picture and f"{entry} " not in picture]
    assert missing == []


FOLDERS = sorted({name.split("/")[0] for name in FILES if "/" in name})


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_file_of_a_folder_is_public_or_protected(folder: str) -> None:
    """The folder's docstring lists the public files, the import rules protect all others."""
    text = ast.get_docstring(ast.parse(FILES[f"{folder}/__init__.py"].read_text("utf-8"))) or ""
    public = set(re.findall(r"`([\w.]+)`", text.rpartition("Public: ")[2]))
    rules = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    files = {
        name.removeprefix(f"{folder}/").removesuffix(".py").replace("/", ".")
        for name in FILES
        if name.startswith(f"{folder}/") and not name.endswith("__init__.py")
    }
    assert public | _protected(rules, folder) == files
    assert not public & _protected(rules, folder)


def _protected(rules: str, folder: str) -> set[str]:
    """The files of a folder, and of folders in it, that the import rules protect."""
    contracts = re.findall(
        rf'name = "the inside of {folder}/[\w/]* is its own"\n.*?protected_modules = \[(.*?)\]', rules, re.DOTALL
    )
    return set(re.findall(rf"torch2engine\.{folder}\.([\w.]+)", "".join(contracts)))

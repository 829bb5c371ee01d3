"""The house rules that a machine can check; each rule is tested against a planted offence too."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import PACKAGE, REPOSITORY
from tests.support.source_trees import nodes_of, tree_of

FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("test_*.py"))

MOST_ENTRIES = 16
MOST_FUNCTION_LINES = 60
MOST_INSTANCE_DICTS = 5

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
Rule = Callable[[str, str], Iterator[str]]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, by statement or by importlib with a literal name."""
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return (node for node in nodes_of(tree) if isinstance(node, FunctionNode))


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring: nobody should shorten one to fit."""
    total = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        total -= (first.end_lineno or 0) - first.lineno + 1
    return total


def file_name_is_not_private(name: str, text: str) -> Iterator[str]:
    """No file name starts with an underscore: a folder's contract says what is public in it."""
    if name.startswith("_") and name not in ("__init__.py", "__main__.py"):
        yield f"{name} starts with an underscore"


def instance_dicts_are_touched_with_a_reason(name: str, text: str) -> Iterator[str]:
    """Code that goes around attributes, through `__dict__[...]`, says why in the same line."""
    for number, line in enumerate(text.splitlines(), 1):
        if "__dict__[" in line and "  # " not in line:
            yield f"line {number}: __dict__[ without a reason"


def functions_are_short(name: str, text: str) -> Iterator[str]:
    """A function has at most 60 lines; docstrings and lines of comment are not counted, or comments would be short."""
    lines = text.splitlines()
    for node in functions(tree_of(text)):
        own = lines[node.lineno - 1 : node.end_lineno]
        count = lines_of(node) - sum(line.lstrip().startswith("#") for line in own)
        if count > MOST_FUNCTION_LINES:
            yield f"line {node.lineno}: {node.name} has {count} lines, at most {MOST_FUNCTION_LINES}"


def tensorrt_is_imported_in_one_place(name: str, text: str) -> Iterator[str]:
    """Only trt/bindings.py imports TensorRT."""
    for line, module in imported(tree_of(text)):
        if module.partition(".")[0].startswith("tensorrt") and name != "library.py":
            yield f"line {line}: imports {module}, which only library.py may"


def pycuda_is_imported_in_one_place(name: str, text: str) -> Iterator[str]:
    """Only serving/processor/cuda.py imports pycuda."""
    for line, module in imported(tree_of(text)):
        if module.partition(".")[0] == "pycuda" and name != "cuda.py":
            yield f"line {line}: imports {module}, which only cuda.py may"


def nothing_is_printed(name: str, text: str) -> Iterator[str]:
    """No print(), and only cli/terminal.py writes to sys.stdout or sys.stderr; anyone may ask for isatty()."""
    tree = tree_of(text)
    asked = {id(node.value) for node in nodes_of(tree) if isinstance(node, ast.Attribute) and node.attr == "isatty"}
    for node in nodes_of(tree):
        if id(node) in asked:
            continue
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            yield f"line {node.lineno}: prints"
        if isinstance(node, ast.Attribute) and dotted(node) in ("sys.stdout", "sys.stderr") and name != "terminal.py":
            yield f"line {node.lineno}: uses {dotted(node)}"


def environment_is_used_in_declared_places(name: str, text: str) -> Iterator[str]:
    """The environment is read in config; two files also write it, and their tests prove that it is restored."""
    read = {"os.environ", "os.environb", "os.getenv"}
    write = {"os.putenv", "os.unsetenv"}
    forbidden = {"config.py": write, "tf32.py": set[str](), "ort_session.py": write}.get(name, read | write)
    tree = tree_of(text)
    for node in nodes_of(tree):
        used = dotted(node) if isinstance(node, ast.Attribute) else ""
        if used in forbidden:
            yield f"line {node.lineno}: uses {used}"
        changed = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
        if changed and name != "ort_session.py" and dotted(node.value) in read:
            yield f"line {node.lineno}: writes {dotted(node.value)}"
    for line, module in imported(tree):
        if module in forbidden:
            yield f"line {line}: imports {module}"


def pickle_is_no_format(name: str, text: str) -> Iterator[str]:
    """Nothing is read or written by pickle; torch.load takes weights only."""
    for node in nodes_of(tree_of(text)):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve") and not called.endswith(
            ".PickleBuffer"
        ):
            yield f"line {node.lineno}: calls {called}"
        weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if called == "torch.load" and not weights_only:
            yield f"line {node.lineno}: torch.load without weights_only=True"


def ignores_have_reasons(name: str, text: str) -> Iterator[str]:
    """A checker is silenced for one rule, and with a reason."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or not re.search(r"#\s*(type|pyright):\s*ignore", token.string):
            continue
        if not re.search(r"(type|pyright): ignore\[[\w, -]+\]\s+#\s*\w+ \w+", token.string):
            yield f"line {token.start[0]}: write `# pyright: ignore[rule]  # the reason`, not `{token.string}`"


def module_docstring_tells_the_job(name: str, text: str) -> Iterator[str]:
    """A module says in more than one line what enters, what leaves and why it is a room of its own."""
    docstring = ast.get_docstring(tree_of(text)) or ""
    if "\n" not in docstring:
        yield "module docstring is missing or one line only"
    elif not ("Enters" in docstring and "Leaves" in docstring):
        yield "module docstring does not say what enters and what leaves"


def promises_are_made_and_nothing_is_skipped(name: str, text: str) -> Iterator[str]:
    """A test states its promise in one line, and is never skipped or expected to fail."""
    tree = tree_of(text)
    for node in functions(tree):
        promise = ast.get_docstring(node) or ""
        if node.name.startswith("test_") and (not promise or "\n" in promise):
            yield f"line {node.lineno}: {node.name} has no one-line docstring"
    for node in nodes_of(tree):
        words = dotted(node).split(".") if isinstance(node, ast.Attribute) else []
        if words[-1:] and words[-1] in ("skip", "skipif", "skipIf", "importorskip", "xfail"):
            yield f"line {node.lineno}: {'.'.join(words)}"


def no_absolute_paths(name: str, text: str) -> Iterator[str]:
    """No file names a folder of somebody's machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.search(r"(?<![\w.~$})/-])/(?:work|root|home)/[\w.]", line):
            yield f"line {number}: {found.group()}..."


PACKAGE_RULES: list[Rule] = [
    file_name_is_not_private,
    instance_dicts_are_touched_with_a_reason,
    functions_are_short,
    tensorrt_is_imported_in_one_place,
    pycuda_is_imported_in_one_place,
    nothing_is_printed,
    environment_is_used_in_declared_places,
    pickle_is_no_format,
    ignores_have_reasons,
    module_docstring_tells_the_job,
]

LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MOST_FUNCTION_LINES
OFFENCES: list[tuple[Rule, str]] = [
    (instance_dicts_are_touched_with_a_reason, "self.__dict__['x'] = 1\n"),
    (functions_are_short, LONG_FUNCTION),
    (functions_are_short, f"class C:\n{LONG_FUNCTION.replace('    x', '     x').replace('def', ' def')}"),
    (tensorrt_is_imported_in_one_place, "import tensorrt as trt\n"),
    (tensorrt_is_imported_in_one_place, "def f():\n    from tensorrt_rtx import Builder\n"),
    (tensorrt_is_imported_in_one_place, "importlib.import_module('tensorrt_rtx_bindings')\n"),
    (pycuda_is_imported_in_one_place, "import pycuda.driver\n"),
    (pycuda_is_imported_in_one_place, "importlib.import_module('pycuda.autoinit')\n"),
    (nothing_is_printed, "def f():\n    print('x')\n"),
    (nothing_is_printed, "sys.stderr.write('x')\n"),
    (environment_is_used_in_declared_places, "x = os.environ['X']\n"),
    (environment_is_used_in_declared_places, "x = os.getenv('X')\n"),
    (environment_is_used_in_declared_places, "from os import environ\n"),
    (environment_is_used_in_declared_places, "os.putenv('X', '0')\n"),
    (environment_is_used_in_declared_places, "os.unsetenv('X')\n"),
    (pickle_is_no_format, "pickle.loads(b'')\n"),
    (pickle_is_no_format, "torch.load(path, weights_only=False)\n"),
    (ignores_have_reasons, "x = f()  # type: ignore\n"),
    (ignores_have_reasons, "x = f()  # pyright: ignore[reportCallIssue]\n"),
    (module_docstring_tells_the_job, "x = 1\n"),
    (module_docstring_tells_the_job, '"""One line."""\n'),
    (module_docstring_tells_the_job, '"""Two\n\nlines."""\n'),
    (promises_are_made_and_nothing_is_skipped, "def test_x():\n    pass\n"),
    (promises_are_made_and_nothing_is_skipped, 'def test_x():\n    """Two.\n\n    Lines."""\n'),
    (promises_are_made_and_nothing_is_skipped, "pytest.importorskip('torch')\n"),
    (promises_are_made_and_nothing_is_skipped, "@pytest.mark.skipif(True, reason='x')\nclass C: ...\n"),
    (no_absolute_paths, "see " + "/home/" + "somebody/project\n"),
    (no_absolute_paths, '"' + "/work/" + 'main"\n'),
]

FINE = '''"""A room.

Enters: a thing. Leaves: another.
"""

x = f()  # pyright: ignore[reportCallIssue]  # the stub forgets the default


def test_x():
    """Says so."""
    pickle.PickleBuffer(torch.load(path, weights_only=True))
    return "print tensorrt os.environ", see("https://example.org/home/page"), "~/work/here", "a/home/b"
'''


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_house_rules_hold_in_the_package(path: Path) -> None:
    """Every file of the package keeps every house rule."""
    text = path.read_text(encoding="utf-8")
    complaints = {rule.__name__: list(rule(path.name, text)) for rule in PACKAGE_RULES}
    assert {rule: found for rule, found in complaints.items() if found} == {}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_house_rule_holds_in_the_tests(path: Path) -> None:
    """Every test states its promise and none is skipped."""
    assert list(promises_are_made_and_nothing_is_skipped(path.name, path.read_text(encoding="utf-8"))) == []


def test_no_absolute_path_in_any_file_of_the_project() -> None:
    """No file that git tracks or would track names a folder of somebody's machine."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    assert REPOSITORY / "pyproject.toml" in paths
    found = {
        str(path.relative_to(REPOSITORY)): offences
        for path in paths
        if path.is_file() and (offences := list(no_absolute_paths(path.name, path.read_text("utf-8", "ignore"))))
    }
    assert found == {}


def test_every_room_has_its_row_in_the_import_rules() -> None:
    """No module escapes the contract that says who may import whom."""
    rules = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    rows = re.search(r"^layers = \[\n(.*?)^\]", rules, re.MULTILINE | re.DOTALL)
    assert rows is not None
    children = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert children - {"__init__"} - set(re.findall(r"\w+", rows[1])) == set()


def test_package_has_few_entries() -> None:
    """A newcomer sees the whole road in one listing; a new entry takes the place of one."""
    children = {path.relative_to(PACKAGE).parts[0] for path in FILES} - {"__init__.py", "__main__.py"}
    assert not [child for child in children if child.startswith("_")]
    assert len(children) <= MOST_ENTRIES


def test_attributes_are_rarely_gone_around() -> None:
    """State is written in one place, by attributes."""
    assert sum(path.read_text(encoding="utf-8").count("__dict__[") for path in FILES) <= MOST_INSTANCE_DICTS


@pytest.mark.parametrize(("rule", "text"), OFFENCES, ids=lambda value: getattr(value, "__name__", None))
def test_house_rule_finds_a_planted_offence(rule: Rule, text: str) -> None:
    """No rule is blind."""
    assert list(rule("planted.py", text)) != []


def test_private_file_name_is_found() -> None:
    """The one rule that reads no text is not blind either."""
    assert list(file_name_is_not_private("_helpers.py", "")) == ["_helpers.py starts with an underscore"]
    assert list(file_name_is_not_private("__main__.py", "")) == []


@pytest.mark.parametrize("rule", sorted({rule for rule, _ in OFFENCES}, key=lambda rule: rule.__name__))
def test_house_rule_lets_honest_code_pass(rule: Rule) -> None:
    """No rule cries wolf."""
    assert list(rule("planted.py", FINE)) == []


def test_every_rule_has_a_planted_offence() -> None:
    """A new rule comes with the offence that it finds."""
    assert {rule for rule, _ in OFFENCES} | {file_name_is_not_private} == {
        *PACKAGE_RULES,
        promises_are_made_and_nothing_is_skipped,
        no_absolute_paths,
    }

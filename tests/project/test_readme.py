"""What the README shows is what happens.

Its Python blocks run in its order and in one namespace, in a scratch folder. They are run as they stand; only deploy's
default runtime is "auto" instead of "tensorrt", so that a machine without a GPU answers, through ONNX Runtime. A block
whose first line names a file (`# pinned.py`) is run as that file; functions called `test_*` are called.
"""

from __future__ import annotations

import contextlib
import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine
from tests.support.onnx_models import relu
from tests.support.paths import REPOSITORY
from torch2engine.core import errors
from torch2engine.core.config import Precision, Tolerance
from torch2engine.core.precisions import MODEL_PRECISIONS
from torch2engine.precision.graph.quantize import quantize

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its first line's number in the README, its text."""

    language: str
    line: int
    text: str


def blocks(*languages: str) -> list[Block]:
    """The README's blocks in these languages, in its order."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
    return [
        Block(match[1], README.count("\n", 0, match.start()) + 2, match[2]) for match in found if match[1] in languages
    ]


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block as Python would run a file with its lines; call the tests that it defines."""
    file = re.match(r"# (\w+\.py)\n", block.text)
    text, name = (block.text, file[1]) if file else ("\n" * (block.line - 1) + block.text, "README.md")
    before = set(names)
    exec(compile(text, str(Path.cwd() / name), "exec"), names)
    for test in [name for name in names if name.startswith("test_") and name not in before]:
        names[test]()


def run_console(block: Block, names: dict[str, Any]) -> str:
    """Run a block of prompts and answers; what differs, as text."""
    examples = doctest.DocTestParser().get_doctest(block.text, names, "README.md", "README.md", block.line - 1)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=report.append, clear_globs=False)
    return "".join(report)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A scratch folder to work in, with the ONNX file "from elsewhere", and deploy's default set to "auto"."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # models and data of the blocks are random
    relu(tmp_path).rename(tmp_path / "encoder.onnx")
    monkeypatch.setitem(torch2engine.deploy.__kwdefaults__, "runtime", "auto")
    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(pytest.warns(UserWarning, match="deploying to ONNX Runtime on the CPU"))
        yield tmp_path


def test_every_python_block_runs_and_every_error_reads_as_shown(folder: Path) -> None:
    """A newcomer who copies the README's code from top to bottom sees what the README says, error texts included."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks("python", "pycon"):
        if block.language == "python":
            run_python(block, names)
        else:
            assert run_console(block, names) == ""
    saved = {path.name: sorted(file.name for file in path.iterdir()) for path in folder.glob("*.t2e")}
    engine = ["manifest.json", "model.onnx", "model.plan"]
    assert saved["engine.t2e"] == saved["encoder.t2e"] == engine
    assert saved["model.t2e"] == (engine if torch.cuda.is_available() else engine[:2])


def test_console_block_that_lies_is_found() -> None:
    """The comparison of error texts is not blind: it passes the truth, and neither another text nor a missing error."""
    raises = ">>> raise ValueError('axis is 64')\nTraceback (most recent call last):\nValueError: axis is {}\n"
    assert run_console(Block("pycon", 1, raises.format(64)), {}) == ""
    assert "axis is 64" in run_console(Block("pycon", 1, raises.format(32)), {})
    assert run_console(Block("pycon", 1, raises.format(64).replace("raise ", "")), {}) != ""


def test_table_of_precisions_has_the_default_tolerances() -> None:
    """Every precision has its row, with the bounds that `Tolerance.default` gives it."""
    rows = re.findall(r'^\| `"(\w+)"` \|.*\| (\S+) \| (\S+) \|$', README, re.M)
    assert [word for word, *_ in rows] == list(MODEL_PRECISIONS)
    found = {word: (float(whole), float(place)) for word, whole, place in rows}
    assert found == {word: (bounds.rel_l2, bounds.max_rel) for word in found if (bounds := Tolerance.default(word))}


def test_int8_convolution_is_refused_for_tensorrt_rtx_as_shown(tmp_path: Path) -> None:
    """The text on int8 convolutions is the error's first line, for a model like the first example's."""
    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(3, 4, 3))
    artifact = torch2engine.export(model, torch.rand(1, 3, 8, 8))
    with pytest.raises(errors.UnsupportedOperatorError) as caught:
        quantize(artifact.onnx_path, tmp_path / "model.onnx", Precision("int8"), (), flavour="tensorrt_rtx")
    shown = next(block.text for block in blocks("text") if "in int8" in block.text)
    assert " ".join(shown.split()) == str(caught.value).splitlines()[0]


def test_error_texts_are_shown_for_several_kinds_of_error() -> None:
    """The README shows real errors of at least four classes."""
    shown = set(re.findall(r"^torch2engine\.(\w+Error): ", "".join(b.text for b in blocks("pycon")), re.M))
    assert len(shown & set(errors.__all__)) == len(shown) >= 4


def test_shell_commands_are_targets_and_extras_that_exist() -> None:
    """Every command in a shell block is `make` of a target in the Makefile, or an install with extras that exist."""
    commands = [line.partition("#")[0].split() for block in blocks("sh") for line in block.text.splitlines()]
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.M | re.S)
    assert extras is not None
    allowed = {("make", target) for target in targets} | {("pip", "install", ".")}
    allowed |= {("pip", "install", f'".[{extra}]"') for extra in re.findall(r"^(\w+) = \[", extras[1], re.M)}
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    assert [command for command in commands if tuple(command) not in allowed] == []


def test_make_commands_in_prose_are_targets() -> None:
    """`make X` in a sentence, here and in CONTRIBUTING, is a target of the Makefile."""
    text = README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z0-9-]+)", text)) | set(re.findall(r"^ {4}make ([a-z0-9-]+)", text, re.M))
    assert {"demo", "test", "check", "gpu-test"} <= named
    assert named - set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.M)) == set()


def test_named_files_exist() -> None:
    """Every link leads to a file or a heading, and every step of the road names a folder of the package."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert "examples/quickstart.py" in links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
    headings = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", README, re.M)}
    assert set(re.findall(r"\]\((#[^)]+)\)", README)) <= headings
    road = next(block.text for block in blocks("text") if "Signature" in block.text)
    steps = re.findall(r"\b\w+/(?= |:)", road)
    assert {"capture/", "exporter/", "onnx_graph/", "parity/", "builder/", "modules/", "processor/"} <= set(steps)
    assert [step for step in steps if not (REPOSITORY / "torch2engine" / step).exists()] == []


def test_results_of_the_gpu_suite_lie_where_the_makefile_puts_them() -> None:
    """The README names the file that `make gpu-test` writes."""
    folder = re.search(r"^RESULTS\s*\?= (\S+)$", MAKEFILE, re.M)
    file = re.search(r"--evidence=\$\(RESULTS\)/(\S+)", MAKEFILE)
    assert folder is not None
    assert file is not None
    assert f"`{folder[1]}/{file[1]}`" in README


def test_named_functions_are_public() -> None:
    """Every `t2e.name` in the README is a public name of the package."""
    names = set(re.findall(r"\bt2e\.(\w+)", README))
    assert {"deploy", "export", "check", "build", "load", "Axis", "Inputs"} <= names
    assert names <= set(torch2engine.__all__)


def test_first_example_is_short() -> None:
    """The first example is whole and has at most 15 lines of code."""
    first = blocks("python")[0].text
    assert "t2e.deploy(" in first
    assert "import torch2engine as t2e" in first
    assert len([line for line in first.splitlines() if line.strip()]) <= 15

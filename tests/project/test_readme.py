"""What the README and the pages of docs/ show is what happens.

The README's Python blocks run in its order and in one namespace, in a scratch folder. Each page of docs/ goes on in a
copy of that namespace. Blocks are run as they stand; only deploy's default runtime is "auto" instead of "tensorrt", so
that a machine without a GPU answers, through ONNX Runtime. A block whose first line names a file (`# pinned.py`) is run
as that file; functions called `test_*` are called.
"""

from __future__ import annotations

import contextlib
import doctest
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2engine
from tests.support.onnx_models import relu
from tests.support.paths import REPOSITORY
from torch2engine.cli.app import cli
from torch2engine.cli.outcome import EXIT_CODES
from torch2engine.core import errors
from torch2engine.core.config import Precision, Tolerance
from torch2engine.core.precisions import MODEL_PRECISIONS
from torch2engine.precision.graph.quantize import quantize

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
OTHER_PAGES = [REPOSITORY / name for name in ("AGENTS.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "llms.txt")]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MOST_README_LINES = 160
ENGINE = ["manifest.json", "model.onnx", "model.plan"]
# Page -> what it saves: an engine with its ONNX, an exported model, which is the ONNX alone.
SAVED = {
    "files": {"model.t2e": sorted([*(ENGINE if torch.cuda.is_available() else ENGINE[:2]), "report.json"])},
    "flavours": {"encoder.t2e": ENGINE, "engine.t2e": ENGINE},
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its first line's number on the page, its text, its page's name."""

    language: str
    line: int
    text: str
    page: str = "README.md"


def blocks(page: Path, *languages: str) -> list[Block]:
    """A page's blocks in these languages, in its order."""
    content = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", content, re.M | re.S)
    return [
        Block(match[1], content.count("\n", 0, match.start()) + 2, match[2], page.name)
        for match in found
        if match[1] in languages
    ]


def all_blocks(*languages: str) -> list[Block]:
    """Those of the README and of every page of docs/."""
    return [block for page in (README, *PAGES) for block in blocks(page, *languages)]


RUNNABLE = [page for page in PAGES if blocks(page, "python", "pycon")]


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block as Python would run a file with its lines; call the tests that it defines."""
    file = re.match(r"# (\w+\.py)\n", block.text)
    text, name = (block.text, file[1]) if file else ("\n" * (block.line - 1) + block.text, block.page)
    before = set(names)
    exec(compile(text, str(Path.cwd() / name), "exec"), names)
    for test in [name for name in names if name.startswith("test_") and name not in before]:
        names[test]()


def run_console(block: Block, names: dict[str, Any]) -> str:
    """Run a block of prompts and answers; what differs, as text."""
    examples = doctest.DocTestParser().get_doctest(block.text, names, block.page, block.page, block.line - 1)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(examples, out=report.append, clear_globs=False)
    return "".join(report)


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Run every block of a page."""
    for block in blocks(page, "python", "pycon"):
        if block.language == "python":
            run_python(block, names)
        else:
            assert run_console(block, names) == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scratch folder to work in, with the ONNX file "from elsewhere", and deploy's default set to "auto"."""
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        relu(place).rename(place / "encoder.onnx")
        patch.setitem(torch2engine.deploy.__kwdefaults__, "runtime", "auto")
        yield place


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What the README's blocks leave behind."""
    torch.manual_seed(0)  # models and data of the blocks are random
    left: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(pytest.warns(UserWarning, match="deploying to ONNX Runtime on the CPU"))
        run_page(README, left)
    return left


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.stem)
def test_every_python_block_runs_and_every_error_reads_as_shown(
    page: Path, names: dict[str, Any], folder: Path
) -> None:
    """Who copies a page's code, after the README's first example, sees what the page says, error texts included."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="deploying to ONNX Runtime on the CPU")
        run_page(page, dict(names))
    for name, files in SAVED.get(page.stem, {}).items():
        assert sorted(file.name for file in (folder / name).iterdir()) == files


def test_console_block_that_lies_is_found() -> None:
    """The comparison of error texts is not blind: it passes the truth, and neither another text nor a missing error."""
    raises = ">>> raise ValueError('axis is 64')\nTraceback (most recent call last):\nValueError: axis is {}\n"
    assert run_console(Block("pycon", 1, raises.format(64)), {}) == ""
    assert "axis is 64" in run_console(Block("pycon", 1, raises.format(32)), {})
    assert run_console(Block("pycon", 1, raises.format(64).replace("raise ", "")), {}) != ""


def test_table_of_precisions_has_the_default_tolerances() -> None:
    """Every precision has its row, with the bounds that `Tolerance.default` gives it."""
    page = (DOCS / "precision.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| `"(\w+)"` \|.*\| (\S+) \| (\S+) \|$', page, re.M)
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
    shown = next(block.text for block in all_blocks("text") if "in int8" in block.text)
    assert " ".join(shown.split()) == str(caught.value).splitlines()[0]


def test_error_texts_are_shown_for_several_kinds_of_error() -> None:
    """The pages show real errors of at least four classes."""
    shown = set(re.findall(r"^torch2engine\.(\w+Error): ", "".join(b.text for b in all_blocks("pycon")), re.M))
    assert len(shown & set(errors.__all__)) == len(shown) >= 4


def _is_right(command: list[str]) -> bool:
    """Whether a shell command names a target of the Makefile, extras that exist, or a program with its options."""
    if command[:1] == ["make"]:
        return len(command) == 2 and re.search(rf"^{re.escape(command[1])}:", MAKEFILE, re.M) is not None
    if command[:2] == ["pip", "install"]:
        project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
        known = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.M | re.S)
        extras = re.fullmatch(r'"\.\[([\w,]+)\]"', command[2])
        return bool(known and extras) and set(extras[1].split(",")) <= set(re.findall(r"^(\w+) = \[", known[1], re.M))
    if command[:1] == ["torch2engine"]:
        *groups, last = [word for word in command[1:3] if word in {*cli.commands, "list", "prune", "clear"}]
        found: Any = cli
        for word in [*groups, last]:
            found = found.commands[word]
        found.make_context(last, command[2 + len(groups) :])  # raises for words that it does not know
        return True
    if command[:2] == ["python", "-m"] and command[2].startswith("benchmarks."):
        script = (REPOSITORY / f"{command[2].replace('.', '/')}.py").read_text(encoding="utf-8")
        return all(f'"{word}"' in script for word in command[3:] if word.startswith("--"))
    return False


def test_shell_commands_exist_with_their_options() -> None:
    """Every command in a shell block is one that works: make, pip, torch2engine or a benchmark."""
    commands = [line.partition("#")[0].split() for block in all_blocks("sh") for line in block.text.splitlines()]
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    assert [command for command in commands if not _is_right(command)] == []


def test_page_of_the_command_line_lists_every_command_and_exit_code() -> None:
    """The shell block of docs/command-line.md shows all commands, its table all codes."""
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^torch2engine (\w+)", page, re.M)) == set(cli.commands)
    listed = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.M)}
    assert listed == EXIT_CODES


def test_page_of_pitfalls_has_all_of_them_and_every_error() -> None:
    """Forty symptoms have a cause and a cure, and each error class says what to do."""
    page = (DOCS / "pitfalls.md").read_text(encoding="utf-8")
    pitfalls, classes = page.split("## Errors, and what to do")
    rows = re.findall(r"^\| (?!you see|---)(.+) \| (.+) \| (.+) \|$", pitfalls, re.M)
    assert len({symptom for symptom, _, _ in rows}) == len(rows) == 40
    named = re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", classes, re.M)
    assert sorted([*named, "Torch2EngineError"]) == sorted(name for name in errors.__all__ if name.endswith("Error"))


def test_make_commands_in_prose_are_targets() -> None:
    """`make X` in a sentence, on any page and in CONTRIBUTING, is a target of the Makefile."""
    text = "".join(page.read_text(encoding="utf-8") for page in (README, *OTHER_PAGES, *PAGES))
    named = set(re.findall(r"`make ([a-z0-9-]+)", text)) | set(re.findall(r"^ {4}make ([a-z0-9-]+)", text, re.M))
    assert {"demo", "test", "check", "gpu-test", "docs"} <= named
    assert named - set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.M)) == set()


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [README, *PAGES, *OTHER_PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of a page leads to a file, and to a heading of it if it names one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    """No page is lost: the table of contents has them all, and the README the user's ones."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.search(r"```\{toctree\}\n(.*?)```", index, re.S)[1].split()) - {":hidden:"}  # type: ignore[index]  # it is there
    assert listed == {page.stem for page in PAGES} - {"index"}
    readme = README.read_text(encoding="utf-8")
    assert {page for page in listed if f"(docs/{page}.md)" not in readme} == {
        *("architecture", "contributing", "api"),
        "changelog",  # the README links CHANGELOG.md itself
    }


def test_pictures_are_small_and_each_is_shown() -> None:
    """Every screenshot is linked from its page, and none takes more than 150 kB."""
    page = (DOCS / "screenshots.md").read_text(encoding="utf-8")
    pictures = sorted((DOCS / "pictures").iterdir())
    assert {f"pictures/{picture.name}" for picture in pictures} == set(re.findall(r"\((pictures/[^)]+)\)", page))
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []


def test_list_for_language_models_has_every_page_of_the_readme() -> None:
    """llms.txt names each page that the README names, so that neither goes stale alone."""
    wanted = set(re.findall(r"\((docs/[\w-]+\.md)\)", README.read_text(encoding="utf-8")))
    assert wanted == set(re.findall(r"\((docs/[\w-]+\.md)\)", (REPOSITORY / "llms.txt").read_text(encoding="utf-8")))


def test_steps_of_the_picture_are_folders_of_the_package() -> None:
    """The README's picture names the folders that do each step."""
    picture = next(block.text for block in blocks(README, "text") if "Signature" in block.text)
    steps = re.findall(r"\b\w+/(?= |:)", picture)
    assert {"capture/", "exporter/", "onnx_graph/", "parity/", "builder/", "deployed/", "serving/"} <= set(steps)
    assert [step for step in steps if not (REPOSITORY / "torch2engine" / step).exists()] == []


def test_results_of_the_gpu_suite_lie_where_the_makefile_puts_them() -> None:
    """The README names the file that `make gpu-test` writes."""
    folder = re.search(r"^RESULTS\s*\?= (\S+)$", MAKEFILE, re.M)
    file = re.search(r"--evidence=\$\(RESULTS\)/(\S+)", MAKEFILE)
    assert folder is not None
    assert file is not None
    assert f"`{folder[1]}/{file[1]}`" in README.read_text(encoding="utf-8")


def sentences(text: str) -> list[str]:
    """The sentences of a page's prose: code and generated tables left out; a colon or semicolon ends one, too."""
    prose = re.sub(r"^```.*?^```$|<!-- speed -->.*?<!-- /speed -->", "", text, flags=re.M | re.S)
    prose = re.sub(r"`[^`]*`", "CODE", re.sub(r"\]\([^)]*\)", "]", prose))
    parts = re.split(r"\n\s*\n|\n(?=[-*] |#)|\|", prose)
    return [each for part in parts for each in re.split(r"(?<=[.!?:;])\s+", " ".join(part.split())) if each]


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.stem)
def test_sentences_of_the_pages_are_short_and_without_private_words(page: Path) -> None:
    """At most 25 words each, so that people who are not native speakers can read them."""
    found = sentences(page.read_text(encoding="utf-8"))
    assert [each for each in found if len(each.split()) > 25] == []
    assert [each for each in found if re.search(r"\b(road|judged?|judges|spared|told)\b", each)] == []


def test_long_sentence_is_found() -> None:
    """The count of words is not blind: lines are joined, code counts as one word, and a list's entries are apart."""
    text = "One `two three` four\nfive. Six:\n\n- seven eight\n- nine\n```sh\nten eleven\n```\n"
    assert sentences(text) == ["One CODE four five.", "Six:", "- seven eight", "- nine"]


def test_named_functions_are_public() -> None:
    """Every `t2e.name` on the pages is a public name of the package."""
    text = "".join(page.read_text(encoding="utf-8") for page in (README, *PAGES))
    names = set(re.findall(r"\bt2e\.(\w+)", text))
    assert {"deploy", "export", "check", "build", "load", "Axis", "Inputs"} <= names
    assert names <= set(torch2engine.__all__)


def test_readme_is_short_and_so_is_its_first_example() -> None:
    """The README is read in a minute; the first example is whole and has at most 15 lines of code."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES
    first = blocks(README, "python")[0].text
    assert "t2e.deploy(" in first
    assert "import torch2engine as t2e" in first
    assert len([line for line in first.splitlines() if line.strip()]) <= 15

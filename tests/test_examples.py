"""The examples run as they are, and assert what they claim."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
MOST_LINES = 60


def run_example(name: str) -> str:
    """What an example prints on a machine without a GPU, in a fresh interpreter; errors and warnings would show too."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "examples" / name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def without_numbers(text: str) -> list[str]:
    """Lines with every number replaced by # and every run of spaces by one."""
    return [" ".join(re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line).split()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def printed() -> str:
    """What the quickstart prints."""
    return run_example("quickstart.py")


def test_quickstart_reads_as_many_digits_with_the_deployed_module(printed: str) -> None:
    """The model and its deployed module have one accuracy on the held-out digits, and a good one."""
    found = re.search(r"accuracy on (\d+) held-out digits: PyTorch ([\d.]+), ONNX Runtime ([\d.]+)$", printed, re.M)
    assert found is not None
    count, expected, accuracy = found.groups()
    assert int(count) == 450
    assert accuracy == expected
    assert float(accuracy) > 0.95


def test_quickstart_builds_an_engine_without_a_gpu(printed: str) -> None:
    """The engine is really built, and what runs it is said."""
    first, second = printed.splitlines()[:2]
    found = re.fullmatch(r"without a GPU: TensorRT-RTX [\d.]+ built an engine of (\d+) bytes", first)
    assert found is not None
    assert int(found[1]) > 10_000
    assert second == "running it takes a GPU, so ONNX Runtime answers with the same graph"


def test_quickstart_prints_the_parity_table(printed: str) -> None:
    """Min, opt, max and random input are shown, each passed."""
    rows = [line.split() for line in printed.splitlines() if line.endswith("  passed")]
    assert [row[0] for row in rows] == ["min", "opt", "max", "random"]
    assert "PyTorch vs ONNX Runtime: passed, 4 of 4 outputs passed" in printed


def test_readme_shows_what_the_quickstart_prints(printed: str) -> None:
    """The README's picture of `make demo` is what it prints, numbers aside."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = next(block for block in re.findall(r"```text\n(.*?)```", readme, re.S) if "held-out digits" in block)
    assert without_numbers(shown) == without_numbers(printed)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_and_asserts_what_it_claims(path: Path) -> None:
    """An example fits on a screen, and an assert, not the reader, checks its claim."""
    text = path.read_text(encoding="utf-8")
    nodes = Counter(type(node) for node in ast.walk(ast.parse(text)))
    assert text.count("\n") < MOST_LINES
    assert nodes[ast.Assert] >= 1


def test_every_example_is_run_by_this_file() -> None:
    """A new example comes with its test."""
    assert [path.name for path in EXAMPLES] == ["quickstart.py"]

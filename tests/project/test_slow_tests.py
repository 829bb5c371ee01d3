"""`make test-fast` leaves out what exports, trains, builds or starts a Python process, and nothing else."""

from __future__ import annotations

import pytest

from tests.support.paths import REPOSITORY
from tests.support.slow_tests import slow_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("from torch2engine.exporter.export_onnx import export_onnx\n", "export_onnx"),
        ("def test_x(run_python):\n    ...\n", "run_python"),
        ("import torch2engine as t2e\nt2e.deploy(model, x)\n", "deploy"),
        ("run([sys.executable, '-c', code])\n", "executable"),
        ("artifact = exported(model, x)\n", "exported"),
    ],
)
def test_what_is_slow_is_seen(text: str, name: str) -> None:
    """Imported, as a fixture, as an attribute, in an argument, and called."""
    assert name in slow_names(text)


def test_words_in_texts_are_no_use() -> None:
    """An error text that tells the user to export is not an export."""
    assert slow_names('assert str(error) == "export it with t2e.export(...)"  # deploy\n') == set()


@pytest.mark.parametrize(
    "folder", ["artifact", "capture", "core", "parity", "precision", "project", "serving/processor", "trt"]
)
def test_folder_has_fast_tests(folder: str) -> None:
    """The inner loop touches each of these folders."""
    files = sorted((REPOSITORY / "tests" / folder).glob("test_*.py"))
    assert [file.name for file in files if not slow_names(file.read_text(encoding="utf-8"))]

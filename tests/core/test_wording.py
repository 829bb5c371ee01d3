"""Words of error messages: articles, kinds, misspelt names, and quotations of other libraries."""

from __future__ import annotations

import numpy as np
import pytest

from torch2engine.core.errors import BuildError
from torch2engine.core.wording import did_you_mean, kind_of, quote, with_article


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("int", "an int"),
        ("str", "a str"),
        ("UNet", "a UNet"),
        ("MLP", "an MLP"),
        ("OrderedDict", "an OrderedDict"),
        ("ndarray", "an ndarray"),
        ("uint8", "a uint8"),
    ],
)
def test_article_is_that_of_the_spoken_word(noun: str, text: str) -> None:
    """No message says "a int" or "an Tensor"."""
    assert with_article(noun) == text


def test_kind_tells_a_class_from_its_objects() -> None:
    """A class that was given in place of its object is called a class, and None is None."""
    assert [kind_of(value) for value in (3, int, None, np.zeros(1))] == [
        "an int",
        "the class int",
        "None",
        "an ndarray",
    ]


@pytest.mark.parametrize(
    ("name", "names", "meant"),
    [
        ("fp_16", ("fp16", "int8"), "fp16"),
        ("eagr", ("error", "split", "eager"), "eager"),
        ("onnx", ("tensorrt", "onnxruntime", "auto"), "onnxruntime"),
        ("rtx", ("tensorrt", "tensorrt_rtx"), "tensorrt_rtx"),
        ("Batch", ("batch", "time"), "batch"),
    ],
)
def test_misspelt_name_gets_the_one_that_is_most_like_it(name: str, names: tuple[str, ...], meant: str) -> None:
    """Another case, other signs, a missing letter and a part of the name are understood."""
    assert did_you_mean(name, names) == f"did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["zebra", "", 3, None, ["fp16"]])
def test_name_like_no_other_gets_no_guess(name: object) -> None:
    """A guess that can't be right is not made."""
    assert did_you_mean(name, ("fp16", "int8", None)) == ""


def test_name_that_is_given_besides_is_no_guess() -> None:
    """A second value for the same name would be the next error."""
    assert did_you_mean("states.2", ("states.0", "states.1"), {"states.0", "states.1"}) == ""
    assert did_you_mean("states.2", ("states.0", "states.1"), {"states.1"}) == "did you mean 'states.0'?"


def test_quotation_is_one_short_line_without_colours() -> None:
    """Another library's pages and terminal codes don't reach a message."""
    error = RuntimeError("\n\x1b[31mfailed\x1b[0m at node\nand a whole page")
    assert quote(error) == '"RuntimeError: failed at node"'
    assert quote(KeyError()) == '"KeyError"'
    assert len(quote("x" * 1000)) < 320


def test_log_lines_have_no_terminal_codes() -> None:
    """TensorRT's own lines are quoted as text."""
    assert BuildError("build", log=["\x1b[1;31mout of memory\x1b[0m"]).log == ("out of memory",)

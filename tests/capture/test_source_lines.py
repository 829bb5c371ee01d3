"""Messages name a line that the user can mend, and never one of torch's or of this package."""

from __future__ import annotations

import inspect
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.support.models import line_of
from torch2engine.capture.reference import Reference
from torch2engine.capture.source_lines import innermost_user_frame, user_source

X = torch.arange(12.0).reshape(4, 3)


def stretch(x: torch.Tensor) -> torch.Tensor:
    """Fails inside torch."""
    return x.reshape(7, -1)  # no 7 in 12


def test_user_source_is_the_innermost_user_frame() -> None:
    """It is the last line before torch's; nothing is told where there is nothing."""
    with pytest.raises(RuntimeError) as error:
        stretch(X)
    assert user_source(error.value) == line_of(stretch, "no 7 in 12")
    assert user_source(RuntimeError("never raised")) == ""


@pytest.mark.parametrize(
    "foreign",
    [
        torch.nn.functional.__file__,
        inspect.getsourcefile(Reference),
        str(Path(sysconfig.get_paths()["stdlib"]) / "contextlib.py"),
        "torch/fx/passes/runtime_assert.py",
        "<eval_with_key>.3",
        "<string>",
    ],
    ids=["torch", "torch2engine", "stdlib", "made up by torch", "generated", "string"],
)
def test_machinery_is_no_users_line(foreign: str) -> None:
    """Frames of torch, torch2engine, the standard library and generated code are passed over."""
    assert innermost_user_frame([("model.py", 7), (foreign, 3)]) == "model.py:7"
    assert innermost_user_frame([(foreign, 3)]) == ""


def test_model_library_is_a_users_line() -> None:
    """The line in a library of models is the one that tells what to change."""
    library = str(Path(torch.__file__).parents[1] / "some_models" / "vit.py")
    assert innermost_user_frame([("train.py", 7), (library, 30), (torch.__file__, 3)]) == f"{library}:30"

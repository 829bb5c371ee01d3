"""`compare_deployed`: candidates that were not exported from the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper

from tests.support import onnx_models
from torch2engine.builder.source import make_build_source
from torch2engine.core.errors import InputError, ShapeError
from torch2engine.deploy_steps.public_functions.compare_deployed import compare_modules, compare_with_model
from torch2engine.deployed.onnxruntime.ort_module import ORTModule

RANGE = {"n": (1, 4, 8)}


class Difference(torch.nn.Module):
    """Not symmetric, so that inputs that are mixed up show."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left - 2 * right, left.abs()


def candidate(folder: Path, inputs: tuple[str, str], outputs: tuple[str, str], dtype: int = 0) -> ORTModule:
    """`Difference` as an ONNX file with these names, which somebody else has written."""
    kind = dtype or TensorProto.FLOAT
    nodes = [
        helper.make_node("Add", ["right", "right"], ["twice"]),
        helper.make_node("Sub", ["left", "twice"], [outputs[0]]),
        helper.make_node("Abs", ["left"], [outputs[1]]),
    ]
    first, second = inputs
    nodes = [
        helper.make_node("Identity", [first], ["left"]),
        helper.make_node("Identity", [second], ["right"]),
        *nodes,
    ]
    shape = (kind, ["n", 3])
    path = onnx_models.save(folder / "model.onnx", nodes, dict.fromkeys(inputs, shape), dict.fromkeys(outputs, shape))
    return ORTModule(make_build_source(path, RANGE, None).artifact)


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's inputs."""
    return torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(0, 3, 12).reshape(4, 3)


@pytest.mark.parametrize("inputs", [("a", "b"), ("l_eft", "r_ight")])
@pytest.mark.parametrize("outputs", [("y", "z"), ("output_0", "output_1")])
def test_names_that_differ_are_matched_by_position(
    inputs: tuple[str, str], outputs: tuple[str, str], tmp_path: Path
) -> None:
    """Another exporter names things otherwise; the order is the model's."""
    report = compare_with_model(Difference(), candidate(tmp_path, inputs, outputs), sample())
    assert report.passed
    assert {row.case for row in report.rows} == {"min", "opt", "max", "random"}
    assert {row.name for row in report.rows} == {"output.0", "output.1"}


def test_candidate_with_its_inputs_swapped_fails(tmp_path: Path) -> None:
    """Equal shapes don't make two models equal."""
    module = candidate(tmp_path, ("a", "b"), ("y", "z"))

    class Swapped(torch.nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
            return Difference()(right, left)

    report = compare_with_model(Swapped(), module, sample())
    assert not report.passed
    assert {row.name for row in report.failures} == {"output.0", "output.1"}


def test_names_that_are_the_same_count_more_than_the_order(tmp_path: Path) -> None:
    """A file whose inputs stand in another order is called by name."""
    module = candidate(tmp_path, ("left_side", "right_side"), ("y", "z"))

    class Turned(torch.nn.Module):
        def forward(self, right_side: torch.Tensor, left_side: torch.Tensor) -> Any:
            return Difference()(left_side, right_side)

    left, right = sample()
    assert compare_with_model(Turned(), module, (right, left)).passed


def test_half_candidate_is_judged_in_half_and_its_outputs_are_noted(tmp_path: Path) -> None:
    """A float16 file of a float32 model gets rounded inputs, and the report says that its outputs are float16."""
    module = candidate(tmp_path, ("a", "b"), ("y", "z"), dtype=TensorProto.FLOAT16)
    report = compare_with_model(Difference(), module, sample(), precision="fp16")
    assert report.passed
    assert report.notes[-1] == "output 'output.1' is torch.float16 in the candidate and torch.float32 in the reference"
    assert not compare_with_model(Difference(), module, sample(), precision="fp32").passed


def test_sample_that_the_candidate_does_not_take_is_refused(tmp_path: Path) -> None:
    """Another rank or number of inputs can't be compared."""
    module = candidate(tmp_path, ("a", "b"), ("y", "z"))
    with pytest.raises(ShapeError):
        compare_with_model(Difference(), module, (torch.rand(4, 5), torch.rand(4, 5)))
    with pytest.raises(InputError) as caught:
        compare_with_model(torch.nn.Tanh(), module, torch.rand(4, 3))
    assert str(caught.value) == (
        "inputs: got 2 of the candidate: a: float32[n, 3], b: float32[n, 3]; expected the reference's 1: "
        "input: float32[4, 3]; compare models that take the same inputs"
    )


def test_two_files_are_compared_at_every_corner(tmp_path: Path) -> None:
    """Without a model the inputs are random ones, at min, opt and max."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = candidate(tmp_path / "one", ("a", "b"), ("y", "z"))
    second = candidate(tmp_path / "two", ("b", "a"), ("z", "y"))
    report = compare_modules(first, candidate(tmp_path / "one", ("a", "b"), ("y", "z")))
    assert report.passed
    assert {row.case for row in report.rows} == {"n 1", "n 4", "n 8"}
    by_name = compare_modules(first, second)  # the same names stand for the other inputs and outputs here
    assert not by_name.passed

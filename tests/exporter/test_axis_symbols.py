"""Every dynamic dimension is symbolic under its axis's name, in the inputs and in what follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.support.models import (
    BATCH,
    Function,
    error_of,
    exported,
    graph_of,
)
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis
from torch2engine.onnx_graph.ort_session import OrtSession

X = torch.randn(4, 3)

DOUBLE = Function(lambda x, w: x * 2)


def symbolic(artifact: OnnxArtifact) -> list[list[Any]]:
    """The dimensions of the file's inputs and outputs: a name or a number each."""
    graph = graph_of(artifact)
    values = [*graph.input, *graph.output]
    return [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]


def run(artifact: OnnxArtifact, *inputs: torch.Tensor) -> list[np.ndarray]:
    """Outputs of the file for these inputs."""
    names = [spec.name for spec in artifact.signature.inputs]
    arrays = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
    return list(OrtSession(artifact.onnx_path)(arrays).values())


@pytest.mark.parametrize("sizes", [(1, 4, 8), (1, 1, 2)])
def test_pitfall_06_sample_of_one_does_not_fix_the_axis(sizes: tuple[int, int, int]) -> None:
    """torch fixes an axis whose sample is 1; here it stays symbolic and right at every size."""
    artifact, examples = exported(Function(lambda x, w: (x * w).sum(0)), X[:1], {"x": {0: Axis("batch", *sizes)}})
    assert symbolic(artifact)[0] == ["batch", 3]
    assert examples[0].inputs[0].shape[0] == 1
    assert error_of(artifact, examples) < 1e-5


@pytest.mark.parametrize("name", ["N", "S", "O", "lambda", "None", "_n"])
def test_axis_may_have_any_identifier_for_a_name(name: str) -> None:
    """Names that mean something to sympy, to Python or to torch are names like others."""
    artifact, examples = exported(
        Function(lambda x, w: (x.reshape(-1), x)), X, {"x": {0: Axis(name, 2, 4, 8, multiple_of=2)}}
    )
    assert symbolic(artifact) == [[name, 3], [f"3*{name}"], [name, 3]]
    assert [spec.shape for spec in artifact.signature.outputs] == [(f"3*{name}",), (name, 3)]
    assert error_of(artifact, examples) == 0


def test_several_axes_steps_and_profiles_hold_together() -> None:
    """Output shapes are expressions over the axes, and every corner of every profile is right."""
    model = Function(
        lambda x, w: {"halves": x.reshape(x.shape[0] // 2, 2, -1), "both": x @ x.T, "more": x.repeat(3, 2)}
    )
    axes = {"x": {0: Axis("rows", 2, 4, 8, multiple_of=2), 1: Axis("columns", 1, 3, 6)}}
    profiles = [{"rows": (2, 2, 4), "columns": (1, 3, 3)}, {"rows": (4, 8, 8), "columns": (3, 6, 6)}]
    artifact, examples = exported(model, X, axes, profiles)
    shapes = {spec.name: spec.shape for spec in artifact.signature.outputs}
    assert shapes == {
        "halves": ("rows/2", 2, "columns"),
        "both": ("rows", "rows"),
        "more": ("3*rows", "2*columns"),
    }
    assert len(examples) == 7
    assert error_of(artifact, examples) < 1e-5


def test_outputs_named_in_dynamic_axes_must_agree() -> None:
    """Entries for outputs are checked against what the model does, and need not be given."""
    artifact, _ = exported(DOUBLE, X, {"x": BATCH, "output": {0: "batch"}})
    assert artifact.signature.outputs[0].shape == ("batch", 3)
    for entry, got in (
        ({0: "n"}, "'n' for dimension 0"),
        ([1], "'dynamic' for dimension 1"),
        ({2: "batch"}, "'batch' for dimension 2"),
    ):
        with pytest.raises(DynamicAxisError) as error:
            exported(DOUBLE, X, {"x": BATCH, "output": entry})
        assert str(error.value) == (
            f"dynamic_axes['output']: got {got}; expected the axes of the model's output, output: "
            "float32[batch, 3]; name them as the model computes them, or leave outputs out: they "
            "follow from the inputs"
        )

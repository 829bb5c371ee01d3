"""`torch2engine.deployed.replace_near_ties`: a module's integers are judged by what its ONNX graph chose them from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.models import exported
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError
from torch2engine.deployed.judge import judge
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.onnx_graph.integer_choices import ChoiceReader


class Heads(nn.Module):
    """Every kind of integer output, and one whose choice the graph does not show."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = 2.5 * x
        return {
            "label": scores.argmax(-1),
            "top": scores.topk(2).indices,
            "above": scores > 0.5,
            "rounded": (scores * 7).round().long(),
            "places": torch.arange(x.shape[0]) + scores.argmax(-1),
        }


SCORES = torch.tensor([[0.1, 0.8, 0.8004, 0.3], [0.9, -0.2, 0.1, 0.2], [0.5, 0.2, -0.4, 0.0]])


@pytest.fixture(scope="module")
def artifact() -> OnnxArtifact:
    return exported(Heads(), SCORES)[0]


def case() -> ParityCase:
    return ParityCase("sample", (SCORES,), Heads()(SCORES))


class Flipping(ORTModule):
    """Answers other integers at some places."""

    flips: Mapping[str, tuple[Any, int]] = MappingProxyType({})

    def infer(self, leaves: Any) -> dict[str, torch.Tensor]:
        answer = super().infer(leaves)
        for name, (place, value) in self.flips.items():
            answer[name][place] = value
        return answer


def flipping(artifact: OnnxArtifact, **flips: tuple[Any, int]) -> Flipping:
    module = Flipping(artifact)
    module.flips = flips
    return module


def test_graph_shows_what_was_chosen_from(artifact: OnnxArtifact) -> None:
    """The operator behind each output is found through casts, and not through arithmetic."""
    choices = ChoiceReader(artifact.onnx_path).choices
    kinds = {name: choice.kind for name, choice in choices.items()}
    assert kinds == {"label": "extreme", "top": "extreme", "above": "comparison", "rounded": "rounding"}


def test_near_ties_pass_and_are_counted(artifact: OnnxArtifact) -> None:
    """Two scores that differ by less than the error may change places; the row says how many did."""
    candidate = flipping(artifact, label=(0, 1), top=(0, torch.tensor([1, 2])))
    report = judge(candidate, [case()])
    assert report.passed, str(report)
    assert {row.name: row.near_ties for row in report.rows if row.near_ties} == {
        "label": pytest.approx(1 / 3),
        "top": pytest.approx(1 / 3),
    }
    assert "(0.33 are near ties)" in str(report)


@pytest.mark.parametrize(
    ("name", "place", "value"), [("label", 1, 1), ("above", (1, 1), True), ("rounded", (1, 0), 9), ("places", 0, 1)]
)
def test_wrong_integer_fails(artifact: OnnxArtifact, name: str, place: Any, value: int) -> None:
    """What was no near tie, or whose choice is not shown, is wrong."""
    report = judge(flipping(artifact, **{name: (place, value)}), [case()])
    assert [row.name for row in report.failures] == [name]


def test_tolerance_of_one_output_counts_for_it_alone(artifact: OnnxArtifact) -> None:
    """A share of one output may differ; the others keep the precision's bounds."""
    tolerance = {"places": Tolerance(mismatch=0.4)}
    assert judge(flipping(artifact, places=(0, 1)), [case()], tolerance).passed
    report = judge(flipping(artifact, label=(1, 1)), [case()], tolerance)
    assert [row.name for row in report.failures] == ["label"]


def test_tolerance_of_an_unknown_output_is_refused(artifact: OnnxArtifact) -> None:
    """A misspelt output would keep its default without a word."""
    with pytest.raises(InputError) as caught:
        judge(ORTModule(artifact), [case()], {"labels": Tolerance(mismatch=0.4)})
    assert "one for output 'labels'" in str(caught.value)
    assert "did you mean 'label'?" in str(caught.value)

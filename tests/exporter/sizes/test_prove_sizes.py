"""A program is taken only if it is right at every size, and whatever is right at every size is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.models import Function, answer, exported, line_of
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.host_trial import HostTrial
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis
from torch2engine.exporter.export_onnx import export_onnx
from torch2engine.exporter.sizes import prove_sizes

X = torch.randn(2, 6, 3)


class Applied(nn.Module):
    """x -> what `function` makes of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def right_at_every_size(model: nn.Module, artifact: OnnxArtifact, sample: torch.Tensor, dim: int) -> bool:
    """Compare ONNX Runtime with the model at all sizes of the one axis."""
    (axis,) = artifact.signature.axes
    low, _, high = axis.range
    for size in range(low, high + 1, axis.multiple_of):
        shape = list(sample.shape)
        shape[dim] = size
        x = torch.randn(shape)
        case = ParityCase("", (x,), {"output": model(x)})
        if not torch.allclose(torch.from_numpy(answer(artifact, case)["output"]), case.outputs["output"], atol=1e-5):
            return False
    return True


IDIOMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "middle": lambda x: x[:, x.shape[1] // 2] * 2,
    "differences": lambda x: x[:, 1:] - x[:, :-1],
    "top half": lambda x: x.topk(x.shape[1] // 2, dim=1).values,
    "every other": lambda x: x[:, ::2] + 1,
    "last two": lambda x: x[:, -2:] * 2,
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "unfold": lambda x: x.unfold(1, 2, 1).sum(-1),
    "at most four": lambda x: x[:, : min(x.shape[1], 4)] * 2,
    "halves": lambda x: torch.cat((x[:, : x.shape[1] // 2].flip(1), x[:, x.shape[1] // 2 :]), 1),
    "padded to four": lambda x: functional.pad(x, (0, 0, 0, -x.shape[1] % 4)),
}


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idiom_is_right_at_every_size(idiom: str) -> None:
    """Conditions that are always true, or decide nothing at a corner, don't stop an export."""
    model = Applied(IDIOMS[idiom])
    artifact, _ = exported(model, X, {"x": {1: Axis("n", 2, 6, 12)}})
    assert right_at_every_size(model, artifact, X, 1)


def test_pooling_that_rounds_up_is_right_at_every_size() -> None:
    """Pooling, upsampling and padding ask for 2 * ((n - 1) // 2) < n."""
    model = nn.Sequential(
        nn.MaxPool2d(2, ceil_mode=True), nn.Upsample(scale_factor=2), nn.ReplicationPad2d(1), nn.Conv2d(1, 1, 3)
    ).eval()
    sample = torch.randn(1, 1, 8, 8)
    artifact, _ = exported(model, sample, {"input": {2: Axis("n", 5, 8, 16)}})
    assert right_at_every_size(model, artifact, sample, 2)


def test_branch_that_changes_nothing_is_taken() -> None:
    """The model asks for a size, but answers alike either way: the program was run at that size."""
    model = Applied(lambda x: x * 2 if x.shape[1] == 3 else x + x)
    artifact, _ = exported(model, X, {"x": {1: Axis("n", 2, 6, 12)}})
    assert right_at_every_size(model, artifact, X, 1)


def either_way(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else at one size."""
    if x.shape[1] == 3:
        return x * 3
    return x * 2


def test_branch_that_changes_the_answer_is_refused_with_its_size() -> None:
    """The size at which the program is wrong, the line, and a range without it."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(either_way), X, {"x": {1: Axis("n", 2, 6, 12)}})
    source = line_of(either_way, "if x.shape")
    assert str(error.value) == (
        "axis 'n': got a model that does not hold for all of its range; expected sizes for which n "
        "!= 3, which is wrong at n = 3; "
        f"give the range that it holds for: Axis('n', 4, 6, 12) (at {source})"
    )
    artifact, _ = exported(Function(either_way), X, {"x": {1: Axis("n", 4, 6, 12)}})
    assert artifact.signature.axes == (Axis("n", 4, 6, 12),)


CALLS: list[tuple[int, int]] = []


class Recorded(nn.Module):
    """Asks for a size, and records which object answered which size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x.shape[1], int):
            CALLS.append((id(self), x.shape[1]))
        return x * 2 if x.shape[1] == 3 else x + x


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_size_reaches_a_model_on_a_gpu_only_as_its_copy_on_the_cpu(is_on_gpu: bool) -> None:
    """A size that nobody gave may end the context of a GPU; the program is still found to be right there."""
    CALLS.clear()
    model = Recorded()
    with undisturbed(model):
        call = capture_call(model, X, {"x": {1: Axis("n", 2, 6, 12)}})
        trial = HostTrial(call.reference, call.sample, on_gpu=lambda tensor: False) if is_on_gpu else None
        export_onnx(replace(call, trial=trial))
    assert 3 in {size for _, size in CALLS}
    assert (3 in {size for owner, size in CALLS if owner == id(model)}) is not is_on_gpu


def test_model_on_a_gpu_that_has_no_copy_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conditions count as they are, which refuses the size."""
    monkeypatch.setattr(HostTrial, "obstacle", lambda self: "no copy")
    CALLS.clear()
    model = Recorded()
    with undisturbed(model):
        call = capture_call(model, X, {"x": {1: Axis("n", 2, 6, 12)}})
        with pytest.raises(DynamicAxisError, match="wrong at n = 3"):
            export_onnx(replace(call, trial=HostTrial(call.reference, call.sample)))
    assert 3 not in {size for _, size in CALLS}


def test_program_runs_on_the_cpu_wherever_it_was_traced() -> None:
    """Devices that its operators name are replaced."""
    graph = torch.fx.Graph()
    numbers = graph.call_function(torch.ops.aten.arange.default, (3,), {"device": torch.device("meta")})
    graph.output((numbers,))
    (answer,) = prove_sizes._CpuInterpreter(torch.fx.GraphModule({}, graph)).run()
    assert answer.tolist() == [0, 1, 2]


def many_branches(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else above twenty."""
    return x * 2 if x.shape[1] > 20 else x * 3


def equal_branches(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does the same above twenty by another operator."""
    return x * 2 if x.shape[1] > 20 else x + x


def test_condition_that_fails_at_many_sizes_is_tried_at_some() -> None:
    """A branch that gives the same answer is no fault."""
    artifact, _ = exported(Function(equal_branches), X, {"x": {1: Axis("n", 2, 6, 60)}})
    assert artifact.signature.axes[0].range == (2, 6, 60)


def test_trials_stand_for_many_sizes() -> None:
    """The least and the largest of each axis, and sizes evenly between."""
    sizes = [{"b": b, "n": n} for b in range(1, 9) for n in range(3, 40)]
    chosen = prove_sizes._spread(sizes)
    assert len(chosen) <= prove_sizes._MOST_TRIALS + 4
    for axis in ("b", "n"):
        assert {min(size[axis] for size in sizes), max(size[axis] for size in sizes)} <= {size[axis] for size in chosen}
    assert {size["b"] for size in chosen} == set(range(1, 9))
    few = [{"n": n} for n in range(prove_sizes._MOST_TRIALS)]
    assert prove_sizes._spread(few)[2:] == few  # each of them, where there are no more than may be tried


def test_condition_that_fails_at_many_sizes_is_refused() -> None:
    """One trial that is wrong refuses all of them."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(many_branches), X, {"x": {1: Axis("n", 2, 6, 60)}})
    assert error.value.allowed == "sizes for which n <= 20, which is wrong at n = 21..60"
    assert error.value.fix == "give the range that it holds for: Axis('n', 2, 6, 20)"


def squared(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Does something else where two axes agree."""
    return x * 2 if x.shape[0] == x.shape[1] else x


def test_condition_on_two_axes_names_a_point_that_fails() -> None:
    """Two axes that may be equal: the first of the sizes at which they are."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(squared), X, {"x": {0: Axis("b", 1, 2, 4), 1: Axis("n", 3, 6, 9)}})
    assert str(error.value) == (
        "axes 'b' and 'n': got a model that does not hold for all of their sizes together; expected "
        "sizes for which b != n, which is "
        "wrong at b = 3, n = 3 and 1 other combinations; change the line so that it holds for every size, or narrow "
        f"the axes to sizes for which it does (at {line_of(squared, 'return x * 2')})"
    )


def three(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Takes another way to the same answer for a batch of three, whatever its length."""
    return x + x if x.shape[0] * x.shape[1] == 3 * x.shape[1] else x * 2


def three_differ(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Answers something else for a batch of three, whatever its length."""
    return x if x.shape[0] * x.shape[1] == 3 * x.shape[1] else x * 2


BOTH = {"x": {0: Axis("b", 1, 2, 4), 1: Axis("n", 3, 6, 60)}}


def test_condition_that_one_of_its_axes_decides_is_tried_at_the_sizes_of_that_axis() -> None:
    """It fails at a batch of three and each of 58 lengths, which is one size to try and not 58."""
    model = Function(three)
    artifact, _ = exported(model, X, BOTH)
    for x in (torch.randn(1, 3, 3), torch.randn(1, 60, 3), torch.randn(3, 7, 3)):
        case = ParityCase("", (x,), {})
        assert torch.equal(torch.from_numpy(answer(artifact, case)["output"]), x * 2)
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(three_differ), X, BOTH)
    assert error.value.allowed == "sizes for which b*n != 3*n, which is wrong at b = 3"


def two_of_three(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Answers something else where two of three axes agree, whatever the third is."""
    return x if x.shape[0] * x.shape[2] == x.shape[1] * x.shape[2] else x * 2


def test_condition_that_two_of_its_three_axes_decide_names_these_two() -> None:
    """The third axis is no part of the sizes at which the model is wrong."""
    axes = {"x": {0: Axis("b", 1, 2, 4), 1: Axis("n", 3, 6, 9), 2: Axis("c", 2, 5, 6)}}
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(two_of_three), torch.randn(2, 6, 5), axes)
    assert error.value.allowed == (
        "sizes for which b*c != c*n, which is wrong at b = 3, n = 3 and 1 other combinations"
    )


def like_the_weight(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Takes a short way where the size is the weight's."""
    return x * w if x.shape[1] == w.shape[0] else w * x


def test_size_that_equals_a_constant_by_chance_is_traced_again() -> None:
    """The sample has as many rows as the weight has elements; at another size the model shows that it need not."""
    model = Function(like_the_weight)
    artifact, _ = exported(model, X[:, :3], {"x": {1: Axis("n", 2, 3, 60)}})
    assert right_at_every_size(model, artifact, X, 1)

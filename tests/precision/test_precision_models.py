"""The models that low precision is judged by: they have learnt, and those that should overflow float16 do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.lowered_models import exported_once
from tests.support.precision_models import (
    FLOAT16_MAX,
    NAMES,
    OVERFLOW,
    OVERFLOW_LAYER,
    Trained,
    accuracy,
    enlarge,
    outputs,
    trained,
)
from tests.support.precision_networks import RmsNorm


@pytest.fixture(scope="session", params=NAMES)
def subject(request: pytest.FixtureRequest) -> Trained:
    """Each model in turn."""
    return trained(request.param)


def watched(subject: Trained, look: Callable[[nn.Module, torch.Tensor, torch.Tensor], Any]) -> dict[str, list[Any]]:
    """What `look` makes of (module, first input, output) for each module and held-out batch; None is left out."""
    seen: dict[str, list[Any]] = {}
    model = copy.deepcopy(subject.model)

    def watch(path: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and torch.is_tensor(output) and (value := look(module, args[0], output)) is not None:
                seen.setdefault(path, []).append(value)

        module.register_forward_hook(hook)

    for path, module in model.named_modules():
        watch(path, module)
    outputs(model, subject.data)
    return seen


def rel_l2(wanted: Trained, model: nn.Module, data: list[Any]) -> float:
    """Distance of a model's answers from another's own, relative to these."""
    right = torch.cat(outputs(wanted.model, wanted.data)).double()
    return ((torch.cat(outputs(model, data)).double() - right).norm() / right.norm()).item()


def halved(name: str) -> tuple[nn.Module, list[Any]]:
    """A model and its data in float16, in the naive way."""
    one = trained(name)
    return copy.deepcopy(one.model).half(), [tuple(value.half() for value in batch) for batch in one.data]


def test_model_has_learnt(subject: Trained) -> None:
    """On held-out data each is right far more often than by chance."""
    assert subject.accuracy == accuracy(subject.model, subject.data, subject.labels) >= 0.9
    assert sum(map(len, subject.labels)) == 448


def test_accuracy_of_foreign_answers_is_chance() -> None:
    """The accuracy is one of the answers: a model that always says the same is hardly ever right."""
    one = trained("lstm")
    always = torch.nn.functional.one_hot(torch.zeros(32, dtype=torch.int64), 10)
    assert accuracy(lambda _: always, one.data, one.labels) < 0.2


def test_model_is_ready_to_deploy(subject: Trained) -> None:
    """In eval mode, in float32 on the CPU, without gradients left over, with a sample in the form of its data."""
    assert not any(module.training for module in subject.model.modules())
    assert {(p.dtype, p.device.type, p.grad) for p in subject.model.parameters()} == {(torch.float32, "cpu", None)}
    for batch in subject.data:
        assert type(batch) is type(subject.sample)
        assert len(batch) == len(subject.sample)
    assert [len(batch) for batch in outputs(subject.model, [subject.sample, *subject.data])] == [8] + [32] * 14


def test_training_is_the_same_each_time() -> None:
    """A model trained anew has the very same weights, and nobody's random numbers are moved."""
    before = torch.get_rng_state()
    anew = trained.__wrapped__("lstm")
    assert torch.equal(torch.get_rng_state(), before)
    first = trained("lstm").model.state_dict()
    assert all(torch.equal(value, first[name]) for name, value in anew.model.state_dict().items())
    assert trained("lstm") is trained("lstm")


def test_export_passes_parity(subject: Trained) -> None:
    """Each goes through export, and ONNX Runtime gives PyTorch's answers at every size of its axes."""
    artifact, _ = exported_once(subject.name)
    report = t2e.check(subject.model, artifact, subject.sample)
    report.raise_if_failed()
    assert {"min", "max"} <= {row.case for row in report.rows}
    if subject.name == "vit_overflow":
        nodes = onnx.load(str(artifact.onnx_path), load_external_data=False).graph.node
        paths = {entry.value for node in nodes for entry in node.metadata_props if entry.key == "torch2engine.module"}
        assert {OVERFLOW_LAYER, f"{OVERFLOW}.narrow"} <= paths


def test_rmsnorm_squares_exceed_float16() -> None:
    """In every norm the squares of every example overflow float16, while all else that is computed fits."""
    subject = trained("rmsnorm")
    squares = watched(subject, lambda m, x, _: x.pow(2).flatten(1).amax(1) if isinstance(m, RmsNorm) else None)
    assert len(squares) == 7
    assert {path: torch.cat(found).min().item() > FLOAT16_MAX for path, found in squares.items()} == dict.fromkeys(
        squares, True
    )
    values = watched(subject, lambda m, x, y: max(x.abs().max().item(), y.abs().max().item()))
    assert max(max(found) for found in values.values()) < 0.1 * FLOAT16_MAX


def test_rmsnorm_answers_do_not_depend_on_its_scale() -> None:
    """The norms take out what the first layers were multiplied by, so float32 knows no difference."""
    subject = trained("rmsnorm")
    small = copy.deepcopy(subject.model)
    enlarge(small, 1 / 64)
    assert rel_l2(subject, small, subject.data) < 1e-4


def test_rmsnorm_is_wrong_in_naive_float16() -> None:
    """Infinite squares make norms of zero: finite, and wrong."""
    model, data = halved("rmsnorm")
    assert rel_l2(trained("rmsnorm"), model, data) > 0.5


def test_planted_overflow_leaves_the_answers() -> None:
    """In float32 the planted ViT answers as the ViT does."""
    assert rel_l2(trained("vit"), trained("vit_overflow").model, trained("vit_overflow").data) < 1e-5


def test_planted_overflow_is_in_one_layer_alone() -> None:
    """Every example overflows float16 by far in OVERFLOW_LAYER, none elsewhere, and all weights fit."""
    subject = trained("vit_overflow")
    largest = watched(subject, lambda _, x, y: y.abs().flatten(1).amax(1))
    assert {path for path, found in largest.items() if torch.cat(found).max() > FLOAT16_MAX} == {OVERFLOW_LAYER}
    assert torch.cat(largest[OVERFLOW_LAYER]).min() > 2 * FLOAT16_MAX
    assert max(p.abs().max().item() for p in subject.model.parameters()) < FLOAT16_MAX


def test_planted_overflow_breaks_naive_float16() -> None:
    """`.half()` makes NaN of every answer of the planted ViT, and is harmless to the ViT itself."""
    assert not torch.cat(outputs(*halved("vit_overflow"))).isfinite().any()
    assert rel_l2(trained("vit"), *halved("vit")) < 5e-3

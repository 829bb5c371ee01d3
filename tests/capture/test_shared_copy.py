"""A copy of a module that has the module's own weights, and nothing else of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from torch2engine.capture.shared_copy import SharedCopy, _Place
from torch2engine.core.errors import RefitError


class Model(nn.Module):
    """Weights that are tied and frozen, a buffer, and attributes of every other kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.plain = torch.ones(3)
        self.seen: list[int] = []
        self.lock = threading.Lock()
        self.generator = torch.Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.seen.append(1)
        return self.norm(self.second(self.first(x))) + self.plain


class Moody(nn.Module):
    """Its copies have weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def __deepcopy__(self, memo: dict[int, Any]) -> Moody:
        return Moody()


def test_weights_are_shared_and_all_else_is_not() -> None:
    """Parameters and buffers are the same objects; flags, lists and plain tensors belong to the copy."""
    model = Model().train()
    shared = SharedCopy(model)
    copy: Any = shared.module
    assert dict(copy.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert all(left is right for left, right in zip(copy.parameters(), model.parameters(), strict=True))
    assert all(left is right for left, right in zip(copy.buffers(), model.buffers(), strict=True))
    assert copy.second.weight is copy.first.weight
    assert model.training and not any(module.training for module in copy.modules())
    assert copy.plain is not model.plain and copy.lock is model.lock
    x = torch.randn(4, 3)
    wanted = copy(x)
    assert (copy.seen, model.seen) == ([1], [])
    model.plain += 1
    model(x)  # moves the running statistics, which both have
    assert not torch.equal(copy(x), wanted)
    assert copy.plain.tolist() == [1, 1, 1]
    assert shared.devices() == {torch.device("cpu")}
    assert {model.first.weight.data_ptr(), copy.plain.data_ptr()} <= shared.memory()


def test_weights_put_in_the_place_of_others_are_taken_over() -> None:
    """By assignment, by `.data`, and where only the strides differ; in-place writes need nothing."""
    model = Model()
    shared = SharedCopy(model)
    copy: Any = shared.module
    assert shared.refresh() == shared.refresh() == 0
    with torch.no_grad():
        model.first.bias.mul_(2)
    assert shared.refresh() == 0
    model.first.bias = nn.Parameter(torch.zeros(3))
    assert shared.refresh() == 1
    assert copy.first.bias is model.first.bias
    model.first.weight.data = torch.randn(3, 3)
    assert shared.refresh() == 3  # it is tied, so two places have it
    model.second.weight.data = model.second.weight.data.t()
    assert shared.refresh() == 5
    assert shared.refresh() == 5


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(3, 3, batch_first=True),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))),
        nn.TransformerEncoderLayer(3, 1, 4, batch_first=True),
    ],
    ids=["lstm", "weight norm", "spectral norm", "transformer"],
)
def test_modules_that_keep_their_weights_elsewhere_follow_too(model: nn.Module) -> None:
    """Lists of weights, weights that follow from others, and kernels that take all weights at once."""
    shared = SharedCopy(model.eval())
    x = torch.randn(2, 5, 3)

    def agree() -> bool:
        shared.refresh()
        answers = [each(x) for each in (shared.module, model)]
        return torch.equal(*(answer[0] if isinstance(answer, tuple) else answer for answer in answers))

    assert agree()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert agree()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() * 2))
    assert agree()


class Watched(_Place):
    """A place at which another thread looks as soon as its new weight is there."""

    looks: list[int]
    copy: SharedCopy

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "layout" and hasattr(self, "looks"):
            with ThreadPoolExecutor(1) as pool:
                self.looks.append(pool.submit(self.copy.refresh).result())


def test_thread_that_finds_a_new_weight_in_place_knows_of_it() -> None:
    """Else it would answer by a CUDA graph that reads the weight before."""
    model = nn.Linear(3, 3)
    shared = SharedCopy(model)
    (place,) = (one for one in shared._places if one.name == "weight")
    watched = Watched(**vars(place))
    watched.copy, watched.looks = shared, []
    shared._places = [watched]
    model.weight = nn.Parameter(torch.zeros(3, 3))
    assert shared.refresh() == 1
    assert watched.looks == [1]


@pytest.mark.parametrize(
    ("weight", "got"),
    [
        (nn.Parameter(torch.zeros(4)), "float32[4] on cpu"),
        (nn.Parameter(torch.zeros(3, dtype=torch.half)), "float16[3] on cpu"),
        (nn.Parameter(torch.zeros(3, device="meta")), "float32[3] on meta"),
        (None, "None"),
    ],
    ids=["shape", "dtype", "device", "none"],
)
def test_weight_of_another_kind_is_refused(weight: nn.Parameter | None, got: str) -> None:
    """It names the weight and what must be there."""
    model = Model()
    shared = SharedCopy(model)
    model.first.bias = weight  # type: ignore[assignment]  # None is what torch takes for no bias
    with pytest.raises(RefitError) as caught:
        shared.refresh()
    assert str(caught.value) == (
        f"weight 'first.bias': got {got}; expected float32[3] on cpu, as when it was deployed: this module calls the "
        "model; put such a weight there, or deploy the model again"
    )


def test_class_that_copies_its_weights_is_refused() -> None:
    """Such a copy would not follow the model."""
    with pytest.raises(ValueError) as caught:
        SharedCopy(nn.Sequential(Moody()))
    assert str(caught.value) == "its copy has another weight '0.weight'"

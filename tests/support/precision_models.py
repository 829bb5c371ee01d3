"""Small models that are trained, to judge low precision by: what rounding costs shows in trained weights only.

Enters: a name of `NAMES`. Leaves: the model in eval mode with a sample, axes, held-out batches and the accuracy there.
It is made once in a process and shared, so that a test that changes one takes `copy.deepcopy`. One process of a run
trains it. Separate because each takes seconds to train, and because the tests of typing, quantising, building and
searching start from the same six.

Two overflow float16 by design, though float32 knows no difference: `rmsnorm` in the squares of every norm, as language
models do, and `vit_overflow` in `OVERFLOW`, and nowhere else.
"""

from __future__ import annotations

import copy
import fcntl
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.support.paths import SHARED_FOLDER
from tests.support.precision_networks import (
    CLASSES,
    MOST_TOKENS,
    VOCABULARY,
    Bert,
    Detour,
    Llama,
    Lstm,
    ResNet,
    RmsNorm,
    Vit,
)
from torch2engine.core.spec import Axis

__all__ = ["FLOAT16_MAX", "NAMES", "OVERFLOW", "OVERFLOW_LAYER", "Trained", "accuracy", "outputs", "trained"]

FLOAT16_MAX = 65504.0
# The module of vit_overflow that must stay in float32, and its layer whose output overflows.
OVERFLOW = "blocks.2.mlp.fc2"
OVERFLOW_LAYER = f"{OVERFLOW}.wide"

SEED = 20170727
DETOUR = 2e5  # the weights still fit float16, so that only running the model shows it
BATCH = {0: Axis("batch", 1, 8, 32)}


@dataclass(frozen=True)
class Trained:
    """A trained model with what deploying and judging it takes.

    Args:
        name: of `NAMES`.
        model: float32 on the CPU, in eval mode, gives logits (batch, classes).
        sample: a batch of 8, a tuple of arguments or a dict of keyword arguments; held-out data.
        axes: `dynamic_axes` that go with the sample.
        data: held-out batches of 32 in the form of the sample.
        labels: int64 of shape (32,) for each of them.
        accuracy: share of right answers on `data`, between 0 and 1.
    """

    name: str
    model: nn.Module
    sample: Any
    axes: Mapping[str, Any]
    data: list[Any]
    labels: list[torch.Tensor]
    accuracy: float


Part = tuple[Any, torch.Tensor]


def rows(inputs: Any, index: Any) -> Any:
    """Some rows of every input."""
    if isinstance(inputs, dict):
        return {name: value[index] for name, value in inputs.items()}
    return tuple(value[index] for value in inputs)


def call(function: Callable[..., torch.Tensor], inputs: Any) -> torch.Tensor:
    """Call with a tuple of arguments or a dict of keyword arguments."""
    return function(**inputs) if isinstance(inputs, dict) else function(*inputs)


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits in a fixed random order: (1797, 8, 8) float32 of variance 1, and int64 labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8)[order]
    return (x - x.mean()) / x.std(), torch.tensor(labels, dtype=torch.int64)[order]


def pictures(side: int = 8) -> Part:
    """Digits with a channel, enlarged to `side` x `side` pixels."""
    x, labels = digits()
    x = x[:, None]
    return (x if side == 8 else functional.interpolate(x, size=side, mode="bilinear", align_corners=False),), labels


def lines() -> Part:
    """Digits row by row."""
    x, labels = digits()
    return (x,), labels


def sentences(count: int = 6000) -> Part:
    """Which of CLASSES kinds do most tokens belong to? Token 0 pads, 1 begins, kinds alternate from CLASSES on."""
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(CLASSES, VOCABULARY, (count, 16), generator=draw)
    lengths = torch.randint(8, 17, (count, 1), generator=draw)
    mask = (torch.arange(16) < lengths).to(torch.int64)
    ids = torch.where(mask == 1, ids, 0)
    ids[:, 0] = 1
    kinds = functional.one_hot(ids % CLASSES, CLASSES) * (ids >= CLASSES)[..., None]
    most, labels = kinds.sum(1).topk(2, dim=1)
    clear = most[:, 0] > most[:, 1]
    return {"input_ids": ids[clear], "attention_mask": mask[clear]}, labels[clear, 0]


def fit(model: nn.Module, inputs: Any, labels: torch.Tensor, epochs: int, rate: float) -> None:
    """Train by AdamW, with a rate that rises and falls."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(call(model, rows(inputs, batch)), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    model.eval()


def outputs(candidate: Callable[..., torch.Tensor], data: Sequence[Any]) -> list[torch.Tensor]:
    """The answers to batches of `Trained.data`."""
    with torch.no_grad():
        return [call(candidate, batch) for batch in data]


def accuracy(candidate: Callable[..., torch.Tensor], data: Sequence[Any], labels: Sequence[torch.Tensor]) -> float:
    """Share of right answers."""
    found = torch.cat(outputs(candidate, data)).argmax(1)
    return (found == torch.cat(list(labels))).double().mean().item()


@torch.no_grad()
def enlarge(model: Llama, scale: float) -> None:
    """Multiply all that flows past the blocks; every norm takes it out again, so that the answers stay."""
    first = [model.embedding.weight, model.embedding.bias, model.positions]
    for block in model.blocks:
        first += [block.attention.out.weight, block.mlp.down.weight]
    for parameter in first:
        parameter.mul_(scale)


def large_stream(model: Llama, inputs: Any, largest: float = 2000.0) -> None:
    """Enlarge so that the largest value that enters a norm is `largest` on these inputs."""
    seen: list[float] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max().item()))
        for module in model.modules()
        if isinstance(module, RmsNorm)
    ]
    outputs(model, [inputs])
    for hook in hooks:
        hook.remove()
    enlarge(model, largest / max(seen))


RECIPES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Part], int, float]] = {
    "resnet": (ResNet, lambda: pictures(16), 3, 1e-2),
    "vit": (Vit, pictures, 7, 4e-3),
    "bert": (Bert, sentences, 3, 3e-3),
    "lstm": (Lstm, lines, 10, 1e-2),
    "rmsnorm": (Llama, lines, 8, 3e-3),
}
NAMES = (*RECIPES, "vit_overflow")


@functools.cache
def trained(name: str) -> Trained:
    """The model of `NAMES`, the same at every call and on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small operators are slower on several
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            return planted() if name == "vit_overflow" else made(name)
    finally:
        torch.set_num_threads(threads)


def made(name: str) -> Trained:
    """Trained on all but the last 448 examples."""
    kind, examples, epochs, rate = RECIPES[name]
    inputs, labels = examples()
    cut = len(labels) - 448
    model = kind()

    def train() -> None:
        fit(model, rows(inputs, slice(cut)), labels[:cut], epochs, rate)
        if isinstance(model, Llama):
            large_stream(model, rows(inputs, slice(cut)))

    weights_of_run(name, model, train)
    batches = [slice(start, start + 32) for start in range(cut, len(labels), 32)]
    return described(name, model, [rows(inputs, batch) for batch in batches], [labels[batch] for batch in batches])


def weights_of_run(name: str, model: nn.Module, train: Callable[[], None]) -> None:
    """Train, or take the weights of the process that was first in this run of the tests."""
    shared = os.environ.get(SHARED_FOLDER)
    if shared is None:
        train()
        return
    path = Path(shared, f"{name}.pt")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            model.load_state_dict(torch.load(path))
            model.eval()
        else:
            train()
            torch.save(model.state_dict(), path)


def planted() -> Trained:
    """The trained ViT with a detour in `OVERFLOW`."""
    vit = trained("vit")
    model = copy.deepcopy(vit.model)
    owner, _, name = OVERFLOW.rpartition(".")
    setattr(model.get_submodule(owner), name, Detour(model.get_submodule(OVERFLOW), DETOUR))
    return described("vit_overflow", model.eval(), vit.data, vit.labels)


def described(name: str, model: nn.Module, data: list[Any], labels: list[torch.Tensor]) -> Trained:
    """With a sample and axes that fit, and the accuracy."""
    sample = rows(data[0], slice(8))
    axes: dict[str, Any] = {"x": BATCH}
    if name == "bert":
        both = {**BATCH, 1: Axis("tokens", 8, 16, MOST_TOKENS)}
        axes = {"input_ids": both, "attention_mask": both}
    return Trained(name, model, sample, axes, data, labels, accuracy(model, data, labels))

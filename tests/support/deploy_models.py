"""Models, inputs and deployed modules for the tests of the back half of the road.

Enters: a name. Leaves: a fresh model, or a module that was deployed once and is shared, so that a test that changes one
takes `copy.deepcopy`. A room of its own because an export costs a second, and because spawned processes and loaded
artifacts must find these classes by import.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.deployed.onnxruntime.ort_module import ORTModule

BATCH = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
ONNXRUNTIME_TOLERANCE = replace(t2e.Tolerance.default("fp32"), rel_l2=2.5e-5, max_rel=1e-4)  # a tenth of an engine's


class Scores(NamedTuple):
    """A result type that can be imported."""

    logits: Any
    hidden: Any


@dataclass
class Batch:
    """An argument type."""

    image: Any
    mask: Any


class Mlp(nn.Module):
    """x: (batch, 6) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Nested(nn.Module):
    """A dataclass, a list and a dict in; out a NamedTuple with a tensor twice, a pass-through, a buffer and None."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, batch: Batch, states: list[torch.Tensor], *, extra: dict[str, Any], scale: float = 2.0) -> Scores:
        hidden = self.linear(batch.image) * batch.mask[:, None] * scale
        inner = {"sum": hidden.sum(), "states": [states[0] + 1, states[1]], "kind": "mlp", "nothing": None}
        return Scores(logits=hidden + extra["bias"], hidden={**inner, "again": hidden, "table": self.table})


class Scaled(nn.Module):
    """y = w * x * scale, whose scale is a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 2.0, 6))

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return self.w * x * scale


class Pair(nn.Module):
    """Two inputs that share an axis which grows in steps."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * 2 + b).tanh()


class EveryDtype(nn.Module):
    """Hands every input back turned round, so that its dtype and values must come through unharmed."""

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{name}_out": tensor.flip(0) for name, tensor in tensors.items()}


class Reduced(nn.Module):
    """Zero-dimensional in and out."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (x * weight).sum()


class Baked(nn.Module):
    """A model whose branch on batch == 1 an export can only bake."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return x * 100
        return x.tanh()


class Trainee(nn.Module):
    """Everything that training moves: batch statistics, dropout, a frozen layer in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(6)
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(8, 3)
        self.frozen.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(self.norm(self.first(self.frozen(x))).relu()))


def seeded(kind: type[nn.Module], **kwargs: Any) -> Any:
    """A model with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20170727)
        return kind(**kwargs)


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Different values in every place, the same each time."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def nested_inputs(size: int) -> t2e.Inputs:
    """Arguments of `Nested` at a batch size."""
    states = [sample(size, 2), sample(3)]
    return t2e.Inputs(Batch(sample(size, 6), sample(size)), states, extra={"bias": sample(size, 3)})


def deploy(model: nn.Module, inputs: Any, axes: Any = None, **options: Any) -> ORTModule:
    """Deploy to ONNX Runtime."""
    return t2e.deploy(model, inputs, axes, runtime="onnxruntime", **options)


@functools.cache
def mlp() -> tuple[Mlp, ORTModule]:
    """The reference and its deployed module; batch from 1 to 8."""
    model = seeded(Mlp).eval()
    return model, deploy(model, sample(4, 6), BATCH)


@functools.cache
def nested() -> tuple[Nested, ORTModule]:
    """As `mlp`, with structures everywhere."""
    model = seeded(Nested).eval()
    axis = {0: t2e.Axis("batch", 1, 4, 8)}
    axes = dict.fromkeys(("batch.image", "batch.mask", "states.0", "extra.bias"), axis)
    return model, deploy(model, nested_inputs(4), axes)


@functools.cache
def pair() -> ORTModule:
    """Two inputs, one axis in multiples of 4 over two profiles, another from 2 to 5."""
    axes = {name: {0: t2e.Axis("batch", 4, 8, 32, multiple_of=4), 1: t2e.Axis("width", 2, 3, 5)} for name in ("a", "b")}
    profiles = [{"batch": (4, 4, 8)}, {"batch": (16, 16, 32)}]
    return deploy(seeded(Pair), (sample(4, 3), sample(4, 3)), axes, profiles=profiles)


def answer(module: ORTModule, *args: Any) -> Any:
    """Call a module in a process of a pool."""
    return module(*args)


def hide_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine one without a GPU, if it has one."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("torch2engine.trt.gpu.CUDA_LIBRARIES", ("libcuda-hidden.so.1",))


@functools.cache
def engine() -> EngineArtifact:
    """`mlp` as a TensorRT-RTX engine, which needs a GPU only to run."""
    model = seeded(Mlp).eval()
    return t2e.build(t2e.export(model, sample(4, 6), BATCH), config=t2e.BuildConfig(flavour="tensorrt_rtx"))


@functools.cache
def engine_for(*capabilities: tuple[int, int]) -> EngineArtifact:
    """`engine` for GPUs of these compute capabilities, from the same exported model."""
    config = t2e.BuildConfig(flavour="tensorrt_rtx", compute_capabilities=capabilities)
    return t2e.build(engine().exported(), config=config)

"""Models with every trap that a refit can step into.

Enters: nothing. Leaves: modules with random weights, each with an input, and their exports. A room of its own because
traps are many, and because the export of each serves several tests.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch2engine as t2e
from tests.support import precision_networks as networks
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase, make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.exporter.export_onnx import export_onnx

Maker = Callable[[], tuple[nn.Module, torch.Tensor]]
BATCH = {0: t2e.Axis("batch", 1, 8, 32)}


class Norms(nn.Module):
    """BatchNorm behind convolutions of all kinds, behind a linear layer, and alone; with and without weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, eps=0.1))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 6, 2), nn.BatchNorm2d(6))
        self.grouped = nn.Sequential(nn.ConvTranspose2d(6, 6, 2, groups=2), nn.BatchNorm2d(6, affine=False))
        self.fc = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.up(self.deep(self.conv(x))))
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    """An embedding that is also the head's weight, used a third time, doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x)) @ (2 * self.head.weight)


class Parametrized(nn.Module):
    """Weights that are worked out from others at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(6, 7))
        self.second = parametrizations.spectral_norm(nn.Linear(7, 5))
        self.third = parametrizations.weight_norm(nn.Conv1d(1, 3, 2), dim=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)).tanh().unsqueeze(1))


class Folded(nn.Module):
    """Parameters whose values an optimiser would look at: zeros, ones, equal ones, unused ones, sums of several."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        nn.init.zeros_(self.conv.bias)
        self.zero, self.one = nn.Parameter(torch.zeros(2, 1, 1)), nn.Parameter(torch.ones(2, 1, 1))
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.unused = nn.Parameter(torch.ones(3))
        self.low_rank = nn.ParameterList([nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 4))])
        self.register_buffer("scale", torch.full((4,), 3.0))
        self.register_buffer("shift", torch.arange(4.0), persistent=False)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first((self.conv(x) + self.zero) * self.one))
        weight = torch.eye(4, device=x.device) + self.low_rank[0] @ self.low_rank[1]
        picked = torch.cat([self.frozen[:2], self.frozen[2:].exp().sqrt()]).reshape(2, 2).t().reshape(-1)
        return (x @ weight) * self.scale + self.shift + picked


class Alone(nn.Module):
    """Answers with a parameter, and with something made of parameters alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x + self.weight, self.weight, self.weight.sigmoid() * 2


class Strange(nn.Module):
    """Parameters in operators that no program knows, in a branch, spread out, beside large constants, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.summed, self.wide = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1))
        self.square, self.counts = nn.Parameter(torch.randn(200, 200)), nn.Buffer(torch.tensor([7, 8, 9, 10]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(200, 200).tril()
        rows = (self.square * mask).sum(0)[:4] + self.wide.expand(4, 9000).sum(1) / 9000
        x = torch.cond(x.sum() > 0, lambda x: x + self.summed, lambda x: x - self.summed, (x,))
        return x + self.summed.cumsum(0).chunk(2)[1].repeat(2) + rows + self.counts // 3


class Shared(nn.Module):
    """One norm behind two convolutions, one convolution before two norms, and an answer from between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.fixed = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
        self.weighted = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        between = self.b(x)
        x = self.norm(self.a(x)) + self.norm(self.a(x + 1)) + self.other(between)
        return self.weighted(self.fixed(x)), between


class _Last(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


MODELS: dict[str, Maker] = {
    "norms": lambda: (Norms(), torch.randn(8, 2, 9, 9)),
    "tied": lambda: (Tied(), torch.randint(0, 12, (8, 5))),
    "parametrized": lambda: (Parametrized(), torch.randn(8, 6)),
    "folded": lambda: (Folded(), torch.randn(8, 1, 2, 4)),
    "alone": lambda: (Alone(), torch.randn(8, 3)),
    "resnet": lambda: (networks.ResNet(), torch.randn(8, 1, 16, 16)),
    "vit": lambda: (networks.Vit(depth=1), torch.randn(8, 1, 8, 8)),
    "lstm": lambda: (networks.Lstm(), torch.randn(8, 8, 8)),
    "llama": lambda: (networks.Llama(depth=1), torch.randn(8, 8, 8)),
    "gru": lambda: (_Last(nn.GRU(6, 5, 2, batch_first=True, bidirectional=True)), torch.randn(8, 4, 6)),
    "transformer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(8, 5, 8)),
}


def tiny(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Real architectures at toy sizes."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ids = torch.randint(0, 30, (8, 6))
    if name == "bert":
        config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)
        return transformers.BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=1, n_head=2, use_cache=False)
        return transformers.GPT2LMHeadModel(config), {"input_ids": ids}
    config = transformers.LlamaConfig(vocab_size=30, num_key_value_heads=2, use_cache=False, **sizes)
    return transformers.LlamaForCausalLM(config), {"input_ids": ids}


@dataclass(frozen=True)
class RefittableExport:
    """A model with its export.

    Args:
        model: in inference mode.
        sample: a batch of 8.
        artifact: refittable, in float32.
        parity_cases: inputs with the model's answers.
    """

    model: nn.Module
    sample: torch.Tensor
    artifact: OnnxArtifact
    parity_cases: list[ParityCase]


def refittable_export(name: str) -> RefittableExport:
    """A model of `MODELS`, which the caller may change, with an artifact that others use too."""
    kept = _exported_once(name)
    return RefittableExport(copy.deepcopy(kept.model), kept.sample.clone(), kept.artifact, kept.parity_cases)


@functools.cache
def _exported_once(name: str) -> RefittableExport:
    torch.manual_seed(0)
    model, sample = MODELS[name]()
    model.eval()
    with undisturbed(model):
        captured = capture_call(model, sample, batch_axes(model))
        artifact = export_onnx(captured, refittable=True)
        return RefittableExport(model, sample, artifact, make_parity_cases(captured)[0])


def batch_axes(model: nn.Module) -> Mapping[str, Any]:
    """dynamic_axes of a model with one input, whatever forward calls it."""
    return {next(iter(inspect.signature(model.forward).parameters)): BATCH}

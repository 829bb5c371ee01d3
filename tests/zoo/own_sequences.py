"""Networks for sequences, sound, graphs and tables in plain PyTorch.

Enters: nothing. Leaves: `OWN_SEQUENCES`, entries by name. Apart because no library is needed for them.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import torch2engine as t2e
from tests.zoo.entry import BATCH, LENGTH, VOCABULARY, Sizes, ZooEntry, floats

__all__ = ["OWN_SEQUENCES"]

NODES = t2e.Axis("nodes", 4, 16, 40)
EDGES = t2e.Axis("edges", 4, 32, 90)
SERIES = {"x": {0: BATCH, 1: LENGTH}}
SIGNAL = t2e.Axis("time", 16, 64, 128)
MEL_FRAMES = t2e.Axis("frames", 8, 24, 48)


class Tagger(nn.Module):
    """A label for each word, by recurrence in both directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 24, padding_idx=0)
        self.recurrent = kind(24, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.words(input_ids))[0])


class LanguageModel(nn.Module):
    """AWD-LSTM's form: the state comes in and goes out, and the head shares its weights with the words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 32, num_layers=2, batch_first=True)

    def forward(self, input_ids: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        answers, (hidden, cell) = self.lstm(self.words(input_ids), (hidden, cell))
        return functional.linear(answers, self.words.weight), hidden, cell


class Forecaster(nn.Module):
    """The last state of a GRU gives the next steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 32, batch_first=True)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=False) + 1e-5
        return self.head(self.gru((x - mean) / deviation)[1][-1])


class Temporal(nn.Module):
    """TCN: causal dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 24, 1)
        self.layers = nn.ModuleList([nn.Conv1d(24, 24, 3, dilation=2**i) for i in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(1, 2))
        for i, layer in enumerate(self.layers):
            x = x + layer(functional.pad(x, (2 * 2**i, 0))).relu()
        return x.transpose(1, 2)


class Nbeats(nn.Module):
    """Blocks that explain a part of the past each, and add to the forecast."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 36)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        forecast = x.new_zeros(x.shape[0], 12)
        for block in self.blocks:
            back, ahead = block(x).split((24, 12), -1)
            x = x - back
            forecast = forecast + ahead
        return forecast


class DecompositionForecaster(nn.Module):
    """DLinear: a moving average and what is left, each by one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trend, self.rest = nn.Linear(48, 24), nn.Linear(48, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        padded = torch.cat((x[..., :1].expand(-1, -1, 6), x, x[..., -1:].expand(-1, -1, 6)), -1)
        trend = functional.avg_pool1d(padded, 13, 1)
        return (self.trend(trend) + self.rest(x - trend)).transpose(1, 2)


class Translator(nn.Module):
    """nn.Transformer with sines for positions and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        count = tgt.shape[1]
        mask = torch.full((count, count), float("-inf"), device=tgt.device).triu(1)
        hidden = self.transformer(self._embed(src), self._embed(tgt), tgt_mask=mask, tgt_is_causal=True)
        return self.head(hidden)

    def _embed(self, words: Tensor) -> Tensor:
        positions = torch.arange(words.shape[1], device=words.device)[:, None]
        angles = positions * torch.exp(torch.arange(0, 32, 2, device=words.device) * (-math.log(1e4) / 32))
        return self.words(words) * 32**0.5 + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


class PaddedEncoder(nn.Module):
    """nn.TransformerEncoder with a mask of what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, padding: Tensor) -> Tensor:
        hidden = self.encoder(self.words(input_ids), src_key_padding_mask=padding)
        present = (~padding).unsqueeze(-1).to(hidden.dtype)
        return (hidden * present).sum(1) / present.sum(1)


class Perceiver(nn.Module):
    """Few learnt queries look at a long input."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(6, 32))
        self.read = nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True)
        self.think = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1)
        hidden = queries + self.read(queries, x, x, need_weights=False)[0]
        return self.head(self.think(hidden).mean(1))


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, a convolution, and the other half."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.enter = nn.Linear(8 * 4, width)
        halves = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))] * 2
        self.halves = nn.ModuleList(halves)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.gate = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.out = nn.Conv1d(width, width, 1)
        self.head = nn.Linear(width, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(self.subsample(x[:, None]).transpose(1, 2).flatten(2))
        x = x + 0.5 * self.halves[0](x)
        hidden = self.norms[0](x)
        x = x + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = functional.glu(self.gate(self.norms[1](x).transpose(1, 2)), dim=1)
        x = x + self.out(functional.silu(self.batch_norm(self.depthwise(hidden)))).transpose(1, 2)
        return self.head(x + 0.5 * self.halves[1](x)).log_softmax(-1)


class Vocoder(nn.Module):
    """HiFi-GAN: spectra to sound by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv1d(20, 32, 7, padding=3))
        self.ups = nn.ModuleList([nn.ConvTranspose1d(32, 16, 8, 4, 2), nn.ConvTranspose1d(16, 8, 4, 2, 1)])
        self.blocks = nn.ModuleList([nn.Conv1d(16, 16, 3, dilation=3, padding=3), nn.Conv1d(8, 8, 3, padding=1)])
        self.last = nn.Conv1d(8, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(functional.leaky_relu(x, 0.1))
            x = x + block(functional.leaky_relu(x, 0.1))
        return torch.tanh(self.last(functional.leaky_relu(x)))


class WaveNet(nn.Module):
    """Gated dilated convolutions, conditioned on a speaker."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 1)
        self.speaker = nn.Embedding(5, 16)
        self.filters = nn.ModuleList([nn.Conv1d(16, 32, 3, padding=2**i, dilation=2**i) for i in range(4)])
        self.mixers = nn.ModuleList([nn.Conv1d(16, 32, 1) for _ in range(4)])
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 32, 1), nn.ReLU(), nn.Conv1d(32, 1, 1))

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        x = self.first(x) + self.speaker(speaker)[:, :, None]
        skips = torch.zeros_like(x)
        for wide, mixer in zip(self.filters, self.mixers, strict=True):
            a, b = wide(x).chunk(2, 1)
            step, skip = mixer(a.tanh() * b.sigmoid()).chunk(2, 1)
            x, skips = (x + step) * 0.5**0.5, skips + skip
        return self.last(skips)


class AcousticModel(nn.Module):
    """FastSpeech in small: texts to spectra, where each letter lasts a fixed number of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(40, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.duration = nn.Sequential(nn.Conv1d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 1, 1))
        self.pitch = nn.Sequential(nn.Conv1d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 1, 1))
        self.pitch_in = nn.Linear(1, 32)
        self.decoder = nn.LSTM(32, 32, batch_first=True)
        self.mel = nn.Linear(32, 20)

    def forward(self, letters: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(self.letters(letters))
        channels = hidden.transpose(1, 2)
        pitch = self.pitch(channels).transpose(1, 2)
        frames = (hidden + self.pitch_in(pitch)).repeat_interleave(3, dim=1)
        return {"mel": self.mel(self.decoder(frames)[0]), "log_duration": self.duration(channels), "pitch": pitch}


class Separator(nn.Module):
    """ConvTasNet: a learnt filter bank, masks, and back to sound."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 24, 8, 4, bias=False)
        self.norm = nn.GroupNorm(1, 24)
        self.mask = nn.Sequential(
            nn.Conv1d(24, 32, 1),
            nn.PReLU(),
            nn.Conv1d(32, 32, 3, padding=2, dilation=2, groups=32),
            nn.PReLU(),
            nn.Conv1d(32, 48, 1),
            nn.Sigmoid(),
        )
        self.decoder = nn.ConvTranspose1d(24, 1, 8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        coded = self.encoder(x)
        masked = coded[:, None] * self.mask(self.norm(coded)).unflatten(1, (2, 24))
        return self.decoder(masked.flatten(0, 1)).unflatten(0, (-1, 2)).squeeze(2)


class SpectrumClassifier(nn.Module):
    """Sound to its spectrum by a Fourier transform inside the model, then convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.layers = nn.Sequential(nn.Conv1d(33, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unfold(-1, 64, 32) * self.window
        power = torch.fft.rfft(frames).abs().square()
        return self.head(self.layers(torch.log(power + 1e-5).transpose(1, 2)))


class GraphConvolution(nn.Module):
    """GCN: each node takes the mean of its neighbours, over an edge list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 5)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        degree = torch.ones(x.shape[0], device=x.device).index_add(0, target, torch.ones_like(target, dtype=x.dtype))
        scale = degree.rsqrt()
        for i, layer in enumerate(self.layers):
            hidden = layer(x)
            message = hidden[source] * (scale[source] * scale[target])[:, None]
            x = torch.zeros_like(hidden).index_add(0, target, message) + hidden * scale.square()[:, None]
            x = x.relu() if i == 0 else x
        return x


class GraphAttention(nn.Module):
    """GAT: a softmax over the edges that end in one node."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(8, 16 * heads)
        self.from_source = nn.Parameter(torch.randn(heads, 16) * 0.1)
        self.to_target = nn.Parameter(torch.randn(heads, 16) * 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        hidden = self.project(x).unflatten(-1, (self.heads, 16))
        score = (hidden * self.from_source).sum(-1)[source] + (hidden * self.to_target).sum(-1)[target]
        score = functional.leaky_relu(score, 0.2)
        index = target[:, None].expand(-1, self.heads)
        highest = score.new_full((x.shape[0], self.heads), -1e9).scatter_reduce(0, index, score, "amax")
        weight = (score - highest[target]).exp()
        total = weight.new_zeros(x.shape[0], self.heads).scatter_add(0, index, weight)
        message = hidden[source] * (weight / (total[target] + 1e-9))[..., None]
        return torch.zeros_like(hidden).index_add(0, target, message).flatten(1)


class GraphSage(nn.Module):
    """GraphSAGE with the largest neighbour, and a whole-graph answer by scatter."""

    GRAPHS = 3

    def __init__(self) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(8, 16), nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, edge_index: Tensor, graph: Tensor) -> Tensor:
        index = edge_index[1][:, None].expand(-1, x.shape[1])
        largest = torch.zeros_like(x).scatter_reduce(0, index, x[edge_index[0]], "amax", include_self=False)
        hidden = (self.own(x) + self.others(largest)).relu()
        pooled = hidden.new_zeros(self.GRAPHS, 16).scatter_reduce(
            0, graph[:, None].expand(-1, 16), hidden, "mean", include_self=False
        )
        return self.head(pooled)


class EdgeNetwork(nn.Module):
    """An interaction network: messages from both ends and the edge, then new states of the nodes by a GRU cell."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(20, 32), nn.SiLU(), nn.Linear(32, 16))
        self.update = nn.GRUCell(16, 8)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        source, target = edge_index.unbind(0)
        for _ in range(2):
            message = self.message(torch.cat((x[source], x[target], edge_attr), -1))
            x = self.update(x.new_zeros(x.shape[0], 16).index_add(0, target, message), x)
        return x


class ClickModel(nn.Module):
    """DLRM: tables for categories, their products, and a bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.tables = nn.ModuleList([nn.Embedding(20, 8) for _ in range(4)])
        self.bag = nn.EmbeddingBag(50, 8, mode="mean")
        self.top = nn.Sequential(nn.Linear(8 + 15, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, categories: Tensor, words: Tensor) -> Tensor:
        vectors = [self.dense(dense), self.bag(words)]
        vectors += [table(categories[:, i]) for i, table in enumerate(self.tables)]
        stacked = torch.stack(vectors, 1)
        rows, columns = torch.tril_indices(6, 6, -1, device=dense.device)
        products = (stacked @ stacked.transpose(1, 2))[:, rows, columns]
        return self.top(torch.cat((vectors[0], products), -1)).sigmoid()


class FactorizationMachine(nn.Module):
    """DeepFM: pairs of categories by a square of sums, beside a deep network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(60, 1), nn.Embedding(60, 8)
        self.deep = nn.Sequential(nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 1))
        self.register_buffer("offsets", torch.arange(0, 60, 10))

    def forward(self, categories: Tensor) -> Tensor:
        categories = categories + self.offsets
        vectors = self.second(categories)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(-1, keepdim=True)
        return (self.first(categories).sum(1) + pairs + self.deep(vectors.flatten(1))).squeeze(-1)


class TabTransformer(nn.Module):
    """Attention between the columns of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Parameter(torch.randn(5, 16))
        self.categories = nn.Embedding(30, 16)
        self.answer = nn.Parameter(torch.randn(1, 1, 16))
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 3)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        tokens = torch.cat((numbers[..., None] * self.columns, self.categories(categories)), 1)
        tokens = torch.cat((self.answer.expand(tokens.shape[0], -1, -1), tokens), 1)
        return self.head(self.encoder(tokens)[:, 0]).softmax(-1)


class Coupling(nn.Module):
    """RealNVP: half of the numbers scales and shifts the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList([nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)) for _ in range(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        determinant = x.new_zeros(x.shape[0])
        for network in self.networks:
            fixed, free = x.chunk(2, -1)
            scale, shift = network(fixed).chunk(2, -1)
            scale = scale.tanh()
            x = torch.cat((free * scale.exp() + shift, fixed), -1)
            determinant = determinant + scale.sum(-1)
        return x, -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1) + determinant


class Policy(nn.Module):
    """A dueling network for games: values of states and of actions, and the best action."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 16, 4, 2), nn.ReLU(), nn.Flatten())
        self.value, self.advantage = nn.Linear(256, 1), nn.Linear(256, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.eyes(x / 255.0)
        advantage = self.advantage(hidden)
        values = self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)
        return values, values.argmax(-1)


class StateSpace(nn.Module):
    """S4D: a diagonal state-space model as one long convolution, by Fourier transforms of fixed length."""

    STEPS = 32

    def __init__(self, width: int = 12, states: int = 8) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.rand(width) - 3)
        self.decay = nn.Parameter(torch.rand(width, states))
        self.turn = nn.Parameter(math.pi * torch.arange(states).float().repeat(width, 1))
        self.weight = nn.Parameter(torch.randn(width, states, 2))
        self.skip = nn.Parameter(torch.randn(width))
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(self.STEPS, device=x.device) * self.log_step.exp()[:, None]
        fade = torch.exp(-self.decay.exp()[..., None] * steps[:, None])
        angle = self.turn[..., None] * steps[:, None]
        kernel = (fade * (self.weight[..., :1] * angle.cos() - self.weight[..., 1:] * angle.sin())).sum(1)
        signal = x.transpose(1, 2)
        size = 2 * self.STEPS
        mixed = torch.fft.irfft(torch.fft.rfft(signal, n=size) * torch.fft.rfft(kernel, n=size), n=size)
        return self.mix(functional.gelu((mixed[..., : self.STEPS] + signal * self.skip[:, None]).transpose(1, 2)))


class LinearAttention(nn.Module):
    """Retention: attention whose weights fade with the distance, over any length."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.norm = nn.GroupNorm(heads, width)
        self.out = nn.Linear(width, width)
        self.register_buffer("fading", torch.log(1 - 2.0 ** -(5 + torch.arange(heads).float())))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        positions = torch.arange(x.shape[1], device=x.device)
        distance = (positions[:, None] - positions[None]).to(x.dtype)
        weight = torch.exp(self.fading[:, None, None] * distance.clamp(min=0)).masked_fill(distance < 0, 0)
        mixed = ((q @ k.transpose(-1, -2)) * weight / 8) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out(self.norm(mixed.flatten(0, 1)).unflatten(0, x.shape[:2]))


class Experts(nn.Module):
    """A mixture of experts, of which each token uses the best two."""

    def __init__(self, width: int = 16, count: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.inner = nn.Parameter(torch.randn(count, width, 32) * 0.2)
        self.outer = nn.Parameter(torch.randn(count, 32, width) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        best = scores.topk(2, -1)
        weight = torch.zeros_like(scores).scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))
        hidden = functional.silu(torch.einsum("btd,edh->bteh", x, self.inner))
        return torch.einsum("bteh,ehd,bte->btd", hidden, self.outer, weight)


def _words(sizes: Sizes, name: str = "input_ids", length: str = "length") -> dict[str, Tensor]:
    return {name: torch.randint(1, VOCABULARY, (sizes["batch"], sizes[length]))}


def _with_state(sizes: Sizes) -> dict[str, Tensor]:
    batch = sizes["batch"]
    return {**_words(sizes), "hidden": torch.randn(2, batch, 32), "cell": torch.randn(2, batch, 32)}


def _padded(sizes: Sizes) -> dict[str, Tensor]:
    padding = torch.zeros(sizes["batch"], sizes["length"], dtype=torch.bool)
    padding[-1, sizes["length"] * 2 // 3 :] = True
    return {**_words(sizes), "padding": padding}


def _graph(sizes: Sizes, edge_attr: bool = False, graph: bool = False) -> dict[str, Tensor]:
    nodes, edges = sizes["nodes"], sizes["edges"]
    inputs = {"x": torch.randn(nodes, 8), "edge_index": torch.randint(0, nodes, (2, edges))}
    if edge_attr:
        inputs["edge_attr"] = torch.randn(edges, 4)
    if graph:
        inputs["graph"] = torch.arange(nodes) * GraphSage.GRAPHS // nodes
    return inputs


def _clicks(sizes: Sizes) -> dict[str, Tensor]:
    batch = sizes["batch"]
    return {
        "dense": torch.randn(batch, 5),
        "categories": torch.randint(0, 20, (batch, 4)),
        "words": torch.randint(0, 50, (batch, 6)),
    }


def _table(sizes: Sizes) -> dict[str, Tensor]:
    return {"numbers": torch.randn(sizes["batch"], 5), "categories": torch.randint(0, 30, (sizes["batch"], 3))}


def _sound(sizes: Sizes) -> dict[str, Tensor]:
    return {"x": torch.randn(sizes["batch"], 1, sizes["time"]), "speaker": torch.randint(0, 5, (sizes["batch"],))}


_WORDS = {"input_ids": {0: BATCH, 1: LENGTH}}
_GRAPH = {"x": {0: NODES}, "edge_index": {1: EDGES}}
_FREE_BATCH = {0: BATCH}
_SOUND = {"x": {0: BATCH, 2: SIGNAL}}
_Entry = functools.partial(ZooEntry, "own sequences")

OWN_SEQUENCES: dict[str, ZooEntry] = {
    "lstm_tagger": _Entry(functools.partial(Tagger, nn.LSTM), _words, _WORDS),
    "gru_tagger": _Entry(functools.partial(Tagger, nn.GRU), _words, _WORDS),
    "rnn_tagger": _Entry(functools.partial(Tagger, nn.RNN), _words, _WORDS),
    "lstm_language_model": _Entry(LanguageModel, _with_state, {**_WORDS, "hidden": {1: BATCH}, "cell": {1: BATCH}}),
    "gru_forecaster": _Entry(Forecaster, floats("batch", "length", 6), SERIES),
    "tcn": _Entry(Temporal, floats("batch", "length", 6), SERIES),
    "n_beats": _Entry(Nbeats, floats("batch", 24), {"x": _FREE_BATCH}),
    "dlinear": _Entry(DecompositionForecaster, floats("batch", 48, 6), {"x": _FREE_BATCH}),
    "nn_transformer": _Entry(
        Translator,
        lambda sizes: {**_words(sizes, "src"), **_words(sizes, "tgt", "written")},
        {"src": {0: BATCH, 1: LENGTH}, "tgt": {0: BATCH, 1: t2e.Axis("written", 2, 8, 24)}},
    ),
    "transformer_encoder": _Entry(PaddedEncoder, _padded, {**_WORDS, "padding": {0: BATCH, 1: LENGTH}}),
    "perceiver": _Entry(Perceiver, floats("batch", "length", 16), SERIES),
    "conformer": _Entry(
        ConformerBlock, floats("batch", "frames", 20), {"x": {0: BATCH, 1: t2e.Axis("frames", 16, 32, 64)}}
    ),
    "hifi_gan": _Entry(Vocoder, floats("batch", 20, "frames", name="mel"), {"mel": {0: BATCH, 2: MEL_FRAMES}}),
    "wavenet": _Entry(WaveNet, _sound, {**_SOUND, "speaker": _FREE_BATCH}),
    "fastspeech": _Entry(
        AcousticModel,
        lambda sizes: {"letters": torch.randint(0, 40, (sizes["batch"], sizes["length"]))},
        {"letters": {0: BATCH, 1: LENGTH}},
    ),
    "conv_tasnet": _Entry(Separator, floats("batch", 1, "time"), {"x": {0: BATCH, 2: t2e.Axis("time", 64, 128, 256)}}),
    "spectrum_classifier": _Entry(SpectrumClassifier, floats("batch", 512), {"x": _FREE_BATCH}),
    "gcn": _Entry(GraphConvolution, _graph, _GRAPH),
    "gat": _Entry(GraphAttention, _graph, _GRAPH),
    "graph_sage": _Entry(GraphSage, functools.partial(_graph, graph=True), {**_GRAPH, "graph": {0: NODES}}),
    "interaction_network": _Entry(
        EdgeNetwork, functools.partial(_graph, edge_attr=True), {**_GRAPH, "edge_attr": {0: EDGES}}
    ),
    "dlrm": _Entry(ClickModel, _clicks, dict.fromkeys(("dense", "categories", "words"), _FREE_BATCH)),
    "deepfm": _Entry(
        FactorizationMachine,
        lambda sizes: {"categories": torch.randint(0, 10, (sizes["batch"], 6))},
        {"categories": _FREE_BATCH},
    ),
    "tab_transformer": _Entry(TabTransformer, _table, dict.fromkeys(("numbers", "categories"), _FREE_BATCH)),
    "real_nvp": _Entry(Coupling, floats("batch", 8), {"x": _FREE_BATCH}),
    "dueling_dqn": _Entry(Policy, floats("batch", 4, 44, 44), {"x": _FREE_BATCH}),
    "s4d": _Entry(StateSpace, floats("batch", StateSpace.STEPS, 12), {"x": _FREE_BATCH}),
    "retention": _Entry(LinearAttention, floats("batch", "length", 32), SERIES),
    "mixture_of_experts": _Entry(Experts, floats("batch", "length", 16), SERIES),
}

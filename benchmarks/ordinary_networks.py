"""Small networks of the usual families, with random weights, for `ordinary_models`.

Enters: nothing. Leaves: `NETWORKS`, by name: how to make a network, the shape of one sample, and forward's argument.
Apart because these need PyTorch alone, and are cheap enough to be deployed by the dozen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True)
class Network:
    """A network with its input.

    Args:
        make: gives the network.
        shape: of one sample, without the batch.
        name: of forward's argument.
        tokens: how many different integers the input has; 0 for an input of floating-point numbers.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    name: str = "x"
    tokens: int = 0


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _pooled_head(channels: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


def _tabular() -> nn.Module:
    """Normalised columns, then layers with BatchNorm, as on tables."""
    body = [nn.BatchNorm1d(40), nn.Linear(40, 128), nn.BatchNorm1d(128), nn.SELU(), nn.Linear(128, 64), nn.Tanh()]
    return nn.Sequential(*body, nn.Linear(64, 2), nn.Softmax(-1))


def _vgg() -> nn.Module:
    blocks = [_conv(3, 32), _conv(32, 32), nn.MaxPool2d(2), _conv(32, 64), _conv(64, 64), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, 10))


def _alexnet() -> nn.Module:
    first = [nn.Conv2d(3, 48, 11, 4, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)]
    return nn.Sequential(*first, nn.Conv2d(48, 96, 5, padding=2), nn.ReLU(), _pooled_head(96))


def _separable() -> nn.Module:
    pairs = [nn.Sequential(_conv(width, width, groups=width), _conv(width, 2 * width, 1)) for width in (16, 32, 64)]
    return nn.Sequential(_conv(3, 16, stride=2), *pairs, _pooled_head(128))


def _autoencoder() -> nn.Module:
    down = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()]
    return nn.Sequential(*down, *up)


def _generator() -> nn.Module:
    start = [nn.Linear(32, 64 * 16), nn.Unflatten(1, (64, 4, 4)), nn.BatchNorm2d(64), nn.ReLU()]
    up = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)]
    return nn.Sequential(*start, *up, nn.Tanh())


def _discriminator() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.InstanceNorm2d(64)]
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(64, 1, 4))


def _super_resolution() -> nn.Module:
    body = [nn.Conv2d(3, 64, 5, padding=2), nn.PReLU(), nn.Conv2d(64, 32, 3, padding=1), nn.PReLU()]
    return nn.Sequential(*body, nn.Conv2d(32, 12, 3, padding=1), nn.PixelShuffle(2))


def _group_norm() -> nn.Module:
    first = [nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU()]
    return nn.Sequential(*first, nn.Conv2d(32, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.SiLU(), _pooled_head(64))


def _volumes() -> nn.Module:
    first = [nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*first, nn.Conv3d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Recurrent(nn.Module):
    """Two recurrent layers in both directions, and an answer for each step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(32, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class Crnn(nn.Module):
    """Convolutions over a line of text, then an LSTM over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(1, 32), nn.MaxPool2d(2), _conv(32, 32), nn.MaxPool2d(2))
        self.recurrent = nn.LSTM(32 * 4, 48, batch_first=True, bidirectional=True)
        self.head = nn.Linear(96, 30)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.body(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.recurrent(columns)[0]).log_softmax(-1)


class Unet(nn.Module):
    """Two scales and a way across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = _conv(3, 32)
        self.deep = _conv(32, 64, stride=2)
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.out = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.out(torch.cat((fine, self.up(self.deep(fine))), 1))


class Pyramid(nn.Module):
    """Two scales of a detector: boxes beside scores."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(3, 32, stride=2), _conv(32, 32, stride=2))
        self.coarse = _conv(32, 64, stride=2)
        self.across = nn.Conv2d(64, 32, 1)
        self.head = nn.Conv2d(32, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.across(self.coarse(fine))
        merged = fine + functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        maps = torch.cat([self.head(part).flatten(2) for part in (merged, coarse)], -1).transpose(1, 2)
        return torch.cat((64 * maps[..., :4].sigmoid(), maps[..., 4:].sigmoid()), -1)


class SqueezeExcite(nn.Module):
    """Channels that are weighted by what the whole picture holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(3, 32, stride=2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
        self.head = _pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * functional.hardsigmoid(self.gate(x)))


class Dense(nn.Module):
    """Every layer reads the outputs of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_conv(8 + 16 * number, 16) for number in range(4)])
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.head = _pooled_head(72)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return self.head(x)


class Gaussian(nn.Module):
    """A mean beside a log-variance, as the encoder of a variational autoencoder has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.mean = nn.Linear(128, 16)
        self.log_variance = nn.Linear(128, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        return torch.cat((10 * self.mean(hidden), self.log_variance(hidden) - 4), -1)


class Points(nn.Module):
    """A PointNet: the largest of many points' features."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 64, 1), nn.ReLU(), nn.Conv1d(64, 256, 1), nn.ReLU())
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.each(x).amax(-1))


class Siren(nn.Module):
    """A network of sines, which amplifies what is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(6 * layer(x))
        return x


class Dilated(nn.Module):
    """Dilated convolutions over time, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 1)
        self.blocks = nn.ModuleList([nn.Conv1d(32, 32, 3, padding=2**i, dilation=2**i) for i in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + functional.gelu(block(x))
        return x


class Wave(nn.Module):
    """Gated causal convolutions over a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 32, 1)
        self.blocks = nn.ModuleList([nn.Conv1d(32, 64, 2, dilation=2**i) for i in range(4)])
        self.head = nn.Conv1d(32, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            signal, gate = block(functional.pad(x, (2**number, 0))).chunk(2, 1)
            x = x + signal.tanh() * gate.sigmoid()
        return self.head(x)


class Mixer(nn.Module):
    """An MLP-Mixer: layers over patches and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, 8)
        self.norms = nn.ModuleList([nn.LayerNorm(48) for _ in range(4)])
        self.over_patches = nn.ModuleList([_wide(16) for _ in range(2)])
        self.over_channels = nn.ModuleList([_wide(48) for _ in range(2)])
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for number in range(2):
            mixed = self.over_patches[number](self.norms[2 * number](x).transpose(1, 2))
            x = x + mixed.transpose(1, 2)
            x = x + self.over_channels[number](self.norms[2 * number + 1](x))
        return self.head(x.mean(1))


def _wide(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Vit(nn.Module):
    """A small vision transformer with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 64) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 17, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Llama(nn.Module):
    """A block of a language model of today: RMS norm, causal attention, gated layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 64)
        self.norms = nn.ModuleList([nn.RMSNorm(64) for _ in range(3)])
        self.attended = nn.Linear(64, 192, bias=False)
        self.out = nn.Linear(64, 64, bias=False)
        self.gates = nn.Linear(64, 256, bias=False)
        self.down = nn.Linear(128, 64, bias=False)
        self.head = nn.Linear(64, 500, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        heads = self.attended(self.norms[0](x)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        answer = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(answer.transpose(1, 2).flatten(2))
        gate, value = self.gates(self.norms[1](x)).chunk(2, -1)
        return self.head(self.norms[2](x + self.down(functional.silu(gate) * value)))


class Perceiver(nn.Module):
    """A few learned queries that look at many inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(8, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.norm(queries + self.attention(queries, x, x, need_weights=False)[0])


class Recommender(nn.Module):
    """Embeddings of what was bought, their mean beside their products."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(300, 24)
        self.head = nn.Sequential(nn.Linear(24 + 45, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("pairs", torch.triu_indices(10, 10, 1))

    def forward(self, input_ids: Tensor) -> Tensor:
        found = self.items(input_ids)
        products = (found @ found.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.head(torch.cat((found.mean(1), products), -1)).sigmoid()


class Experts(nn.Module):
    """Several small networks, weighted by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList([_wide(32) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], -1)
        return (answers * self.router(x).softmax(-1).unsqueeze(-2)).sum(-1)


class Flow(nn.Module):
    """Affine couplings of a normalising flow."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        for step in self.steps:
            scale, shift = step(first).chunk(2, -1)
            moved = second * scale.tanh().exp() + shift
            second = first
            first = moved
        return torch.cat((first, second), -1)


class Graph(nn.Module):
    """Graph convolutions over a fixed, normalised adjacency."""

    def __init__(self) -> None:
        super().__init__()
        links = (torch.rand(20, 20) > 0.7).float() + torch.eye(20)
        self.register_buffer("links", links / links.sum(1, keepdim=True))
        self.layers = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = functional.elu(self.layers[0](self.links @ x))
        return self.layers[1](self.links @ x)


class Warp(nn.Module):
    """A spatial transformer: the picture says how it is turned."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.angles = nn.Linear(128, 6)
        self.register_buffer("still", torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        theta = (self.still + 0.1 * self.angles(self.body(x))).unflatten(-1, (2, 3))
        grid = functional.affine_grid(theta, [x.shape[0], 1, 24, 24], align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)


class Deep(nn.Module):
    """Many residual layers with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(64) for _ in range(12)])
        self.layers = nn.ModuleList([nn.Linear(64, 64) for _ in range(12)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + functional.mish(layer(norm(x)))
        return x


class Similarity(nn.Module):
    """Cosines between normalised features and prototypes, over a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 32))
        self.prototypes = nn.Parameter(torch.randn(12, 32))

    def forward(self, x: Tensor) -> Tensor:
        features = functional.normalize(self.body(x), dim=-1)
        return features @ functional.normalize(self.prototypes, dim=-1).T / 0.1


_PICTURE = (3, 32, 32)

NETWORKS: dict[str, Network] = {
    "mlp": Network(_mlp, (32,), "input"),
    "tabular": Network(_tabular, (40,), "input"),
    "vgg_small": Network(_vgg, _PICTURE, "input"),
    "alexnet_small": Network(_alexnet, (3, 64, 64), "input"),
    "separable_convolutions": Network(_separable, _PICTURE, "input"),
    "autoencoder": Network(_autoencoder, (1, 28, 28), "input"),
    "generator": Network(_generator, (32,), "input"),
    "discriminator": Network(_discriminator, _PICTURE, "input"),
    "super_resolution": Network(_super_resolution, (3, 24, 24), "input"),
    "group_norm": Network(_group_norm, _PICTURE, "input"),
    "volumes": Network(_volumes, (1, 12, 12, 12), "input"),
    "transformer_encoder": Network(_encoder, (24, 64), "src"),
    "rnn": Network(functools.partial(Recurrent, nn.RNN), (20, 32)),
    "lstm": Network(functools.partial(Recurrent, nn.LSTM), (20, 32)),
    "gru": Network(functools.partial(Recurrent, nn.GRU), (20, 32)),
    "crnn": Network(Crnn, (1, 16, 48)),
    "unet": Network(Unet, (3, 64, 64)),
    "pyramid": Network(Pyramid, (3, 64, 64)),
    "squeeze_excite": Network(SqueezeExcite, _PICTURE),
    "dense_blocks": Network(Dense, _PICTURE),
    "gaussian_head": Network(Gaussian, (64,)),
    "pointnet": Network(Points, (3, 256)),
    "siren": Network(Siren, (100, 2)),
    "dilated_convolutions": Network(Dilated, (8, 128)),
    "wave": Network(Wave, (1, 200)),
    "mixer": Network(Mixer, _PICTURE),
    "vit_small": Network(Vit, _PICTURE),
    "llama_block": Network(Llama, (24,), "input_ids", tokens=500),
    "perceiver": Network(Perceiver, (40, 32)),
    "recommender": Network(Recommender, (10,), "input_ids", tokens=300),
    "experts": Network(Experts, (32,)),
    "flow": Network(Flow, (16,)),
    "graph_convolutions": Network(Graph, (20, 16)),
    "spatial_transformer": Network(Warp, (1, 28, 28)),
    "deep_residual": Network(Deep, (64,)),
    "similarity": Network(Similarity, (48,)),
}

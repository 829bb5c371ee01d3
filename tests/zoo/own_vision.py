"""Networks for pictures in plain PyTorch: detectors, generators, super resolution, diffusion, reading.

Enters: nothing. Leaves: `OWN_VISION`, entries by name. Apart because no library is needed for them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

import torch2engine as t2e
from tests.zoo.entry import BATCH, PIXELS, Sizes, ZooEntry, floats, pictures, side

__all__ = ["OWN_VISION"]

HEIGHT = side("height", 32, 64, 8)
WIDTH = side("width", 32, 64, 8)
PICTURE_AXES = {"x": {0: BATCH, 2: HEIGHT, 3: WIDTH}}


def _convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.SiLU(inplace=True)
    )


class Unet(nn.Module):
    """Three scales with ways across."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = _convolution(3, width)
        self.second = _convolution(width, 2 * width, 2)
        self.third = _convolution(2 * width, 4 * width, 2)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.mix = _convolution(4 * width, width)
        self.out = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        x = self.mix(torch.cat((second, self.up(self.third(second))), 1))
        x = functional.interpolate(x, size=first.shape[2:], mode="bilinear", align_corners=False)
        return self.out(torch.cat((first, x), 1))


class ResidualDense(nn.Module):
    """ESRGAN's block: every layer sees all earlier ones."""

    def __init__(self, width: int = 16, growth: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(3)])
        self.last = nn.Conv2d(width + 3 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(functional.leaky_relu(layer(torch.cat(features, 1)), 0.2))
        return x + 0.2 * self.last(torch.cat(features, 1))


class Esrgan(nn.Module):
    """Super resolution by nearest neighbours and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(ResidualDense(), ResidualDense())
        self.up = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.body(x)
        return self.last(functional.leaky_relu(self.up(functional.interpolate(x, scale_factor=2, mode="nearest")), 0.2))


class Edsr(nn.Module):
    """Super resolution by residual blocks and pixel shuffling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        blocks = [
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(3)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.up = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        base = functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        hidden = self.first(x)
        for block in self.blocks:
            hidden = hidden + 0.1 * block(hidden)
        return base + self.up(hidden)


class Rcan(nn.Module):
    """Super resolution with attention over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)])
        self.gates = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())]
            * 3
        )
        self.last = nn.Sequential(nn.Conv2d(16, 27, 3, padding=1), nn.PixelShuffle(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, gate in zip(self.body, self.gates, strict=True):
            hidden = layer(x).relu()
            x = x + hidden * gate(hidden)
        return self.last(x)


class Generator(nn.Module):
    """CycleGAN's generator: reflection, instance normalisation, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, 8, 7),
            nn.InstanceNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.InstanceNorm2d(16, affine=True),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(8),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(3),
            nn.Conv2d(8, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class StyleGenerator(nn.Module):
    """From a latent vector to a picture, which styles modulate at each scale."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.styles = nn.ModuleList([nn.Linear(32, 16) for _ in range(3)])
        self.layers = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)])
        self.colour = nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        latent = self.mapping(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        x = self.constant.expand(z.shape[0], -1, -1, -1)
        for style, layer in zip(self.styles, self.layers, strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            scale = style(latent)[:, :, None, None] + 1
            x = layer(x * scale)
            x = functional.leaky_relu(x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8), 0.2)
        return self.colour(x)


class Detector(nn.Module):
    """YOLO's form: a pyramid, a spatial pooling pyramid, decoded boxes and classes."""

    CLASSES = 6

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 16, 2), _convolution(16, 32, 2))
        self.third = _convolution(32, 32, 2)
        self.fourth = _convolution(32, 64, 2)
        self.pooled = nn.Conv2d(256, 64, 1)
        self.lateral = _convolution(96, 32)
        self.heads = nn.ModuleList([nn.Conv2d(width, 4 + self.CLASSES, 1) for width in (32, 64)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        third = self.third(self.stem(x))
        fourth = self.fourth(third)
        pools = [fourth]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        fourth = self.pooled(torch.cat(pools, 1))
        third = self.lateral(torch.cat((third, functional.interpolate(fourth, scale_factor=2.0)), 1))
        found = [self._decode(head(f), s) for head, f, s in zip(self.heads, (third, fourth), (8, 16), strict=True)]
        return torch.cat([boxes for boxes, _ in found], 1), torch.cat([scores for _, scores in found], 1)

    def _decode(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype) + 0.5
        columns = torch.arange(x.shape[3], device=x.device, dtype=x.dtype) + 0.5
        y, x_grid = torch.meshgrid(rows, columns, indexing="ij")
        centres = torch.stack((x_grid, y), -1).reshape(1, -1, 2)
        flat = x.flatten(2).transpose(1, 2)
        reach = functional.softplus(flat[..., :4])
        boxes = torch.cat((centres - reach[..., :2], centres + reach[..., 2:]), -1) * stride
        return boxes, flat[..., 4:].sigmoid()


class CrnnReader(nn.Module):
    """Reads a line of text: convolutions, then an LSTM along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_convolution(1, 16, 2), _convolution(16, 32, 2))
        self.lstm = nn.LSTM(32 * 8, 32, bidirectional=True)
        self.head = nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolutions(x)
        x = x.flatten(1, 2).permute(2, 0, 1)
        return self.head(self.lstm(x)[0]).log_softmax(-1)


def timestep_embedding(time: Tensor, size: int) -> Tensor:
    """Sines and cosines of a step of diffusion."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=time.device) / (size // 2))
    angles = time[:, None].float() * frequencies[None]
    return torch.cat((angles.cos(), angles.sin()), -1)


class TimeBlock(nn.Module):
    """A residual block that knows the step of diffusion."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.time = nn.Linear(32, 2 * outer)
        self.norm = nn.GroupNorm(4, outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(functional.silu(time))[:, :, None, None].chunk(2, 1)
        hidden = self.norm(self.first(x)) * (1 + scale) + shift
        return self.skip(x) + self.second(functional.silu(hidden))


class CrossAttention(nn.Module):
    """Attention of pixels to each other and to a text."""

    def __init__(self, width: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, width)
        self.query = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        keys, values = self.pair(pixels if context is None else context).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(pixels), keys, values))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).reshape(batch, channels, height, width)


class DiffusionUnet(nn.Module):
    """Stable Diffusion's U-Net in small: time, text, attention at the lower scale."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32))
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.down = TimeBlock(16, 16)
        self.shrink = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([TimeBlock(32, 32), TimeBlock(32, 32)])
        self.self_attention = CrossAttention(32, 32)
        self.attention = CrossAttention(32, 24)
        self.grow = nn.Conv2d(32, 16, 3, padding=1)
        self.up = TimeBlock(32, 16)
        self.last = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 3, padding=1))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        time = self.time(timestep_embedding(timestep, 32))
        fine = self.down(self.first(sample), time)
        x = self.middle[0](self.shrink(fine), time)
        x = self.middle[1](self.attention(self.self_attention(x), encoder_hidden_states), time)
        x = self.grow(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.last(self.up(torch.cat((x, fine), 1), time))


class VaeEncoder(nn.Module):
    """A latent's mean and variance, from a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.shrink = nn.Conv2d(16, 32, 3, stride=2)
        self.attention = CrossAttention(32, 32)
        self.last = nn.Sequential(nn.GroupNorm(8, 32, eps=1e-6), nn.SiLU(), nn.Conv2d(32, 8, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.shrink(functional.pad(self.first(x), (0, 1, 0, 1)))
        mean, log_variance = self.last(self.attention(x)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20).exp()


class VaeDecoder(nn.Module):
    """A picture, from a latent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 32, 3, padding=1)
        self.attention = CrossAttention(32, 32)
        self.grow = nn.Conv2d(32, 16, 3, padding=1)
        self.last = nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.first(x / 0.18215))
        x = self.grow(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return (self.last(x) / 2 + 0.5).clamp(0, 1)


class VectorQuantizer(nn.Module):
    """VQ-VAE: each vector becomes the nearest one of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_convolution(3, 16, 2), nn.Conv2d(16, 8, 1))
        self.table = nn.Embedding(32, 8)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encoder(x).permute(0, 2, 3, 1)
        distances = latent.square().sum(-1, keepdim=True) - 2 * latent @ self.table.weight.t()
        codes = (distances + self.table.weight.square().sum(-1)).argmin(-1)
        return self.decoder(self.table(codes).permute(0, 3, 1, 2)), codes


class DiffusionTransformer(nn.Module):
    """DiT: patches, and layers that the step of diffusion and the class modulate."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(4, width, 2, 2)
        self.classes = nn.Embedding(11, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.ModuleList([nn.Linear(width, 6 * width) for _ in range(2)])
        self.attention = nn.ModuleList([nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2)])
        self.mlp = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 64), nn.GELU("tanh"), nn.Linear(64, width)) for _ in range(2)]
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.last = nn.Linear(width, 16)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.patches(x)
        rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        condition = functional.silu(self.time(timestep_embedding(t, 32)) + self.classes(y))
        for modulation, attention, mlp in zip(self.modulation, self.attention, self.mlp, strict=True):
            parts = modulation(condition)[:, None].chunk(6, -1)
            hidden = self.norm(x) * (1 + parts[0]) + parts[1]
            x = x + parts[2] * attention(hidden, hidden, hidden, need_weights=False)[0]
            x = x + parts[5] * mlp(self.norm(x) * (1 + parts[3]) + parts[4])
        x = self.last(self.norm(x)).unflatten(1, (rows, columns)).unflatten(-1, (2, 2, 4))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Radiance(nn.Module):
    """NeRF: positions and directions by sines, densities and colours along rays, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(39, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.density = nn.Linear(64, 1)
        self.colour = nn.Sequential(nn.Linear(67, 32), nn.ReLU(), nn.Linear(32, 3), nn.Sigmoid())

    def forward(self, points: Tensor, directions: Tensor, depths: Tensor) -> Tensor:
        scaled = points[..., None] * 2.0 ** torch.arange(6, device=points.device)
        features = torch.cat((points, scaled.sin().flatten(-2), scaled.cos().flatten(-2)), -1)
        hidden = self.body(features)
        directions = directions[:, None].expand(-1, points.shape[1], -1)
        steps = torch.cat((depths[:, 1:] - depths[:, :-1], torch.full_like(depths[:, :1], 1e2)), -1)
        alpha = 1 - torch.exp(-self.density(hidden)[..., 0].relu() * steps)
        passed = torch.cumprod(torch.cat((torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-6), -1), -1)
        colours = self.colour(torch.cat((hidden, directions), -1))
        return ((alpha * passed)[..., None] * colours).sum(1)


class SpatialTransformer(nn.Module):
    """Turns the picture before it looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.turn = nn.Linear(128, 6)
        self.look = nn.Sequential(_convolution(3, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        theta = (0.1 * self.turn(self.where(x)) + self.identity).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return self.look(functional.grid_sample(x, grid, align_corners=False))


class DeepSets(nn.Module):
    """PointNet++ in small: sampled centres, their nearest points, the largest of their features."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 32))
        self.whole = nn.Sequential(nn.Linear(35, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, points: Tensor) -> Tensor:
        centres = points[:, :8]
        distances = torch.cdist(centres, points)
        nearest = distances.topk(6, largest=False).indices
        index = nearest.flatten(1)[..., None].expand(-1, -1, 3)
        groups = points.gather(1, index).unflatten(1, (8, 6)) - centres[:, :, None]
        features = self.local(groups).amax(2)
        return self.whole(torch.cat((centres, features), -1)).amax(1)


def _diffusion_inputs(sizes: Sizes) -> dict[str, Tensor]:
    batch = sizes["batch"]
    return {
        "sample": torch.randn(batch, 4, sizes["height"], sizes["width"]),
        "timestep": torch.randint(0, 1000, (batch,)),
        "encoder_hidden_states": torch.randn(batch, 7, 24),
    }


def _transformer_inputs(sizes: Sizes) -> dict[str, Tensor]:
    batch = sizes["batch"]
    return {
        "x": torch.randn(batch, 4, 16, 16),
        "t": torch.randint(0, 1000, (batch,)),
        "y": torch.randint(0, 11, (batch,)),
    }


def _rays(sizes: Sizes) -> dict[str, Tensor]:
    batch = sizes["batch"]
    depths = torch.linspace(2, 6, 12).expand(batch, -1) + 0.1 * torch.rand(batch, 12)
    return {"points": torch.rand(batch, 12, 3), "directions": torch.randn(batch, 3), "depths": depths}


_ALL_BATCHES = {0: BATCH}
_RAYS = {0: t2e.Axis("batch", 1, 8, 64)}
_DIFFUSION_AXES = {
    "sample": {0: BATCH, 2: side("height", 8, 24, 8), 3: side("width", 8, 24, 8)},
    "timestep": _ALL_BATCHES,
    "encoder_hidden_states": _ALL_BATCHES,
}
_TEXT_LINE = {"x": {0: BATCH, 3: side("width", 32, 96, 4)}}
_LATENT = {"x": {0: BATCH, 2: side("height", 4, 12, 1), 3: side("width", 4, 12, 1)}}
_SIZED = pictures("height", "width")

OWN_VISION: dict[str, ZooEntry] = {
    "unet": ZooEntry("own vision", Unet, _SIZED, PICTURE_AXES),
    "esrgan": ZooEntry("own vision", Esrgan, _SIZED, PICTURE_AXES),
    "edsr": ZooEntry("own vision", Edsr, _SIZED, PICTURE_AXES),
    "rcan": ZooEntry("own vision", Rcan, _SIZED, PICTURE_AXES),
    "cyclegan": ZooEntry("own vision", Generator, _SIZED, PICTURE_AXES),
    "stylegan": ZooEntry("own vision", StyleGenerator, floats("batch", 32, name="z"), {"z": _ALL_BATCHES}),
    "yolo": ZooEntry(
        "own vision",
        Detector,
        pictures("height", "width"),
        {"x": {0: BATCH, 2: side("height", 32, 96, 16), 3: side("width", 32, 96, 16)}},
    ),
    "crnn": ZooEntry("own vision", CrnnReader, floats("batch", 1, 32, "width"), _TEXT_LINE),
    "diffusion_unet": ZooEntry("own vision", DiffusionUnet, _diffusion_inputs, _DIFFUSION_AXES),
    "vae_encoder": ZooEntry("own vision", VaeEncoder, _SIZED, PICTURE_AXES),
    "vae_decoder": ZooEntry("own vision", VaeDecoder, floats("batch", 4, "height", "width"), _LATENT),
    "vq_vae": ZooEntry("own vision", VectorQuantizer, _SIZED, PICTURE_AXES),
    "dit": ZooEntry(
        "own vision", DiffusionTransformer, _transformer_inputs, dict.fromkeys(("x", "t", "y"), _ALL_BATCHES)
    ),
    "nerf": ZooEntry(
        "own vision",
        Radiance,
        _rays,
        dict.fromkeys(("points", "directions", "depths"), _RAYS),
    ),
    "spatial_transformer": ZooEntry("own vision", SpatialTransformer, pictures(32), PIXELS),
    "pointnet2": ZooEntry(
        "own vision",
        DeepSets,
        floats("batch", "points", 3, name="points"),
        {"points": {0: BATCH, 1: t2e.Axis("points", 16, 32, 64)}},
    ),
}

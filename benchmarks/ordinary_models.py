"""Ordinary models with random weights, as a newcomer would deploy them: nothing about them is settled or trained.

Enters: nothing. Leaves: `ORDINARY`, models by name, each with a sample on the CPU. Apart because the list is long, and
says nothing of what is done with it. Images are small, so that many models take little time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ORDINARY", "Ordinary"]

SAMPLES = 2  # in a batch


@dataclass(frozen=True)
class Ordinary:
    """A model with its inputs.

    Args:
        make: gives the model, in inference mode.
        inputs: gives a sample, by forward's names; dimension 0 of every tensor is the batch.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]


def _image(size: int, channels: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(SAMPLES, channels, size, size)}


def _tokens(count: int = 32) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 900, (SAMPLES, count))}


def _timm(name: str, size: int = 64, **options: Any) -> Ordinary:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=100, **options).eval()

    return Ordinary(make, functools.partial(_image, size))


class _Only(nn.Module):
    """One tensor of a model's result."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model = model
        self.key = key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[self.key]


def _segmentation(name: str) -> Ordinary:
    def make() -> nn.Module:
        import torchvision

        model = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=21)
        return _Only(model, "out").eval()

    return Ordinary(make, functools.partial(_image, 64))


def _torchvision(name: str, size: int = 64) -> Ordinary:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None).eval()

    return Ordinary(make, functools.partial(_image, size))


def _video() -> Ordinary:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.video.r3d_18(weights=None, num_classes=50).eval()

    return Ordinary(make, lambda: {"x": torch.randn(SAMPLES, 3, 8, 32, 32)})


class _Encoder(nn.Module):
    """A language model as tokens in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids)[0]


def _transformers(kind: str, **sizes: int) -> Ordinary:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(vocab_size=1000, **sizes)
        return _Encoder(getattr(transformers, f"{kind}Model")(config)).eval()

    return Ordinary(make, _tokens)


_SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(32, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0])


class _Unet(nn.Module):
    """Two scales and a way across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.up = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.out = nn.Conv2d(64, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down(x)
        return self.out(torch.cat((fine, self.up(self.deep(fine))), 1))


class _Gaussian(nn.Module):
    """A mean beside a log-variance, as the encoder of a variational autoencoder has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.mean = nn.Linear(128, 16)
        self.log_variance = nn.Linear(128, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x)
        return torch.cat((10 * self.mean(hidden), self.log_variance(hidden) - 4), -1)


class _Points(nn.Module):
    """A PointNet: the largest of many points' features."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(3, 64, 1), nn.ReLU(), nn.Conv1d(64, 256, 1), nn.ReLU())
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.each(x).amax(-1))


class _Siren(nn.Module):
    """A network of sines, which amplifies what is small."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.sin(6 * layer(x))
        return x


class _Residual(nn.Module):
    """Dilated convolutions over time, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 1)
        self.blocks = nn.ModuleList([nn.Conv1d(32, 32, 3, padding=2**i, dilation=2**i) for i in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + functional.gelu(block(x))
        return x


def _own(make: Callable[[], nn.Module], *shape: int, name: str = "x") -> Ordinary:
    """One of ours; `name` is that of forward's argument."""
    return Ordinary(lambda: make().eval(), lambda: {name: torch.randn(SAMPLES, *shape)})


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


_IMAGE_MODELS = (
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "resnetv2_50",
    "res2net50_26w_4s",
    "skresnet18",
    "densenet121",
    "dpn68",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "mnasnet_100",
    "fbnetc_100",
    "spnasnet_100",
    "rexnet_100",
    "ghostnet_100",
    "lcnet_050",
    "tinynet_e",
    "regnetx_008",
    "regnety_008",
    "repvgg_a0",
    "dla34",
    "convnext_atto",
    "convnext_tiny",
    "convnextv2_atto",
    "cspresnet50",
    "ese_vovnet19b_dw",
    "hrnet_w18_small",
    "xception41",
    "legacy_xception",
    "selecsls42b",
    "poolformer_s12",
    "edgenext_xx_small",
    "pvt_v2_b0",
    "mobileone_s0",
    "gernet_s",
)

ORDINARY: dict[str, Ordinary] = {
    **{name: _timm(name) for name in _IMAGE_MODELS},
    **{name: _timm(name, 224) for name in ("vgg11", "vgg13_bn", "vgg16", "levit_128s", "mixer_s32_224")},
    "inception_v3": _timm("inception_v3", 128),
    "vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", 64, img_size=64),
    "deit_tiny_patch16_224": _timm("deit_tiny_patch16_224", 64, img_size=64),
    "resmlp_12_224": _timm("resmlp_12_224", 224),
    "alexnet": _torchvision("alexnet", 224),
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "shufflenet_v2_x1_0": _torchvision("shufflenet_v2_x1_0"),
    "fcn_resnet50": _segmentation("fcn_resnet50"),
    "deeplabv3_mobilenet_v3_large": _segmentation("deeplabv3_mobilenet_v3_large"),
    "r3d_18": _video(),
    "bert": _transformers("Bert", **_SMALL),
    "roberta": _transformers("Roberta", **_SMALL),
    "electra": _transformers("Electra", embedding_size=128, **_SMALL),
    "distilbert": _transformers("DistilBert", dim=128, n_layers=4, n_heads=4, hidden_dim=256),
    "mlp": _own(_mlp, 32, name="input"),
    "lstm": _own(functools.partial(_Recurrent, nn.LSTM), 20, 32),
    "gru": _own(functools.partial(_Recurrent, nn.GRU), 20, 32),
    "transformer_encoder": _own(_encoder, 24, 64, name="src"),
    "unet": _own(_Unet, 3, 64, 64),
    "gaussian_head": _own(_Gaussian, 64),
    "pointnet": _own(_Points, 3, 256),
    "siren": _own(_Siren, 100, 2),
    "dilated_convolutions": _own(_Residual, 8, 128),
}

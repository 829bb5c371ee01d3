"""Ordinary models with random weights, as a newcomer would deploy them: nothing about them is settled or trained.

Enters: nothing. Leaves: `ORDINARY`, models by name, each with a sample on the CPU. Apart because the list is long, and
says nothing of what is done with it. Models and images are small, so that many take little time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.ordinary_networks import NETWORKS, Network

__all__ = ["ORDINARY", "SAMPLES", "Ordinary"]

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


def _with_statistics(entry: Ordinary) -> Ordinary:
    """The model with BatchNorm statistics of its own, as a trained one has them.

    With the initial ones the signal of some models fades from layer to layer: the answer of LCNet is 5e-8, less than
    any number of float16, so that PyTorch's own half model is off by 0.92.
    """

    def make() -> nn.Module:
        model = entry.make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over the batches from here on
                module.reset_running_stats()
        with torch.no_grad():
            model.train()(*torch.randn(8, *next(iter(entry.inputs().values())).shape[1:]).unsqueeze(0))
        return model.eval()

    return Ordinary(make, entry.inputs)


def _torchvision(name: str, size: int = 64) -> Ordinary:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None).eval()

    return Ordinary(make, functools.partial(_image, size))


class _Encoder(nn.Module):
    """A language model as tokens in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids)[0]


def _transformers(kind: str, **sizes: Any) -> Ordinary:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(vocab_size=1000, **sizes)
        return _Encoder(getattr(transformers, f"{kind}Model")(config)).eval()

    return Ordinary(make, _tokens)


_SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}


def _network(network: Network) -> Ordinary:
    def inputs() -> dict[str, torch.Tensor]:
        shape = (SAMPLES, *network.shape)
        return {network.name: torch.randint(0, network.tokens, shape) if network.tokens else torch.randn(shape)}

    return Ordinary(lambda: network.make().eval(), inputs)


_IMAGE_MODELS = (
    "convnextv2_atto",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "ese_vovnet19b_dw",
    "gernet_s",
    "ghostnet_100",
    "mnasnet_small",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "resnet18",
    "selecsls42b",
    "skresnet18",
    "tinynet_e",
)
_FEW_BLOCKS = {"depths": (1, 1, 2, 1)}

ORDINARY: dict[str, Ordinary] = {  # the longest first, as far as is known
    "resnet50": _timm("resnet50"),
    "levit_128s": _timm("levit_128s", 224),
    **{name: _timm(name) for name in _IMAGE_MODELS},
    "lcnet_050": _with_statistics(_timm("lcnet_050")),
    "convnext_atto": _timm("convnext_atto", **_FEW_BLOCKS),
    "vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", 64, img_size=64, depth=4),
    "deit_tiny_patch16_224": _timm("deit_tiny_patch16_224", 64, img_size=64, depth=4),
    "shufflenet_v2_x1_0": _torchvision("shufflenet_v2_x1_0"),
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "bert": _transformers("Bert", **_SMALL),
    "roberta": _transformers("Roberta", **_SMALL),
    "electra": _transformers("Electra", embedding_size=128, **_SMALL),
    "albert": _transformers("Albert", embedding_size=64, **_SMALL),
    "distilbert": _transformers("DistilBert", dim=128, n_layers=2, n_heads=4, hidden_dim=256),
    "gpt2": _transformers("GPT2", n_embd=128, n_layer=2, n_head=4, n_positions=64, use_cache=False),
    "llama": _transformers("Llama", num_key_value_heads=2, use_cache=False, **_SMALL),
    **{name: _network(network) for name, network in NETWORKS.items()},
}

"""Models of the GPU suite, with random weights that keep their signal.

Enters: nothing. Leaves: modules, samples and axes. Apart so that tests read as promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import torch2engine as t2e

BATCH = t2e.Axis("batch", 1, 4, 8)


class Tiny(nn.Module):
    """Every kind of output: computed, passed through, twice the same, constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor, scale: torch.Tensor, factor: float = 2.0) -> dict[str, Any]:
        hidden = self.norm(self.conv(x)).relu().mean((2, 3))
        return {
            "logits": self.drop(self.head(hidden)) * scale * factor,
            "scale": scale,
            "hidden": hidden,
            "again": hidden,
            "classes": 5,
            "nothing": None,
        }


def tiny_inputs(batch: int = 4, dtype: torch.dtype = torch.float32, device: str = "cuda") -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 3, 8, 8, dtype=dtype, device=device), torch.rand(batch, 5, dtype=dtype, device=device)


TINY_AXES = {"x": {0: t2e.Axis("batch", 1, 8, 32)}, "scale": {0: "batch"}}


class Result(NamedTuple):
    mean: torch.Tensor
    parts: list[torch.Tensor]


class Nested(nn.Module):
    """Takes and returns nested structures, by keyword."""

    def forward(self, batch: Mapping[str, torch.Tensor], *, states: tuple[torch.Tensor, ...]) -> Result:
        return Result(batch["pixels"].mean(1) + states[0], [batch["pixels"] * 2, states[1] - 1])


class Scale(nn.Module):
    """One multiplication: cheap, and exact in every dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def settle(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Scale a randomly initialised network so that every convolution's output has unit size.

    Without training, signals fade or grow from layer to layer until rounding is all that is left to compare, most of
    all in half precision.
    """
    for parameter in model.parameters():
        if parameter.numel() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)

    def scale(module: nn.Conv2d, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        # Gates (squeeze-and-excitation, on one pixel) stay near their middle, or signals multiply with themselves.
        size = output.std() * (10 if output.shape[-1] == 1 else 1)
        module.weight.div_(size)
        if module.bias is not None:
            module.bias.div_(size)
        return output / size

    hooks = [module.register_forward_hook(scale) for module in model.modules() if isinstance(module, nn.Conv2d)]
    model.eval()
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return model


def image(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 3, 224, 224, device="cuda")}


def text(batch: int, length: int = 64) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long, device="cuda")
    mask[-1, length * 2 // 3 :] = 0
    return {"input_ids": torch.randint(0, 1000, (batch, length), device="cuda"), "attention_mask": mask}


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return settle(getattr(torchvision.models, name)().cuda(), *image(2).values())

    return make


def _timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return settle(timm.create_model(name).cuda(), *image(2).values())

    return make


def _bert() -> nn.Module:
    import transformers

    return transformers.BertModel(transformers.BertConfig()).cuda()


def _gpt2() -> nn.Module:
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False)).cuda()


_IMAGE_AXES = {"x": {0: BATCH}}
_TEXT_AXES = {
    name: {0: t2e.Axis("batch", 1, 2, 4), 1: t2e.Axis("length", 8, 64, 128)} for name in ("input_ids", "attention_mask")
}

# name -> (model, sample at a batch size, dynamic axes)
ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, torch.Tensor]], dict[str, Any]]] = {
    "resnet50": (_torchvision("resnet50"), image, _IMAGE_AXES),
    "vit_b_16": (_torchvision("vit_b_16"), image, _IMAGE_AXES),
    "convnext": (_timm("convnext_tiny"), image, _IMAGE_AXES),
    "efficientnet": (_timm("efficientnet_b0"), image, _IMAGE_AXES),
    "bert": (_bert, text, _TEXT_AXES),
    "gpt2": (_gpt2, text, _TEXT_AXES),
}

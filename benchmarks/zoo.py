"""The models that the benchmarks time: one dynamic batch axis, on the GPU where there is one.

Enters: nothing. Leaves: modules with random weights whose signal neither fades nor grows, and inputs at a batch size;
`ENTRIES` in half precision, `FLOATS` and `REFITTED` in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks._script import home
from benchmarks.call_overhead import rows, tiny
from benchmarks.diffusion_unet import TEXT_WIDTH, DiffusionUnet
from tests.zoo.torchvision_import import import_torchvision

__all__ = ["BATCH", "ENTRIES", "FLOATS", "REFITTED", "Entry"]

BATCH = t2e.Axis("batch", 1, 8, 32)
TOKENS = 128


@dataclass(frozen=True)
class Entry:
    """A model with its inputs.

    Args:
        make: gives the model, in inference mode.
        inputs: gives inputs at a batch size, by forward's names.
        batch: the sizes that it is built for.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    batch: t2e.Axis = BATCH

    def axes(self) -> dict[str, Any]:
        """dynamic_axes of every input."""
        return {name: {0: self.batch} for name in self.inputs(1)}


def _images(batch: int, dtype: torch.dtype = torch.half) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 3, 224, 224, dtype=dtype, device=home())}


def _texts(batch: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, TOKENS, dtype=torch.long, device=home())
    mask[-1, TOKENS * 2 // 3 :] = 0
    return {"input_ids": torch.randint(0, 1000, (batch, TOKENS), device=home()), "attention_mask": mask}


def _series(batch: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 64, 256, dtype=dtype, device=home())}


def _settled(model: nn.Module, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    """A model in inference mode, with convolutions of unit size.

    It also gives ViT a head: torchvision's is all zero, and an answer of zeros says nothing.
    """
    from tests.gpu.models import settle

    return settle(model.to(home()), *inputs.values()).to(dtype).eval()


def _torchvision(name: str, dtype: torch.dtype = torch.half) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision = import_torchvision()
        return _settled(getattr(torchvision.models, name)(), _images(2, torch.float32), dtype)

    return make


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import_torchvision()
        import timm

        return _settled(timm.create_model(name, **options), _images(2, torch.float32), torch.half)

    return make


def _efficientnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    """EfficientNet whose residual branches begin small, as is usual where a network is trained from scratch.

    At full size its gates multiply signals with themselves: inputs 2.3 times as large give answers 280 times as large.
    """
    model = _torchvision("efficientnet_b0", torch.float32)()
    from torchvision.models.efficientnet import MBConv

    for block in model.modules():
        if isinstance(block, MBConv) and block.use_res_connect:
            norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
            nn.init.constant_(norms[-1].weight, 0.2)
    return model.to(dtype)


def _mobilenet() -> nn.Module:
    """MobileNetV3 whose norms have seen images, as training leaves them.

    Before, each divides by the root of 1 + 0.001. TensorRT makes that a part of the weights, all of which it moves by
    half a unit in the last place of float16: the roundings add up, to 2 % of the answer.
    """
    model = _torchvision("mobilenet_v3_large", torch.float32)()
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for _ in range(4):
            model(**_images(8, torch.float32))
    return model.half().eval()


class _Encoder(nn.Module):
    """A transformer as tensors in, one tensor out."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _bert(dtype: torch.dtype = torch.half) -> nn.Module:
    import transformers

    return _Encoder(transformers.BertModel(transformers.BertConfig()).to(home())).to(dtype).eval()


def _llama() -> nn.Module:
    """A decoder of LLaMA's form that reads a whole prompt: rotary positions, grouped heads, RMSNorm, SwiGLU."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=6,
        num_attention_heads=16,
        num_key_value_heads=8,
        use_cache=False,
    )
    return _Encoder(transformers.LlamaModel(config).to(home())).half().eval()


def _unet() -> nn.Module:
    return _settled(DiffusionUnet(), _latents(2, torch.float32), torch.half)


def _latents(batch: int, dtype: torch.dtype = torch.half) -> dict[str, torch.Tensor]:
    """Noise of 32 x 32, steps of diffusion, and 77 tokens of text."""
    return {
        "sample": torch.randn(batch, 4, 32, 32, dtype=dtype, device=home()),
        "timestep": torch.arange(1, batch + 1, device=home()) * 30,
        "text": torch.randn(batch, 77, TEXT_WIDTH, dtype=dtype, device=home()),
    }


class _Lstm(nn.Module):
    """Two layers in both directions, and an answer for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(256, 512, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(1024, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


ENTRIES = {
    "tiny": Entry(tiny, lambda batch: {"input": rows(batch)}),
    "resnet50": Entry(_torchvision("resnet50"), _images),
    "convnext_tiny": Entry(_torchvision("convnext_tiny"), _images),
    "efficientnet_b0": Entry(functools.partial(_efficientnet, torch.half), _images),
    "mobilenet_v3": Entry(_mobilenet, _images),
    "swin_t": Entry(_torchvision("swin_t"), _images),
    "vit_b_16": Entry(_torchvision("vit_b_16"), _images),
    "dinov2_s": Entry(_timm("vit_small_patch14_dinov2", img_size=224), _images),
    "bert": Entry(_bert, _texts),
    "llama_6": Entry(_llama, _texts),
    "unet": Entry(_unet, _latents),
    "lstm": Entry(lambda: _Lstm().to(home()).half().eval(), functools.partial(_series, dtype=torch.half)),
}

_FEW = t2e.Axis("batch", 1, 8, 8)  # what is larger takes the judge on the CPU long
_FLOAT_IMAGES = functools.partial(_images, dtype=torch.float32)
FLOATS = {
    "vit_b_16": Entry(_torchvision("vit_b_16", torch.float32), _FLOAT_IMAGES, _FEW),
    "bert": Entry(functools.partial(_bert, torch.float32), _texts, _FEW),
    "convnext_tiny": Entry(_torchvision("convnext_tiny", torch.float32), _FLOAT_IMAGES, _FEW),
    "resnet50": Entry(_torchvision("resnet50", torch.float32), _FLOAT_IMAGES, _FEW),
    "lstm": Entry(lambda: _Lstm().to(home()).eval(), _series, _FEW),
}

_FEWER = t2e.Axis("batch", 1, 2, 4)
REFITTED = {
    **{name: dataclasses.replace(entry, batch=_FEWER) for name, entry in FLOATS.items()},
    "efficientnet_b0": Entry(_efficientnet, _FLOAT_IMAGES, _FEWER),
}

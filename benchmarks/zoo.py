"""The models that the benchmarks time: on the GPU, one dynamic batch axis.

Enters: nothing. Leaves: modules with random weights whose signal neither fades nor grows, and inputs at a batch size;
`ENTRIES` in half precision, `FLOATS` and `REFITTED` in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from benchmarks.call_overhead import rows, tiny

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
    return {"x": torch.randn(batch, 3, 224, 224, dtype=dtype, device="cuda")}


def _texts(batch: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, TOKENS, dtype=torch.long, device="cuda")
    mask[-1, TOKENS * 2 // 3 :] = 0
    return {"input_ids": torch.randint(0, 1000, (batch, TOKENS), device="cuda"), "attention_mask": mask}


def _series(batch: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 64, 256, device="cuda")}


def _torchvision(name: str, dtype: torch.dtype = torch.half) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        # It also gives ViT a head: torchvision's is all zero, and an answer of zeros says nothing.
        from tests.gpu.models import settle

        model = getattr(torchvision.models, name)().cuda()
        return settle(model, _images(2, torch.float32)["x"]).to(dtype).eval()

    return make


def _efficientnet() -> nn.Module:
    """EfficientNet whose residual branches begin small, as is usual where a network is trained from scratch.

    At full size its gates multiply signals with themselves: inputs 2.3 times as large give answers 280 times as large.
    """
    from torchvision.models.efficientnet import MBConv

    model = _torchvision("efficientnet_b0", torch.float32)()
    for block in model.modules():
        if isinstance(block, MBConv) and block.use_res_connect:
            norms = [part for part in block.modules() if isinstance(part, nn.BatchNorm2d)]
            nn.init.constant_(norms[-1].weight, 0.2)
    return model


class _Encoder(nn.Module):
    """BERT as tensors in, one tensor out."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _bert(dtype: torch.dtype = torch.half) -> nn.Module:
    import transformers

    return _Encoder(transformers.BertModel(transformers.BertConfig()).cuda()).to(dtype).eval()


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
    "vit_b_16": Entry(_torchvision("vit_b_16"), _images),
    "bert": Entry(_bert, _texts),
}

_FEW = t2e.Axis("batch", 1, 8, 8)  # what is larger takes the judge on the CPU long
_FLOAT_IMAGES = functools.partial(_images, dtype=torch.float32)
FLOATS = {
    "vit_b_16": Entry(_torchvision("vit_b_16", torch.float32), _FLOAT_IMAGES, _FEW),
    "bert": Entry(functools.partial(_bert, torch.float32), _texts, _FEW),
    "convnext_tiny": Entry(_torchvision("convnext_tiny", torch.float32), _FLOAT_IMAGES, _FEW),
    "resnet50": Entry(_torchvision("resnet50", torch.float32), _FLOAT_IMAGES, _FEW),
    "lstm": Entry(lambda: _Lstm().cuda().eval(), _series, _FEW),
}

_FEWER = t2e.Axis("batch", 1, 2, 4)
REFITTED = {
    **{name: dataclasses.replace(entry, batch=_FEWER) for name, entry in FLOATS.items()},
    "efficientnet_b0": Entry(_efficientnet, _FLOAT_IMAGES, _FEWER),
}

"""A detector with non-maximum suppression: the network runs in engines, the suppression stays in PyTorch.

Enters: a small random detector and an image of bytes. Leaves: boxes, scores and classes that are the model's own. How
many boxes are left depends on values, so no single engine takes the model; `fallback=True` cuts it into parts.
"""

from __future__ import annotations

import torch
from torch import nn

import torch2engine as t2e

device, runtime = ("cuda", "tensorrt") if torch.cuda.is_available() else ("cpu", "onnxruntime")
SIZE, STRIDE, CLASSES, BEST = 64, 8, 3, 20


def suppress(boxes: torch.Tensor, scores: torch.Tensor, most: float = 0.3) -> torch.Tensor:
    """Which of the best boxes [N, 4] overlap no better one by more than `most`."""
    first, second = boxes[:, None], boxes[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    common = sides.clamp(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = common / (areas[:, None] + areas[None] - common)
    return (overlap * (scores[None] > scores[:, None])).amax(1) <= most


class Detector(nn.Module):
    """Convolutions, a box and scores for each cell, and the best boxes that do not overlap."""

    def __init__(self) -> None:
        super().__init__()
        steps = [nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 64))]
        self.backbone = nn.Sequential(*(nn.Sequential(step, nn.SiLU()) for step in steps))
        self.head = nn.Conv2d(64, 4 + CLASSES, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """An image [1, 3, 64, 64] → boxes [N, 4], scores [N] and classes [N]."""
        cells = self.head(self.backbone(image)).flatten(2)[0].T
        place = torch.arange(len(cells), device=cells.device)
        centre = torch.stack([place % (SIZE // STRIDE), place // (SIZE // STRIDE)], 1) * STRIDE
        half = cells[:, 2:4].exp() * STRIDE
        boxes = torch.cat([centre + cells[:, :2] - half, centre + cells[:, :2] + half], 1)
        scores, classes = (cells[:, 4:] * 4).sigmoid().max(1)
        scores, order = scores.topk(BEST)
        boxes, classes = boxes[order], classes[order]
        alone = suppress(boxes, scores)
        return boxes[alone], scores[alone], classes[alone]


torch.manual_seed(0)
model = Detector().to(device).eval().requires_grad_(False)
image = torch.randint(256, (1, SIZE, SIZE, 3), dtype=torch.uint8, device=device)
module = t2e.deploy(model, image, runtime=runtime, fallback=True, preprocess=t2e.Preprocess(mean=0.5, std=0.25))
expected = model((image.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
for answer, wanted in zip(module(image), expected, strict=True):
    torch.testing.assert_close(answer, wanted, rtol=1e-3, atol=1e-3)
assert 0 < len(wanted) < BEST  # some boxes are suppressed
print(module.explain(image))

"""torchvision's FCOS: backbone and head run in an engine, the suppression of overlapping boxes stays in PyTorch.

Enters: FCOS with random weights, and an image of bytes; `pip install torchvision`. Leaves: the boxes that torchvision
finds. How many there are depends on values, so no single engine finds them; the operators that make it so are printed.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import FCOS, fcos_resnet50_fpn

import torch2engine as t2e

device, runtime = ("cuda", "tensorrt") if torch.cuda.is_available() else ("cpu", "onnxruntime")
SIZE = 128


class OneImage(nn.Module):
    """torchvision's detectors take a list of images; an engine takes tensors."""

    def __init__(self, detector: FCOS) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """An image [1, 3, 128, 128] from 0 to 1 → boxes [N, 4], scores [N] and labels [N]."""
        return self.detector(list(image))[0]


def make_detector() -> FCOS:
    """FCOS as torchvision makes it, without a download; scores that differ, as if it were trained."""
    torch.manual_seed(0)
    sizes = {"min_size": SIZE, "max_size": SIZE, "detections_per_img": 20}
    detector = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5, **sizes)
    nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.1)
    return detector.to(device).eval().requires_grad_(False)


if __name__ == "__main__":
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's convolutions in float32 too, as the engine's are
    detector = make_detector()
    images = torch.randint(256, (1, SIZE, SIZE, 3), dtype=torch.uint8).to(device)  # as a decoder gives them
    bytes_to_unit = t2e.Preprocess()  # to 0..1; the detector normalises itself
    module = t2e.deploy(OneImage(detector), images, runtime=runtime, fallback=True, preprocess=bytes_to_unit)
    for bytes_of_image in (images, images.flip(1), images.flip(2)):
        found = module(bytes_of_image)
        (expected,) = detector(list(bytes_of_image.permute(0, 3, 1, 2) / 255))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)  # pixels
    explanation = module.explain(images)
    assert explanation.engine_share > 0, "backbone and head are in an engine"
    print(f"{len(module(images)['boxes'])} boxes, as torchvision finds them")
    print(explanation)

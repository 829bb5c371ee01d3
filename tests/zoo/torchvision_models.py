"""torchvision: classification, segmentation, video, optical flow and detection.

Enters: nothing. Leaves: `TORCHVISION`, entries by name. torchvision is imported when a model is made. Apart because its
models come from several modules of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from tests.zoo.entry import BATCH, PIXELS, AbsentModelError, Sizes, ZooEntry, floats, pictures, side
from tests.zoo.torchvision_import import import_torchvision

__all__ = ["TORCHVISION"]

CLASSES = 20
_FREE_PICTURE = {"x": {0: BATCH, 2: side("height", 64, 128, 32), 3: side("width", 64, 128, 32)}}


class Final(nn.Module):
    """Optical flow after the last of the refinements."""

    def __init__(self, model: nn.Module, refinements: int) -> None:
        super().__init__()
        self.model = model
        self.refinements = refinements

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.model(first, second, num_flow_updates=self.refinements)[-1]


class Detections(nn.Module):
    """A detector of one picture, which it resizes itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model(list(x))[0]


def _make(group: str, name: str, options: dict[str, Any]) -> nn.Module:
    models = import_torchvision().models
    makers = getattr(models, group) if group else models
    if not hasattr(makers, name):
        raise AbsentModelError(f"torchvision has no {name}")
    return getattr(makers, name)(weights=None, **options)


def _fixed(name: str, size: int = 64, **options: Any) -> ZooEntry:
    options = {"num_classes": CLASSES, **options}
    return ZooEntry("torchvision", lambda: _make("", name, options), pictures(size), PIXELS)


def _free(name: str) -> ZooEntry:
    make = lambda: _make("", name, {"num_classes": CLASSES})  # noqa: E731
    return ZooEntry("torchvision", make, pictures("height", "width"), _FREE_PICTURE)


def _segmentation(name: str, argument: str = "x") -> ZooEntry:
    options = {"weights_backbone": None, "num_classes": 21}
    make = lambda: _make("segmentation", name, options)  # noqa: E731
    inputs = floats("batch", 3, "height", "width", name=argument)
    return ZooEntry("torchvision", make, inputs, {argument: _FREE_PICTURE["x"]})


def _video(name: str, size: int, frames: int | t2e.Axis, batch: t2e.Axis = BATCH, **options: Any) -> ZooEntry:
    options = {"num_classes": CLASSES, **options}
    is_free = isinstance(frames, t2e.Axis)
    axes = {"x": {0: batch, 2: frames} if isinstance(frames, t2e.Axis) else {0: batch}}
    inputs = floats("batch", 3, "frames" if is_free else frames, size, size)
    return ZooEntry("torchvision", lambda: _make("video", name, options), inputs, axes)


def _mvit_v2() -> nn.Module:
    """The second version of MViT with three blocks; torchvision's own are made for pictures of 224."""
    mvit = import_torchvision().models.video.mvit
    window = [3, 3, 3]
    blocks = [
        mvit.MSBlockConfig(1, 32, 32, window, window, [1, 1, 1], [1, 4, 4]),
        mvit.MSBlockConfig(2, 32, 64, window, window, [1, 2, 2], [1, 2, 2]),
        mvit.MSBlockConfig(2, 64, 64, window, window, [1, 1, 1], [1, 2, 2]),
    ]
    return mvit.MViT(
        spatial_size=(64, 64),
        temporal_size=8,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
    )


def _flow(name: str, refinements: int) -> ZooEntry:
    def inputs(sizes: Sizes) -> dict[str, torch.Tensor]:
        first = torch.rand(sizes["batch"], 3, 128, 128) * 2 - 1
        return {"first": first, "second": first.roll(2, -1)}

    few = {0: t2e.Axis("batch", 1, 2, 3)}
    make = lambda: Final(_make("optical_flow", name, {}), refinements)  # noqa: E731
    return ZooEntry("torchvision", make, inputs, {"first": few, "second": few})


def _detector(name: str, **options: Any) -> ZooEntry:
    """A detector of a few boxes, whose suppression depends on values. Its result has a dict for each picture, so that
    no size is left free.
    """
    options = {"weights_backbone": None, "num_classes": 5, "min_size": 64, "max_size": 128, **options}

    def make() -> nn.Module:
        model = _make("detection", name, options)
        _require_compiled_operators()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.out_channels % 5 == 0:
                nn.init.normal_(layer.weight, std=0.1)  # scores that differ; they are all the same without training
        return Detections(model)

    return ZooEntry("torchvision detection", make, floats(1, 3, 64, 64), {})


def _require_compiled_operators() -> None:
    """Make sure that torchvision can suppress boxes.

    Raises:
        AbsentModelError: its compiled operators do not load beside this build of PyTorch.
    """
    try:
        import_torchvision().ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, NotImplementedError) as error:
        raise AbsentModelError("torchvision's compiled operators do not load beside this build of torch") from error


_FEW = t2e.Axis("batch", 1, 2, 3)
_FRAMES = t2e.Axis("frames", 4, 8, 12, multiple_of=4)

TORCHVISION: dict[str, ZooEntry] = {
    "alexnet": _fixed("alexnet"),
    "convnext_tiny": _free("convnext_tiny"),
    "efficientnet_b0": _free("efficientnet_b0"),
    "googlenet": _fixed("googlenet", aux_logits=False, init_weights=False),
    "maxvit_t": _fixed("maxvit_t", 224),
    "mnasnet0_5": _fixed("mnasnet0_5"),
    "regnet_x_400mf": _fixed("regnet_x_400mf"),
    "shufflenet_v2_x0_5": _free("shufflenet_v2_x0_5"),
    "squeezenet1_1": _free("squeezenet1_1"),
    "swin_t": _fixed("swin_t"),
    "swin_t_of_any_size": _free("swin_t"),
    "swin_v2_t": _fixed("swin_v2_t"),
    "vgg11_bn": _free("vgg11_bn"),
    "vit_b_32": _fixed("vit_b_32", image_size=64),
    "deeplabv3_mobilenet_v3_large": _segmentation("deeplabv3_mobilenet_v3_large"),
    "fcn_resnet50": _segmentation("fcn_resnet50"),
    "lraspp_mobilenet_v3_large": _segmentation("lraspp_mobilenet_v3_large", "input"),
    "mvit_v2": ZooEntry("torchvision", _mvit_v2, floats("batch", 3, 8, 64, 64), {"x": {0: _FEW}}),
    "r2plus1d_18": _video("r2plus1d_18", 32, _FRAMES),
    "r3d_18": _video("r3d_18", 32, _FRAMES),
    "s3d": _video("s3d", 224, 16),
    "swin3d_t": _video("swin3d_t", 64, 4),
    "raft_small": _flow("raft_small", 2),
    "retinanet": _detector("retinanet_resnet50_fpn", score_thresh=0.0, detections_per_img=10, topk_candidates=20),
    "fcos": _detector("fcos_resnet50_fpn", score_thresh=0.0, detections_per_img=10, topk_candidates=20),
    "faster_rcnn": _detector(
        "fasterrcnn_mobilenet_v3_large_fpn", box_score_thresh=0.0, box_detections_per_img=10, rpn_post_nms_top_n_test=20
    ),
}

"""transformers for pictures: classification, segmentation, depth, poses, detection; small and with random weights.

Enters: nothing. Leaves: `TRANSFORMERS_VISION`, entries by name. transformers is imported when a model is made. Apart
because all of them take `pixel_values`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import torch2engine as t2e
from tests.zoo.entry import BATCH, ZooEntry, floats, side
from tests.zoo.transformers_import import make_config, make_model

__all__ = ["TRANSFORMERS_VISION"]

SIDE = 32
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIEW = {**SHAPE, "image_size": SIDE, "patch_size": 8}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_FREE_SIDES = {0: BATCH, 2: side("height", 64, 128, 32), 3: side("width", 64, 128, 32)}
_CHOSEN_SIDES = {0: BATCH, 2: side("height", 32, 96, 16), 3: side("width", 32, 96, 16)}

Make = Callable[[], nn.Module]


def _picture(make: Make, size: int = SIDE, family: str = "transformers vision") -> ZooEntry:
    return ZooEntry(family, make, floats("batch", 3, size, size, name="pixel_values"), {"pixel_values": {0: BATCH}})


def _free(make: Make, axes: dict[int, t2e.Axis], family: str = "transformers vision") -> ZooEntry:
    inputs = floats("batch", 3, "height", "width", name="pixel_values")
    return ZooEntry(family, make, inputs, {"pixel_values": axes})


def _model(model: str, config: str, **options: Any) -> Make:
    return lambda: make_model(model, config, options)


def _with_backbone(model: str, config: str, **options: Any) -> Make:
    def make() -> nn.Module:
        backbone = make_config("ResNetConfig", {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]})
        return make_model(model, config, {"backbone_config": backbone, "use_timm_backbone": False, **options})

    return make


_QUERIES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 7,
}


def _detr(model: str, config: str, **options: Any) -> Make:
    def make() -> nn.Module:
        backbone = make_config("ResNetConfig", {**_RESNET, "out_features": ["stage4"]})
        sizes = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, **_QUERIES, **options}
        return make_model(model, config, {"backbone_config": backbone, **sizes})

    return make


def _rt_detr() -> nn.Module:
    names = {"stage2": 24, "stage3": 32, "stage4": 48}
    backbone = make_config("RTDetrResNetConfig", {**_RESNET, "out_features": list(names)})
    options = {
        "backbone_config": backbone,
        "encoder_in_channels": list(names.values()),
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_in_channels": [32, 32, 32],
        "d_model": 32,
        "decoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 64,
        "num_queries": 8,
        "num_denoising": 0,
        "anchor_image_size": None,
        "eval_size": None,
    }
    return make_model("RTDetrForObjectDetection", "RTDetrConfig", options)


_VISION = {
    "cvt": _picture(_model("CvtModel", "CvtConfig", embed_dim=[16, 32, 32], num_heads=[1, 2, 2], depth=[1, 2, 3]), 64),
    "depth_anything": _picture(
        lambda: make_model(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            {
                "backbone_config": make_config(
                    "Dinov2Config",
                    {
                        **SHAPE,
                        "num_hidden_layers": 4,
                        "image_size": 56,
                        "patch_size": 14,
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                        "reshape_hidden_states": False,
                    },
                ),
                "patch_size": 14,
                "reassemble_hidden_size": 32,
                "neck_hidden_sizes": [8, 16, 24, 32],
                "fusion_hidden_size": 16,
                "head_hidden_size": 8,
            },
        ),
        56,
    ),
    "dinov2": _free(_model("Dinov2Model", "Dinov2Config", **{**VIEW, "mlp_ratio": 2}), _CHOSEN_SIDES),
    "dpt": _picture(
        _model(
            "DPTForDepthEstimation",
            "DPTConfig",
            **{**VIEW, "num_hidden_layers": 4},
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 16, 24, 32],
            fusion_hidden_size=16,
            is_hybrid=False,
        )
    ),
    "glpn": _free(
        _model(
            "GLPNForDepthEstimation",
            "GLPNConfig",
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=16,
        ),
        _FREE_SIDES,
    ),
    "hf_mobilevit": _picture(
        _model(
            "MobileViTModel", "MobileViTConfig", hidden_sizes=[32, 48, 64], neck_hidden_sizes=[8, 8, 16, 24, 32, 48, 64]
        ),
        64,
    ),
    "mask2former": _picture(
        _with_backbone(
            "Mask2FormerForUniversalSegmentation",
            "Mask2FormerConfig",
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=64,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=4,
            dim_feedforward=64,
            num_queries=6,
        ),
        64,
    ),
    "maskformer": _picture(
        lambda: make_model(
            "MaskFormerForInstanceSegmentation",
            "MaskFormerConfig",
            {
                "backbone_config": make_config(
                    "ResNetConfig", {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
                ),
                "decoder_config": make_config(
                    "DetrConfig",
                    {**_QUERIES, "backbone_config": None, "use_timm_backbone": False, "use_pretrained_backbone": False},
                ),
                "fpn_feature_size": 32,
                "mask_feature_size": 32,
                "use_timm_backbone": False,
            },
        ),
        64,
    ),
    "sam": ZooEntry(
        "transformers vision",
        lambda: make_model(
            "SamModel",
            "SamConfig",
            {
                "vision_config": {
                    **VIEW,
                    "output_channels": 32,
                    "global_attn_indexes": [1],
                    "window_size": 2,
                    "image_size": 64,
                    "mlp_dim": 64,
                    "num_pos_feats": 16,
                },
                "prompt_encoder_config": {
                    "hidden_size": 32,
                    "image_size": 64,
                    "patch_size": 8,
                    "mask_input_channels": 8,
                },
                "mask_decoder_config": {
                    "hidden_size": 32,
                    "mlp_dim": 64,
                    "num_attention_heads": 4,
                    "iou_head_hidden_dim": 32,
                },
            },
        ),
        lambda sizes: {
            "pixel_values": torch.randn(sizes["batch"], 3, 64, 64),
            "input_points": torch.randint(0, 64, (sizes["batch"], 1, 2, 2)).float(),
        },
        {"pixel_values": {0: BATCH}, "input_points": {0: BATCH}},
    ),
    "segformer": _free(
        _model(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=16,
        ),
        _FREE_SIDES,
    ),
    "swin2sr": _picture(
        _model(
            "Swin2SRForImageSuperResolution",
            "Swin2SRConfig",
            image_size=SIDE,
            embed_dim=24,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=8,
            upscale=2,
        )
    ),
    "upernet": _free(
        lambda: make_model(
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            {
                "backbone_config": make_config(
                    "ConvNextConfig",
                    {
                        "hidden_sizes": [16, 24, 32, 48],
                        "depths": [1, 1, 1, 1],
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    },
                ),
                "hidden_size": 32,
                "auxiliary_in_channels": 32,
                "auxiliary_channels": 16,
            },
        ),
        _FREE_SIDES,
    ),
    "videomae": ZooEntry(
        "transformers vision",
        _model("VideoMAEForVideoClassification", "VideoMAEConfig", **VIEW, num_frames=4),
        floats("batch", 4, 3, SIDE, SIDE, name="pixel_values"),
        {"pixel_values": {0: BATCH}},
    ),
    "vit_mae_encoder": _picture(_model("ViTMSNModel", "ViTMSNConfig", **VIEW)),
    "vit_pose": _picture(
        lambda: make_model(
            "VitPoseForPoseEstimation",
            "VitPoseConfig",
            {
                "backbone_config": make_config(
                    "VitPoseBackboneConfig",
                    {
                        **SHAPE,
                        "image_size": [64, 64],
                        "patch_size": [16, 16],
                        "out_features": ["stage2"],
                        "mlp_ratio": 2,
                    },
                ),
            },
        ),
        64,
    ),
    "yolos": _picture(
        _model(
            "YolosForObjectDetection", "YolosConfig", **{**VIEW, "image_size": [SIDE, SIDE]}, num_detection_tokens=5
        ),
        family="transformers detection",
    ),
}

_DETECTION = {
    "conditional_detr": _free(
        _detr("ConditionalDetrForObjectDetection", "ConditionalDetrConfig"), _FREE_SIDES, "transformers detection"
    ),
    "deformable_detr": _picture(
        _detr(
            "DeformableDetrForObjectDetection",
            "DeformableDetrConfig",
            decoder_layers=2,
            num_feature_levels=2,
            encoder_n_points=2,
            decoder_n_points=2,
            disable_custom_kernels=True,
        ),
        128,
        "transformers detection",
    ),
    "detr": _free(_detr("DetrForObjectDetection", "DetrConfig"), _FREE_SIDES, "transformers detection"),
    "rt_detr": _picture(_rt_detr, 64, "transformers detection"),
}


TRANSFORMERS_VISION: dict[str, ZooEntry] = {**_VISION, **_DETECTION}

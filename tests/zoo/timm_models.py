"""timm: one small member of each family, on small pictures; the number of layers is cut where that takes an argument.

Enters: nothing. Leaves: `TIMM`, entries by timm's own names. timm is imported when a model is made. Apart because the
list is long.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.zoo.entry import BATCH, PIXELS, AbsentModelError, ZooEntry, pictures, side
from tests.zoo.torchvision_import import import_torchvision

__all__ = ["TIMM"]

CLASSES = 20
SHORT = (1, 1, 1, 1)
_FREE_PICTURE = {"x": {0: BATCH, 2: side("height", 64, 128, 32), 3: side("width", 64, 128, 32)}}


def _fixed(name: str, size: int = 64, **options: Any) -> ZooEntry:
    """A model for pictures of one size."""
    return ZooEntry("timm", lambda: _create(name, options), pictures(size), PIXELS)


def _sized(name: str, size: int = 64, **options: Any) -> ZooEntry:
    """A model whose position tables are made for a size."""
    return _fixed(name, size, img_size=size, **options)


def _free(name: str, **options: Any) -> ZooEntry:
    """A model for pictures of any height and width."""
    return ZooEntry("timm", lambda: _create(name, options), pictures("height", "width"), _FREE_PICTURE)


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    import_torchvision()
    import timm

    if not timm.is_model(name):
        raise AbsentModelError(f"timm {timm.__version__} has no {name}")
    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


TIMM: dict[str, ZooEntry] = {
    "beit_base_patch16_224": _sized("beit_base_patch16_224", depth=2, embed_dim=96, num_heads=3),
    "botnet26t_256": _sized("botnet26t_256"),
    "cait_xxs24_224": _sized("cait_xxs24_224", depth=2),
    "coat_tiny": _sized("coat_tiny", serial_depths=SHORT, parallel_depth=1),
    "coatnet_nano_rw_224": _sized("coatnet_nano_rw_224", depths=SHORT),
    "convit_tiny": _sized("convit_tiny", depth=4, local_up_to_layer=2),
    "convnext_atto": _free("convnext_atto"),
    "convnextv2_atto": _fixed("convnextv2_atto"),
    "crossvit_tiny_240": _fixed("crossvit_tiny_240", 240),
    "cs3darknet_focus_s": _fixed("cs3darknet_focus_s"),
    "davit_tiny": _fixed("davit_tiny", depths=SHORT, embed_dims=(32, 64, 96, 128), num_heads=(1, 2, 3, 4)),
    "deit_tiny_distilled_patch16_224": _sized("deit_tiny_distilled_patch16_224", depth=3),
    "densenet121": _fixed("densenet121", block_config=(2, 2, 2, 2)),
    "dla46x_c": _fixed("dla46x_c"),
    "dpn48b": _fixed("dpn48b"),
    "edgenext_xx_small": _fixed("edgenext_xx_small"),
    "efficientformer_l1": _fixed("efficientformer_l1", 224),
    "efficientformerv2_s0": _fixed("efficientformerv2_s0", 224),
    "efficientnet_lite0": _free("efficientnet_lite0"),
    "efficientvit_b0": _free("efficientvit_b0"),
    "efficientvit_m0": _fixed("efficientvit_m0", 224),
    "ese_vovnet19b_dw": _fixed("ese_vovnet19b_dw"),
    "eva02_tiny_patch14_224": _sized("eva02_tiny_patch14_224", 56, depth=3),
    "fasternet_t0": _fixed("fasternet_t0"),
    "fastvit_t8": _fixed("fastvit_t8"),
    "focalnet_tiny_srf": _fixed("focalnet_tiny_srf"),
    "gcvit_xxtiny": _fixed("gcvit_xxtiny", 224),
    "ghostnet_050": _fixed("ghostnet_050"),
    "gmlp_ti16_224": _sized("gmlp_ti16_224"),
    "hardcorenas_a": _fixed("hardcorenas_a"),
    "hgnetv2_b0": _fixed("hgnetv2_b0"),
    "hiera_tiny_224": _fixed("hiera_tiny_224", 224, stages=SHORT),
    "hrnet_w18_small": _fixed("hrnet_w18_small"),
    "inception_next_atto": _fixed("inception_next_atto"),
    "inception_v3": _fixed("inception_v3", 96),
    "lambda_resnet26t": _fixed("lambda_resnet26t", 128),
    "levit_128s": _fixed("levit_128s", 224),
    "mambaout_femto": _fixed("mambaout_femto"),
    "maxvit_pico_rw_256": _sized("maxvit_pico_rw_256", depths=SHORT),
    "mixer_s32_224": _sized("mixer_s32_224"),
    "mobilenetv2_035": _free("mobilenetv2_035"),
    "mobilenetv3_small_050": _free("mobilenetv3_small_050"),
    "mobilenetv4_conv_small": _fixed("mobilenetv4_conv_small"),
    "mobileone_s0": _fixed("mobileone_s0"),
    "mobilevit_xxs": _free("mobilevit_xxs"),
    "mobilevitv2_050": _fixed("mobilevitv2_050"),
    "mvitv2_tiny": _sized("mvitv2_tiny"),
    "nest_tiny": _sized("nest_tiny"),
    "nextvit_small": _fixed("nextvit_small"),
    "nf_resnet26": _fixed("nf_resnet26"),
    "pit_ti_224": _sized("pit_ti_224"),
    "poolformer_s12": _free("poolformer_s12"),
    "pvt_v2_b0": _free("pvt_v2_b0"),
    "rdnet_tiny": _fixed("rdnet_tiny"),
    "regnety_002": _free("regnety_002"),
    "repghostnet_050": _fixed("repghostnet_050"),
    "repvgg_a0": _fixed("repvgg_a0"),
    "repvit_m0_9": _fixed("repvit_m0_9"),
    "res2net50_26w_4s": _fixed("res2net50_26w_4s", layers=SHORT),
    "resmlp_12_224": _sized("resmlp_12_224"),
    "resnest14d": _fixed("resnest14d"),
    "resnet18": _free("resnet18"),
    "resnetv2_50": _fixed("resnetv2_50", layers=SHORT),
    "rexnet_100": _fixed("rexnet_100"),
    "samvit_base_patch16_224": _sized(
        "samvit_base_patch16_224", depth=3, embed_dim=96, num_heads=3, global_attn_indexes=(1, 2)
    ),
    "selecsls42": _fixed("selecsls42"),
    "sequencer2d_s": _sized("sequencer2d_s", layers=SHORT),
    "seresnext26d_32x4d": _fixed("seresnext26d_32x4d", layers=SHORT),
    "shvit_s1": _fixed("shvit_s1"),
    "skresnet18": _fixed("skresnet18"),
    "starnet_s1": _fixed("starnet_s1"),
    "swiftformer_xs": _fixed("swiftformer_xs"),
    "swin_tiny_patch4_window7_224": _sized("swin_tiny_patch4_window7_224", 56, depths=(1, 1, 2, 1), embed_dim=48),
    "swinv2_cr_tiny_ns_224": _sized("swinv2_cr_tiny_ns_224", 56, depths=(1, 1, 2, 1), embed_dim=48),
    "swinv2_tiny_window8_256": _sized("swinv2_tiny_window8_256", depths=(1, 1, 2, 1), embed_dim=48),
    "tiny_vit_5m_224": _fixed("tiny_vit_5m_224"),
    "tresnet_m": _fixed("tresnet_m"),
    "twins_svt_small": _sized("twins_svt_small", depths=(1, 1, 2, 1)),
    "visformer_tiny": _sized("visformer_tiny"),
    "vit_tiny_patch16_224": _sized("vit_tiny_patch16_224", depth=3),
    "vit_tiny_dynamic": ZooEntry(
        "timm",
        lambda: _create("vit_tiny_patch16_224", {"img_size": 96, "dynamic_img_size": True, "depth": 2}),
        pictures("height", "width"),
        {"x": {0: BATCH, 2: side("height", 32, 96, 16), 3: side("width", 32, 96, 16)}},
    ),
    "vit_tiny_r_s16_p8_224": _sized("vit_tiny_r_s16_p8_224", depth=3),
    "vit_relpos_small_patch16_224": _sized("vit_relpos_small_patch16_224", depth=2),
    "vitamin_small_224": _sized("vitamin_small_224"),
    "volo_d1_224": _sized("volo_d1_224"),
    "xception41p": _fixed("xception41p"),
    "xcit_nano_12_p8_224": _sized("xcit_nano_12_p8_224", depth=3),
}

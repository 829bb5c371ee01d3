"""transformers for several kinds of input at once, and for time series; small and with random weights.

Enters: nothing. Leaves: `TRANSFORMERS_MIXED`, entries by name. transformers is imported when a model is made. Apart
because their inputs have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torch2engine as t2e
from tests.zoo.entry import BATCH, LENGTH, VOCABULARY, Sizes, ZooEntry, floats, tokens
from tests.zoo.transformers_import import make_config, make_model

__all__ = ["TRANSFORMERS_MIXED"]

SIDE = 32
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIEW = {**SHAPE, "image_size": SIDE, "patch_size": 8, "projection_dim": 16}
TEXT = {
    **SHAPE,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "projection_dim": 16,
}
_WORDS = {0: BATCH, 1: LENGTH}
_TEXT_AXES = {"input_ids": _WORDS, "attention_mask": _WORDS}
_BOTH_AXES = {**_TEXT_AXES, "pixel_values": {0: BATCH}}
_TEXTS = {0: t2e.Axis("texts", 1, 3, 6), 1: LENGTH}
_CONTRAST_AXES = {"input_ids": _TEXTS, "attention_mask": _TEXTS, "pixel_values": {0: BATCH}}

Inputs = Callable[[Sizes], dict[str, torch.Tensor]]


def _pair(sizes: Sizes) -> dict[str, torch.Tensor]:
    return {**tokens(sizes), "pixel_values": torch.randn(sizes["batch"], 3, SIDE, SIDE)}


def _contrast(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Each picture is compared with each of some texts."""
    texts = tokens({"batch": sizes["texts"], "length": sizes["length"]})
    return {**texts, "pixel_values": torch.randn(sizes["batch"], 3, SIDE, SIDE)}


def _towers(model: str, config: str, **options: Any) -> ZooEntry:
    """Two encoders whose answers are compared."""
    options = {"text_config": TEXT, "vision_config": VIEW, "projection_dim": 16, **options}
    return ZooEntry("transformers multimodal", lambda: make_model(model, config, options), _contrast, _CONTRAST_AXES)


def _answers(model: str, config: str, inputs: Inputs, axes: dict[str, Any], **options: Any) -> ZooEntry:
    return ZooEntry("transformers multimodal", lambda: make_model(model, config, options), inputs, axes)


def _llava() -> Any:
    return make_model(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": make_config("LlamaConfig", {**TEXT, "num_key_value_heads": 2, "use_cache": False}),
            "vision_config": make_config("CLIPVisionConfig", VIEW),
            "image_token_index": 5,
            "image_token_id": 5,
            "vision_feature_layer": -1,
        },
    )


def _with_image_tokens(sizes: Sizes) -> dict[str, torch.Tensor]:
    batch = sizes["batch"]
    words = torch.randint(10, VOCABULARY, (batch, sizes["length"]))
    words = torch.cat((torch.full((batch, 16), 5), words[:, 16:]), 1)
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "pixel_values": torch.randn(batch, 3, SIDE, SIDE),
    }


def _seen(sizes: Sizes) -> dict[str, torch.Tensor]:
    batch = sizes["batch"]
    return {
        **tokens(sizes),
        "visual_feats": torch.randn(batch, 5, 24),
        "visual_pos": torch.rand(batch, 5, 4),
    }


def _boxes(sizes: Sizes) -> dict[str, torch.Tensor]:
    corners = torch.randint(0, 500, (sizes["batch"], sizes["length"], 2))
    return {**tokens(sizes), "bbox": torch.cat((corners, corners + 20), -1)}


_LONG_TEXTS = {1: t2e.Axis("length", 20, 24, 40)}
_MULTIMODAL = {
    "blip": _answers(
        "BlipForImageTextRetrieval",
        "BlipConfig",
        _pair,
        _BOTH_AXES,
        text_config={**TEXT, "encoder_hidden_size": 32},
        vision_config=VIEW,
        projection_dim=16,
        image_text_hidden_size=16,
    ),
    "clip": _towers("CLIPModel", "CLIPConfig"),
    "clipseg": _answers(
        "CLIPSegForImageSegmentation",
        "CLIPSegConfig",
        _pair,
        _BOTH_AXES,
        text_config=TEXT,
        vision_config=VIEW,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    ),
    "git": _answers("GitForCausalLM", "GitConfig", _pair, _BOTH_AXES, **TEXT, vision_config=VIEW, use_cache=False),
    "layoutlm": _answers("LayoutLMModel", "LayoutLMConfig", _boxes, {**_TEXT_AXES, "bbox": _WORDS}, **TEXT),
    "llava": ZooEntry(
        "transformers multimodal",
        _llava,
        lambda sizes: _with_image_tokens({**sizes, "batch": 2}),  # it makes a Python list of the pictures
        {"input_ids": _LONG_TEXTS, "attention_mask": _LONG_TEXTS},
        is_given_examples=True,  # it counts the places of the pictures in a text
    ),
    "lxmert": _answers(
        "LxmertModel",
        "LxmertConfig",
        _seen,
        {**_TEXT_AXES, "visual_feats": {0: BATCH}, "visual_pos": {0: BATCH}},
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=24,
    ),
    "owlvit": _answers(
        "OwlViTForObjectDetection",
        "OwlViTConfig",
        lambda sizes: _contrast({**sizes, "texts": sizes["batch"], "length": 12}),
        {"input_ids": {0: BATCH}, "attention_mask": {0: BATCH}, "pixel_values": {0: BATCH}},
        text_config={**TEXT, "max_position_embeddings": 16},
        vision_config=VIEW,
        projection_dim=32,
    ),
    "siglip": _towers("SiglipModel", "SiglipConfig"),
    "visual_bert": _answers(
        "VisualBertModel",
        "VisualBertConfig",
        lambda sizes: {**tokens(sizes), "visual_embeds": torch.randn(sizes["batch"], 5, 24)},
        {**_TEXT_AXES, "visual_embeds": {0: BATCH}},
        **TEXT,
        visual_embedding_dim=24,
    ),
}

_BATCHES = {0: BATCH}
_TRACK = {"context_length": 32, "prediction_length": 8, "num_input_channels": 3, "d_model": 16}


def _past(sizes: Sizes) -> dict[str, torch.Tensor]:
    batch = sizes["batch"]
    return {
        "past_values": torch.randn(batch, 24).cumsum(1),
        "past_time_features": torch.randn(batch, 24, 2),
        "past_observed_mask": torch.ones(batch, 24),
        "future_values": torch.randn(batch, 8).cumsum(1),
        "future_time_features": torch.randn(batch, 8, 2),
    }


def _series(model: str, config: str, **options: Any) -> ZooEntry:
    sizes = {
        "prediction_length": 8,
        "context_length": 16,
        "lags_sequence": [1, 2, 8],
        "num_time_features": 2,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "use_cache": False,
    }
    names = ("past_values", "past_time_features", "past_observed_mask", "future_values", "future_time_features")
    make = lambda: make_model(model, config, {**sizes, **options})  # noqa: E731
    return ZooEntry("transformers time series", make, _past, dict.fromkeys(names, _BATCHES))


_TIME_SERIES = {
    "autoformer": _series("AutoformerModel", "AutoformerConfig", label_length=4, moving_average=3),
    "patchtsmixer": ZooEntry(
        "transformers time series",
        lambda: make_model(
            "PatchTSMixerForPrediction",
            "PatchTSMixerConfig",
            {**_TRACK, "patch_length": 8, "patch_stride": 8, "num_layers": 2, "loss": "mse"},
        ),
        floats("batch", 32, 3, name="past_values"),
        {"past_values": {0: BATCH}},
    ),
    "patchtst": ZooEntry(
        "transformers time series",
        lambda: make_model(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            {
                **_TRACK,
                "patch_length": 8,
                "patch_stride": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "ffn_dim": 32,
                "loss": "mse",
            },
        ),
        floats("batch", 32, 3, name="past_values"),
        {"past_values": {0: BATCH}},
    ),
    "time_series_transformer": _series("TimeSeriesTransformerModel", "TimeSeriesTransformerConfig"),
}

TRANSFORMERS_MIXED: dict[str, ZooEntry] = {**_MULTIMODAL, **_TIME_SERIES}

"""transformers for sound: recognition, classification, coding and synthesis; small and with random weights.

Enters: nothing. Leaves: `TRANSFORMERS_AUDIO`, entries by name. transformers is imported when a model is made. Apart
because their inputs are waves and spectra.
"""

from __future__ import annotations

from typing import Any

import torch

import torch2engine as t2e
from tests.zoo.entry import BATCH, LENGTH, VOCABULARY, Sizes, ZooEntry, floats
from tests.zoo.transformers_import import make_model

__all__ = ["TRANSFORMERS_AUDIO"]

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIDES = {
    f"{part}_{what}": value
    for part in ("encoder", "decoder")
    for what, value in {"layers": 1, "attention_heads": 4, "ffn_dim": 64}.items()
}
CODEC = {"num_filters": 8, "hidden_size": 16, "codebook_dim": 16, "upsampling_ratios": [4, 2], "num_lstm_layers": 1}
_TIME = t2e.Axis("time", 256, 512, 1024, multiple_of=16)
_PAIRS = t2e.Axis("time", 256, 512, 1024, multiple_of=32)  # SEW pads an odd number of frames, in a branch
_SPOKEN = {0: BATCH, 1: LENGTH}
_FRAMES = t2e.Axis("frames", 16, 32, 64)


def _make(model: str, config: str, **options: Any) -> Any:
    return lambda: make_model(model, config, options)


def _wave(model: str, config: str, time: t2e.Axis = _TIME, **options: Any) -> ZooEntry:
    sizes = {
        **SHAPE,
        "conv_dim": (16, 16, 16),
        "conv_kernel": (8, 4, 2),
        "conv_stride": (4, 2, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "num_feat_extract_layers": 3,
        "vocab_size": 32,
    }
    make = _make(model, config, **{**sizes, **options})
    inputs = floats("batch", "time", name="input_values")
    return ZooEntry("transformers audio", make, inputs, {"input_values": {0: BATCH, 1: time}})


def _noise(sizes: Sizes) -> dict[str, torch.Tensor]:
    batch = sizes["batch"]
    return {"input_features": torch.randn(batch, 12, 20), "noise_sequence": torch.randn(batch, 12, 16)}


def _speech(*spectrum: int | str) -> Any:
    spectra = floats("batch", *spectrum, name="input_features")

    def inputs(sizes: Sizes) -> dict[str, torch.Tensor]:
        written = torch.randint(10, VOCABULARY, (sizes["batch"], sizes["length"]))
        return {**spectra(sizes), "decoder_input_ids": written}

    return inputs


TRANSFORMERS_AUDIO: dict[str, ZooEntry] = {
    "ast": ZooEntry(
        "transformers audio",
        _make("ASTForAudioClassification", "ASTConfig", **SHAPE, max_length=64, num_mel_bins=32),
        floats("batch", 64, 32, name="input_values"),
        {"input_values": {0: BATCH}},
    ),
    "encodec_decoder": ZooEntry(
        "transformers audio",
        lambda: make_model("EncodecModel", "EncodecConfig", CODEC).decoder,
        floats("batch", 16, "frames", name="hidden_states"),
        {"hidden_states": {0: BATCH, 2: _FRAMES}},
    ),
    "hubert": _wave("HubertForCTC", "HubertConfig"),
    "sew": _wave("SEWForCTC", "SEWConfig", _PAIRS, squeeze_factor=2),
    "speech_to_text": ZooEntry(
        "transformers audio",
        _make(
            "Speech2TextForConditionalGeneration",
            "Speech2TextConfig",
            **SIDES,
            vocab_size=VOCABULARY,
            d_model=32,
            input_feat_per_channel=16,
            conv_channels=32,
            max_source_positions=128,
            max_target_positions=64,
            use_cache=False,
        ),
        _speech("frames", 16),
        {"input_features": {0: BATCH, 1: _FRAMES}, "decoder_input_ids": _SPOKEN},
    ),
    "univnet": ZooEntry(
        "transformers audio",
        _make(
            "UnivNetModel",
            "UnivNetConfig",
            model_in_channels=16,
            model_hidden_channels=16,
            num_mel_bins=20,
            resblock_kernel_sizes=[3],
            resblock_stride_sizes=[4],
            resblock_dilation_sizes=[[1, 3]],
            kernel_predictor_hidden_channels=16,
        ),
        _noise,
        {"input_features": {0: BATCH}, "noise_sequence": {0: BATCH}},
    ),
    "wav2vec2": _wave("Wav2Vec2ForCTC", "Wav2Vec2Config"),
    "wav2vec2_stable": _wave("Wav2Vec2Model", "Wav2Vec2Config", do_stable_layer_norm=True, feat_extract_norm="layer"),
    "wavlm": _wave("WavLMForCTC", "WavLMConfig", num_buckets=16, max_bucket_distance=32),
    "whisper": ZooEntry(
        "transformers audio",
        _make(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **SIDES,
            vocab_size=VOCABULARY,
            d_model=32,
            num_mel_bins=16,
            max_source_positions=32,
            max_target_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            use_cache=False,
        ),
        _speech(16, 64),
        {"input_features": {0: BATCH}, "decoder_input_ids": _SPOKEN},
    ),
}

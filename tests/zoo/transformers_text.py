"""transformers for text: encoders, decoders, encoder-decoders and state-space models, small and with random weights.

Enters: nothing. Leaves: `TRANSFORMERS_TEXT`, entries by name. transformers is imported when a model is made. Apart
because all of them take tokens of any length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import torch2engine as t2e
from tests.zoo.entry import BATCH, LENGTH, VOCABULARY, Sizes, ZooEntry, of_length, tokens
from tests.zoo.transformers_import import make_model

__all__ = ["TRANSFORMERS_TEXT"]

TEXT = {0: BATCH, 1: LENGTH}
TEXT_AXES = {"input_ids": TEXT, "attention_mask": TEXT}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _encoder(kind: str, family: str = "transformers encoder", **options: Any) -> ZooEntry:
    options = {**COMMON, **SHAPE, **options}
    return ZooEntry(family, lambda: make_model(f"{kind}Model", f"{kind}Config", options), tokens, TEXT_AXES)


def _named(kind: str, **options: Any) -> ZooEntry:
    """An encoder whose configuration has names of its own for its sizes."""
    options = {**COMMON, **options}
    return ZooEntry(
        "transformers encoder", lambda: make_model(f"{kind}Model", f"{kind}Config", options), tokens, TEXT_AXES
    )


def _decoder(model: str, config: str, **options: Any) -> ZooEntry:
    options = {**COMMON, "use_cache": False, **options}
    return ZooEntry("transformers decoder", lambda: make_model(model, config, options), tokens, TEXT_AXES)


def _grouped(kind: str, **options: Any) -> ZooEntry:
    """A decoder of LLaMA's form."""
    return _decoder(f"{kind}ForCausalLM", f"{kind}Config", **{**GROUPED, **options})


def _state_space(model: str, config: str, **options: Any) -> ZooEntry:
    options = {**COMMON, "use_cache": False, **options}
    make = lambda: make_model(model, config, options)  # noqa: E731
    return ZooEntry("transformers state space", make, _words, {"input_ids": TEXT})


def _step_by_step(model: str, config: str, **options: Any) -> ZooEntry:
    """A state-space model whose steps are a Python loop, since its kernels for a GPU are another library's."""
    return replace(_state_space(model, config, **options), inputs=of_length(12, _words), axes={"input_ids": {0: BATCH}})


def _words(sizes: Sizes) -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(sizes)["input_ids"]}


def _translation(sizes: Sizes) -> dict[str, torch.Tensor]:
    decoder = torch.randint(10, VOCABULARY, (sizes["batch"], sizes["written"]))
    return {**tokens(sizes), "decoder_input_ids": decoder}


_WRITTEN = t2e.Axis("written", 2, 6, 16)
_TRANSLATION_AXES = {**TEXT_AXES, "decoder_input_ids": {0: BATCH, 1: _WRITTEN}}


def _encoder_decoder(model: str, config: str, **options: Any) -> ZooEntry:
    options = {**COMMON, "use_cache": False, "decoder_start_token_id": 1, **options}
    return ZooEntry(
        "transformers encoder-decoder", lambda: make_model(model, config, options), _translation, _TRANSLATION_AXES
    )


def _bart(kind: str, **options: Any) -> ZooEntry:
    sizes = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in _SIDE.items()}
    return _encoder_decoder(
        f"{kind}ForConditionalGeneration",
        f"{kind}Config",
        **{"d_model": 32, "max_position_embeddings": 64, **sizes, **options},
    )


_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
_OF_ONE_LENGTH = {"input_ids": {0: BATCH}, "attention_mask": {0: BATCH}}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}

_ENCODERS = {
    "albert": _encoder("Albert", embedding_size=16),
    "bert": _encoder("Bert"),
    "big_bird": _encoder("BigBird", attention_type="original_full"),
    "canine": ZooEntry(
        "transformers encoder",
        lambda: make_model(
            "CanineModel", "CanineConfig", {**SHAPE, "num_hash_buckets": 64, "local_transformer_stride": 8}
        ),
        of_length(32, tokens),  # its windows are a Python list
        _OF_ONE_LENGTH,
    ),
    "convbert": _encoder("ConvBert", embedding_size=32, conv_kernel_size=5),
    "deberta": _encoder("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=-1),
    "deberta_v2": _encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, norm_rel_ebd="layer_norm"
    ),
    "distilbert": _named("DistilBert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "electra": _encoder("Electra", embedding_size=16),
    "esm": _encoder("Esm", mask_token_id=4, position_embedding_type="rotary", token_dropout=False),
    "eurobert": _encoder("EuroBert", num_key_value_heads=2, max_position_embeddings=64),
    "fnet": ZooEntry(
        "transformers encoder",
        lambda: make_model("FNetModel", "FNetConfig", {**COMMON, **SHAPE, "type_vocab_size": 4}),
        lambda sizes: {"input_ids": torch.randint(10, VOCABULARY, (sizes["batch"], 16))},
        {"input_ids": {0: BATCH}},
    ),
    "funnel": replace(  # its positions are a Python list
        _named("Funnel", d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1], num_decoder_layers=1),
        inputs=of_length(16, tokens),
        axes=_OF_ONE_LENGTH,
    ),
    "longformer": _encoder("Longformer", attention_window=8, max_position_embeddings=64),
    "mobilebert": _encoder("MobileBert", embedding_size=16, intra_bottleneck_size=16),
    "modernbert": _encoder(
        "ModernBert", local_attention=8, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    ),
    "mpnet": _encoder("MPNet"),
    "rembert": _encoder("RemBert", input_embedding_size=16, output_embedding_size=16),
    "roberta": _encoder("Roberta", max_position_embeddings=64),
    "roformer": _encoder("RoFormer", max_position_embeddings=64),
    "squeezebert": _encoder("SqueezeBert", embedding_size=32),
    "xlnet": _named("XLNet", d_model=32, n_layer=2, n_head=4, d_inner=64),
}

_DECODERS = {
    "bloom": _decoder("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4),
    "codegen": _decoder(
        "CodeGenForCausalLM", "CodeGenConfig", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64
    ),
    "cohere": _grouped("Cohere"),
    "deepseek_v3": _grouped(
        "DeepseekV3",
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_shared_experts=1,
    ),
    "falcon": _decoder("FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "gemma": _grouped("Gemma", head_dim=8),
    "gemma2": _grouped("Gemma2", head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3": _decoder("Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=8, sliding_window=8),
    "gpt2": _decoder("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neo": _decoder(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        window_size=8,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=64,
    ),
    "gpt_neox": _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **SHAPE, max_position_embeddings=64),
    "gpt_oss": _grouped("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
    "gptj": _decoder("GPTJForCausalLM", "GPTJConfig", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64),
    "granite": _grouped("Granite"),
    "llama": _grouped("Llama"),
    "mistral": _grouped("Mistral", sliding_window=8),
    "mixtral": _grouped("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "mpt": _decoder("MptForCausalLM", "MptConfig", d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "nemotron": _grouped("Nemotron"),
    "olmo2": _grouped("Olmo2"),
    "opt": _decoder(
        "OPTForCausalLM",
        "OPTConfig",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "phi": _grouped("Phi"),
    "phi3": _grouped("Phi3"),
    "qwen2": _grouped("Qwen2"),
    "qwen2_moe": _grouped("Qwen2Moe", **{**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": _grouped("Qwen3", head_dim=8),
    "qwen3_moe": _grouped("Qwen3Moe", **EXPERTS, head_dim=8),
    "smollm3": _grouped("SmolLM3"),
    "stablelm": _grouped("StableLm"),
    "starcoder2": _grouped("Starcoder2", sliding_window=8),
}

_STATE_SPACES = {
    "falcon_mamba": _step_by_step(
        "FalconMambaForCausalLM", "FalconMambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "mamba": _step_by_step("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4),
    "mamba2": _state_space(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=8,
    ),
    "recurrent_gemma": _step_by_step(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        **{**SHAPE, "num_hidden_layers": 3},
        lru_width=32,
        attention_window_size=8,
        num_key_value_heads=1,
    ),
    "rwkv": _step_by_step(
        "RwkvForCausalLM",
        "RwkvConfig",
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
        rescale_every=0,  # otherwise it divides its own weights at the first call
    ),
}

_ENCODER_DECODERS = {
    "bart": _bart("Bart"),
    "blenderbot": _bart("Blenderbot"),
    "led": _bart("LED", attention_window=8, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
    "longt5": _encoder_decoder("LongT5ForConditionalGeneration", "LongT5Config", **_T5, local_radius=4),
    "m2m_100": _bart("M2M100"),
    "marian": ZooEntry(
        "transformers encoder-decoder",
        lambda: make_model(
            "MarianMTModel",
            "MarianConfig",
            {
                **COMMON,
                "use_cache": False,
                "decoder_start_token_id": 1,
                "d_model": 32,
                "max_position_embeddings": 64,
                **{f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in _SIDE.items()},
            },
        ),
        _translation,
        _TRANSLATION_AXES,
    ),
    "mbart": _bart("MBart"),
    "pegasus": _bart("Pegasus"),
    "prophetnet": _encoder_decoder(
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
    ),
    "t5": _encoder_decoder("T5ForConditionalGeneration", "T5Config", **_T5),
}

TRANSFORMERS_TEXT: dict[str, ZooEntry] = {**_ENCODERS, **_DECODERS, **_STATE_SPACES, **_ENCODER_DECODERS}

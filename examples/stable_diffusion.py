"""Stable Diffusion's pipeline of diffusers: text encoder, U-Net and decoder run in engines, in their places.

Enters: the pipeline with small random modules; `pip install diffusers transformers`. Leaves: images equal to PyTorch's
for two prompts, the second with a LoRA adapter after a refit, and after a restore the very images of PyTorch.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import torch2engine as t2e

device, runtime = ("cuda", "tensorrt") if torch.cuda.is_available() else ("cpu", "onnxruntime")
TOKENS = ["<|startoftext|>", "<|endoftext|>", *"catdog", *(f"{letter}</w>" for letter in "catdog")]
SIZES = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 2}
BLOCKS = {"down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None, "up_block_types": ("UpBlock2D",)}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = {"vocab_size": len(TOKENS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def make_pipeline() -> StableDiffusionPipeline:
    """As `from_pretrained` makes it, but small and random."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**SIZES, latent_channels=4).eval()
    text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT, **IDS)).eval()
    tokenizer = CLIPTokenizer({token: number for number, token in enumerate(TOKENS)}, [], model_max_length=8)
    unet = UNet2DConditionModel(**SIZES, **BLOCKS, cross_attention_dim=16, attention_head_dim=4).eval()
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, scheduler, **without).to(device)


def image_of(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    """One image [1, 3, 8, 8] from fixed noise, in a few steps."""
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=3, generator=noise, output_type="pt").images


if __name__ == "__main__":
    pipe = make_pipeline()
    cat, dog = image_of(pipe, "cat"), image_of(pipe, "dog")
    config, names = t2e.BuildConfig(refittable=True), ["text_encoder", "unet", "vae.decoder"]
    engines = t2e.deploy_submodules(pipe, lambda: image_of(pipe, "cat"), names, runtime=runtime, config=config)
    torch.testing.assert_close(image_of(pipe, "cat"), cat, rtol=1e-3, atol=1e-3)
    query = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.data
    base = query.clone()
    query += torch.rand(8, 2, device=device) @ torch.rand(2, 8, device=device)  # as fuse_lora() of diffusers does
    engines.refit()
    adapted = image_of(pipe, "dog")
    engines.restore()
    torch.testing.assert_close(image_of(pipe, "dog"), adapted, rtol=1e-3, atol=1e-3)
    query.copy_(base)
    assert torch.equal(image_of(pipe, "cat"), cat), "PyTorch answers again, bit for bit"
    print(f"images of {tuple(cat.shape)}; the adapter moved one by {float((adapted - dog).abs().max()):.3f}")

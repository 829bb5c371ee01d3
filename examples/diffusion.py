"""A diffusion pipeline: its U-Net and its decoder run in engines, swapped in place and taken out again.

Enters: a pipeline of small random modules. Leaves: images equal to PyTorch's with the engines, with other weights after
a refit, and after it was restored. `stable_diffusion.py` does the same with a pipeline of diffusers.
"""

from __future__ import annotations

import torch
from torch import nn

import torch2engine as t2e

device, runtime = ("cuda", "tensorrt") if torch.cuda.is_available() else ("cpu", "onnxruntime")
CHANNELS, STEPS = 4, 8


class UNet(nn.Module):
    """Noise in latents [B, 4, H, W] at a time [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 32)
        self.down, self.inner = nn.Conv2d(CHANNELS, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.up = nn.ConvTranspose2d(32, CHANNELS, 4, 2, 1)

    def forward(self, latents: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        below = nn.functional.silu(self.down(latents) + self.time(time[:, None])[:, :, None, None])
        return self.up(below + nn.functional.silu(self.inner(below)))


class Pipeline:
    """Noise → images [B, 3, 32, 32], by steps of a U-Net and a decoder."""

    def __init__(self) -> None:
        self.unet = UNet().to(device).eval()
        self.decoder = nn.Sequential(nn.ConvTranspose2d(CHANNELS, 3, 4, 2, 1), nn.Sigmoid()).to(device).eval()

    @torch.no_grad()
    def __call__(self, seed: int, count: int) -> torch.Tensor:
        latents = torch.randn(count, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device)
        for step in range(STEPS):
            latents = latents - self.unet(latents, torch.full((count,), 1 - step / STEPS, device=device)) / STEPS
        return self.decoder(latents)


torch.manual_seed(0)
pipe = Pipeline()
before = pipe(1, 2)
how = {"runtime": "tensorrt" if device == "cuda" else "onnxruntime", "config": t2e.BuildConfig(refittable=True)}
engines = t2e.deploy_submodules(pipe, lambda: [pipe(0, 1), pipe(1, 2)], ["unet", "decoder"], **how)
torch.testing.assert_close(pipe(1, 2), before, rtol=1e-3, atol=1e-3)
with torch.no_grad():
    pipe.unet.inner.weight += 0.05 * torch.randn_like(pipe.unet.inner.weight)  # an adapter, merged
engines.refit()
adapted = pipe(1, 2)
engines.restore()
assert torch.allclose(pipe(1, 2), adapted, rtol=1e-3, atol=1e-3)
print(f"images of {tuple(before.shape)}; the adapter moved them by {float((adapted - before).abs().max()):.3f}")

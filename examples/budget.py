"""Let deploy find the module that float16 would spoil, and keep it in float32.

Enters: scikit-learn's digits with pixels from 0 to 255, and a net that divides an image by its length: the squares
under the root add up to millions, and float16 ends at 65504. Leaves: what the searches tried, and what they kept. On a
machine with a GPU TensorRT answers, on one without ONNX Runtime. Needs the extra `quantize`.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import torch2engine as t2e

torch.manual_seed(0)
device, runtime = ("cuda", "tensorrt") if torch.cuda.is_available() else ("cpu", "onnxruntime")
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images * (255 / 16), dtype=torch.float32, device=device), torch.tensor(labels, device=device)


class UnitLength(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * x / x.square().sum(1, keepdim=True).sqrt()


layers = {"length": UnitLength(), "first": nn.Linear(64, 64), "relu": nn.ReLU(), "last": nn.Linear(64, 10)}
model = nn.Sequential()
for name, layer in layers.items():
    model.add_module(name, layer)
optimizer = torch.optim.Adam(model.to(device).parameters(), lr=3e-3)
for _ in range(10):
    for rows in torch.randperm(len(x), device=device).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()

dim, bright = [rows / 255 for rows in x[:256].split(64)], x[256:512].split(64)
answers = {id(rows): truth for rows, truth in zip(bright, y[256:512].split(64), strict=True)}


def top1(outputs: torch.Tensor, rows: torch.Tensor) -> float:
    return (outputs.argmax(1) == answers[id(rows)].to(outputs.device)).float().mean().item()


def deployed(precision: t2e.Precision, calibration: list[torch.Tensor]) -> tuple[list[str], list[str]]:
    module = t2e.deploy(model, x[:64], precision=precision, calibration=calibration, runtime=runtime)
    told = module.report.lowering
    print(told, end="\n\n")
    return [part.module for part in told.kept], [text for text in told.attempts if text.startswith("graph")]


float16 = t2e.Precision("fp16", budget=t2e.Budget())
kept, graphs = deployed(float16, dim)
assert (kept, len(graphs)) == (["length"], 2), "dim images hide the overflow: parity fails, and the search finds it"
kept, graphs = deployed(float16, bright)
assert (kept, len(graphs)) == (["length"], 1), "bright images show it, so it stays in float32 from the start"
kept, graphs = deployed(t2e.Precision("fp16", budget=t2e.Budget(metric=top1, floor=0.95)), bright)
assert kept == ["length"] and "metric" in graphs[0], "top-1 on the calibration images judges instead of parity"

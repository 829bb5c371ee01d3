"""Fine-tune a net with ModelOpt's fake quantisers and deploy it in int8, by the same call.

Enters: scikit-learn's digits, 8x8 pixels, and an MLP trained on them in float32. Leaves: the accuracy before, with the
quantisers, and of what was deployed. On a machine with a GPU TensorRT answers, on one without ONNX Runtime. Needs the
extra `quantize`.
"""

from __future__ import annotations

import warnings

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torch2engine as t2e

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what ModelOpt uses is deprecated in newer versions of torch
    import modelopt.torch.quantization as mtq

torch.manual_seed(0)
has_gpu = torch.cuda.is_available()
device, runtime = ("cuda", "tensorrt") if has_gpu else ("cpu", "onnxruntime")

images, labels = load_digits(return_X_y=True)
parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
x_train, x_test = (torch.tensor(part, dtype=torch.float32, device=device) for part in parts[:2])
y_train, y_test = (torch.tensor(part, device=device) for part in parts[2:])


def train(network: nn.Module, epochs: int, rate: float) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(epochs):
        for batch in torch.randperm(len(x_train), device=device).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x_train[batch]), y_train[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    return (network(x_test).argmax(1) == y_test).float().mean().item()


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
train(model, 12, 3e-3)
before = accuracy(model)
model = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda calibrated: calibrated(x_train[:256]))
train(model, 2, 3e-4)
tuned = accuracy(model)
module = t2e.deploy(model, x_train[:64], {"input": {0: t2e.Axis("batch", 1, 64, 512)}}, runtime=runtime)
found = accuracy(module)
print(f"accuracy on {len(x_test)} held-out digits: float32 {before:.4f}, tuned {tuned:.4f}, deployed {found:.4f}")
print(t2e.precision_report(module))
assert module.precision == "int8" and t2e.precision_report(module).share("int8") == 1.0
assert abs(found - tuned) < 0.005 and found > before - 0.01, "the deployed net reads digits as well as the tuned one"

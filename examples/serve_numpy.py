"""Serve a saved engine to callers that have numpy arrays, as a process without PyTorch would.

Enters: scikit-learn's digits, 8x8 pixels as uint8, and a small network trained on them. Leaves: an engine on disk, the
answers of a `Processor` to single calls and to a stream of batches, and how many digits they read. Only the part after
"serving" would run on the host that serves. On a machine without a GPU the Processor says so, and ONNX Runtime answers.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import torch2engine as t2e


class Reader(nn.Module):
    """images: (batch, 8, 8) uint8 -> (batch, 10) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images.float() / 16)


torch.manual_seed(0)
digits = load_digits()
images, labels = digits.images.astype(np.uint8), digits.target
model, x, y = Reader(), torch.from_numpy(images[:1400]), torch.from_numpy(labels[:1400])
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(300):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
exported = t2e.export(model, x[:64], {"images": {0: t2e.Axis("batch", 1, 64, 512)}})
folder = f"{tempfile.mkdtemp()}/reader.t2e"
t2e.build(exported).save(folder)

# serving
test = images[1400:]
try:
    with t2e.Processor(folder) as processor:
        first = processor.infer(test[:1])["output"]
        logits = np.concatenate([results["output"] for results in processor.infer_stream(np.array_split(test, 7))])
        print(f"the engine took {processor.last_inference_ms:.3f} ms for the last batch")
except t2e.InstallationError as error:
    print(f"no Processor here: {error.subject}: {error.got}")
    first, logits = (t2e.ORTModule(exported)(torch.from_numpy(part)).numpy() for part in (test[:1], test))
with torch.no_grad():
    expected = model(torch.from_numpy(test)).numpy()
right, wanted = ((answer.argmax(1) == labels[1400:]).sum() for answer in (logits, expected))
print(f"{right} of {len(test)} digits, PyTorch {wanted}")
assert right == wanted > 0.85 * len(test), "what is served reads digits as well as the model"
assert np.allclose(first, logits[:1], atol=1e-3), "a single call and a stream give one answer"

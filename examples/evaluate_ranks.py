"""Evaluate one engine on every GPU with torchrun: rank 0 builds it, and each rank answers a part of the data.

    torchrun --nproc-per-node 2 examples/evaluate_ranks.py SHARED_FOLDER

Enters: scikit-learn's digits, and torchrun's ranks, with NCCL where each has a GPU, else gloo and ONNX Runtime; without
a folder the script starts two itself. Leaves: every image's answer, equal to the model's own.
"""

from __future__ import annotations

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import torch2engine as t2e


def evaluate(folder: str) -> None:
    rank, ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    has_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    gpu = torch.device("cuda", local) if has_gpus else None
    if gpu:
        torch.cuda.set_device(gpu)  # all_gather_object uses the current one
    dist.init_process_group("nccl" if gpu else "gloo", device_id=gpu)
    images = torch.tensor(load_digits().data, dtype=torch.float32, device=gpu) / 16
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval().to(gpu or "cpu")
    if rank == 0:  # it alone exports, compares and builds
        axes = {"input": {0: t2e.Axis("batch", 1, 64, 256)}}
        t2e.deploy(model, images[:64], axes, runtime="tensorrt" if gpu else "onnxruntime").save(f"{folder}/model.t2e")
    dist.barrier()
    engine = t2e.load(f"{folder}/model.t2e", gpu)
    own = torch.arange(rank, len(images), ranks)  # no image twice, and none left out, whatever their number
    answers = torch.cat([engine(images[part]).cpu() for part in own.split(256)])
    parts: list[tuple[torch.Tensor, torch.Tensor]] = [(own, answers)] * ranks
    dist.all_gather_object(parts, (own, answers))
    numbers = torch.cat([numbers for numbers, _ in parts])
    assert torch.equal(numbers.sort().values, torch.arange(len(images))), "every image was answered once"
    gathered = torch.cat([answers for _, answers in parts])[numbers.argsort()]
    with torch.no_grad():
        assert torch.allclose(gathered, model(images).cpu(), rtol=1e-3, atol=1e-4), "the answers are the model's"
    print(f"rank {rank} of {ranks}: {len(own)} of {len(gathered)} images\n", end="")  # in one piece
    dist.barrier()  # gloo may abort a rank whose peer has left
    dist.destroy_process_group()


if len(sys.argv) > 1:
    evaluate(sys.argv[1])
elif __name__ == "__main__":  # what torchrun does, with a function
    how = {"start_method": "spawn" if torch.cuda.device_count() >= 2 else "fork", "max_restarts": 0}
    two = LaunchConfig(1, 1, 2, run_id="digits", rdzv_backend="c10d", rdzv_endpoint="localhost:0", **how)
    with tempfile.TemporaryDirectory() as scratch:
        elastic_launch(two, evaluate)(scratch)

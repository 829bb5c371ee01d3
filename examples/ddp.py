"""Train with DistributedDataParallel; after each epoch rank 0 deploys the newest weights and all ranks evaluate.

Enters: scikit-learn's digits, and two processes that this script starts: with NCCL on two GPUs, or gloo on the CPU.
Leaves: the accuracy of what was deployed, equal to the model's in training, counted by all ranks together.
"""

from __future__ import annotations

import tempfile

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torch2engine as t2e

AXES = {"input": {0: t2e.Axis("batch", 1, 64, 1024)}}
gpus = torch.cuda.device_count() >= 2


@torch.no_grad()
def right(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    count = (network(x).argmax(1) == y).sum()
    dist.all_reduce(count)
    return int(count)


def work(rank: int, folder: str) -> None:
    device = torch.device("cuda", rank) if gpus else torch.device("cpu")
    backend, bound = ("nccl", device) if gpus else ("gloo", None)
    dist.init_process_group(backend, f"file://{folder}/ranks", rank=rank, world_size=2, device_id=bound)
    torch.manual_seed(0)
    images, y = (torch.tensor(array[rank:1792:2], device=device) for array in load_digits(return_X_y=True))
    x = images.float() / 16
    network = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(3):
        model.train()
        for batch in torch.randperm(len(x), device=device).split(64):
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0:  # no other takes part: what is deployed is the module inside
            t2e.deploy(model, x[:64], AXES, runtime="tensorrt" if gpus else "onnxruntime").save(f"{folder}/{epoch}.t2e")
        dist.barrier()
        found, wanted = right(t2e.load(f"{folder}/{epoch}.t2e", device), x, y), right(model.eval(), x, y)
        print(f"rank {rank}, epoch {epoch}: {found} of 1792 digits, the model in training {wanted}\n", end="")  # in one
        assert abs(found - wanted) <= 1, "a digit on the edge may fall to either side"
    del model  # its reducer would end the process group while it holds Python's lock, which a thread of gloo may want
    dist.barrier()  # gloo may abort a rank whose peer has left
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="spawn" if gpus else "fork")

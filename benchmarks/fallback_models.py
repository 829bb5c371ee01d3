"""The models that the benchmark of parts brings itself: chains, and two small ones that no single engine takes.

Enters: nothing. Leaves: modules with an input each. Apart because the parent names them, and its processes make them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

__all__ = ["OWN", "PARTS", "Chain", "block", "own_model"]

PARTS = 4
WIDTH, ROWS = 64, 32


@torch.library.custom_op("torch2engine_benchmark::pass_on", mutates_args=())
def pass_on(x: torch.Tensor) -> torch.Tensor:
    """An operator that no engine knows; it copies."""
    return x.clone()


@pass_on.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def block(width: int = WIDTH) -> nn.Module:
    """What is between two operators that no engine takes."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.Tanh())


class Chain(nn.Module):
    """Parts of an engine, with an operator between them that no engine takes."""

    def __init__(
        self, parts: int, make: Callable[[], nn.Module], between: Callable[[torch.Tensor], torch.Tensor] = pass_on
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(make() for _ in range(parts))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = self.between(part(x))
        return x


class Finder(nn.Module):
    """Scores of rows, those above a threshold, and work on these: the end of a detector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block(width) for _ in range(4)))
        self.score = nn.Linear(width, 1)
        self.head = nn.Sequential(block(width), nn.Linear(width, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x)
        found = rows[self.score(rows)[:, 0] > 0]
        return self.head(found).sigmoid() * 2


class Backbone(nn.Module):
    """Convolutions, a factorisation that no engine takes, and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = [3, channels, channels, channels]
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(sizes))
        )
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).mean((2, 3))
        gram = features.mT @ features  # square, whatever the batch; its rank is at most the batch
        # About a tenth of its norm on the diagonal: without it, rounding alone decides most factors.
        return self.head(torch.linalg.qr(gram + 0.1 * torch.eye(len(gram), device=x.device)).Q.abs())


OWN = ("chain", "finder", "backbone")


def own_model(name: str, device: torch.device) -> tuple[nn.Module, torch.Tensor]:
    """A model of which operators stay in PyTorch, with an input; smaller on the CPU.

    Args:
        name: of `OWN`.
        device: where it is.
    """
    on_cpu = device.type == "cpu"
    width, side = (32, 16) if on_cpu else (1024, 128)
    torch.manual_seed(0)
    made: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
        "chain": lambda: (Chain(PARTS, block), torch.rand(ROWS, WIDTH)),
        "finder": lambda: (Finder(width), torch.rand(64 if on_cpu else 4096, width)),
        "backbone": lambda: (Backbone(8 if on_cpu else 64), torch.rand(16, 3, side, side)),
    }
    model, x = made[name]()
    return model.to(device).eval(), x.to(device)

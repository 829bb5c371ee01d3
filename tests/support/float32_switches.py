"""PyTorch's switches for float32: the new ones, each with a function that reads it, and ways to turn them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torch2engine.capture.undisturbed import undisturbed

SWITCHES: dict[str, Callable[[], Any]] = {
    "matmul": lambda: torch.backends.cuda.matmul.fp32_precision,
    "conv": lambda: torch.backends.cudnn.conv.fp32_precision,
    "rnn": lambda: torch.backends.cudnn.rnn.fp32_precision,
    "cpu matmul": lambda: torch.backends.mkldnn.matmul.fp32_precision,
    "cpu conv": lambda: torch.backends.mkldnn.conv.fp32_precision,
    "cpu rnn": lambda: torch.backends.mkldnn.rnn.fp32_precision,
}

TURNS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "old matmul": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "old conv": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "new matmul": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new conv": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "new rnn": lambda: setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee"),
    "new all": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "new cpu": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}

OLD: dict[str, Callable[[], Any]] = {
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
}


def old_switches() -> dict[str, Any]:
    """What the older switches say, which may be that they can't tell."""
    said: dict[str, Any] = {}
    for name, read in OLD.items():
        try:
            said[name] = read()
        except RuntimeError:
            said[name] = "mixed"
    return said


def turn_and_look(turn: str) -> list[Any]:
    """The switches as a user turned them, inside, and afterwards; in a process of its own."""

    def look() -> list[Any]:
        return [{name: read() for name, read in SWITCHES.items()}, old_switches()]

    TURNS[turn]()
    before = look()
    with undisturbed(nn.Linear(2, 2)):
        inside = [read() for read in SWITCHES.values()]
    return [before, inside, look()]

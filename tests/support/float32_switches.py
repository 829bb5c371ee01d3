"""PyTorch's new switches for float32, each with a function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SWITCHES: dict[str, Callable[[], Any]] = {
    "matmul": lambda: torch.backends.cuda.matmul.fp32_precision,
    "conv": lambda: torch.backends.cudnn.conv.fp32_precision,
    "rnn": lambda: torch.backends.cudnn.rnn.fp32_precision,
    "cpu matmul": lambda: torch.backends.mkldnn.matmul.fp32_precision,
    "cpu conv": lambda: torch.backends.mkldnn.conv.fp32_precision,
    "cpu rnn": lambda: torch.backends.mkldnn.rnn.fp32_precision,
}

"""A small comparison, for tests of what carries and prints one."""

from __future__ import annotations

import numpy as np

from torch2engine.core.config import Tolerance
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport

__all__ = ["TOLERANCE", "table"]

TOLERANCE = Tolerance(rel_l2=1e-3, max_rel=1e-2, abs=1e-6, mismatch=0)


def table(subject: str, scale: float = 1.0) -> ParityReport:
    """One output of one case."""
    x = np.arange(1, 5, dtype=np.float32)
    return ParityReport(compare({"y": x}, {"y": x * scale}, TOLERANCE, case="min"), subject, TOLERANCE)

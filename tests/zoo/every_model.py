"""Every entry of the zoo, as the table that `python -m benchmarks.zoo_sweep --models tests.zoo.every_model` reads.

Enters: the lists. Leaves: `ZOO`. Separate because a sweep takes a module, and its usual one leaves near relatives out.
"""

from __future__ import annotations

from tests.zoo.models import EVERY

__all__ = ["ZOO"]

ZOO = EVERY

"""Where this package lies.

Enters: nothing. Leaves: its folder. A room of its own so that "is this line ours?" has one answer wherever it is asked.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PACKAGE_ROOT"]

PACKAGE_ROOT = Path(__file__).parents[1]

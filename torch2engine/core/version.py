"""The version, as one string that packaging tools read without importing anything.

Enters: nothing. Leaves: `__version__`. Separate so that manifests and `pip` quote the same number.
"""

from __future__ import annotations

__version__ = "0.1.0"

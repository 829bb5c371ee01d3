"""The commands on the engine cache.

Enters: a folder. Leaves: what is in it, or what was removed. Separate because they need neither a model nor TensorRT.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from torch2engine.artifact.engine_cache import EngineCache
from torch2engine.cli.outcome import Outcome

__all__ = ["list_engines", "prune"]


def list_engines(folder: Path | None) -> Outcome:
    """List the engines, the least recently used first."""
    cache = EngineCache(folder)
    entries = cache.entries()
    total = sum(entry.size_bytes for entry in entries)
    lines = [
        f"{entry.key[:12]}  {_mebibytes(entry.size_bytes)}  used {datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}"
        for entry in entries
    ]
    lines.append(f"{len(entries)} engines, {_mebibytes(total)}, in {cache.folder}")
    listed = [
        {"key": entry.key, "size_bytes": entry.size_bytes, "used": entry.used, "path": str(entry.path)}
        for entry in entries
    ]
    return Outcome("\n".join(lines), {"folder": str(cache.folder), "total_bytes": total, "engines": listed})


def prune(folder: Path | None, max_bytes: int | None) -> Outcome:
    """Remove the least recently used engines until the rest fits."""
    cache = EngineCache(folder)
    freed = cache.prune(max_bytes)
    left = cache.entries()
    text = f"freed {_mebibytes(freed)}; {len(left)} engines stay in {cache.folder}"
    return Outcome(text, {"folder": str(cache.folder), "freed_bytes": freed, "engines_left": len(left)})


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

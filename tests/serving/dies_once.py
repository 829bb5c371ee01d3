"""A Predictor whose process is killed once, as a host that fails would end it; in a file that Ray's workers import."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2engine.serving.ray import Predictor


class DiesOnce:
    """Answers as `Predictor`; the first actor that sees a certain row kills its process.

    Args:
        marker: a file that says that it has happened.
        row: the id of that row.
        arguments: of the Predictor.
    """

    def __init__(self, marker: str, row: int, **arguments: Any) -> None:
        self._marker = Path(marker)
        self._row = row
        self._predictor = Predictor(**arguments)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._row in batch["id"] and not self._marker.exists():
            self._marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self._predictor(batch)

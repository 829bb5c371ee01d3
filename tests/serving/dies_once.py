"""A Predictor whose process is killed once, as a host that fails would end it; in a file that Ray's workers import."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch2engine.serving.ray import Predictor

FATAL_ROW = 5000


class DiesOnce:
    """Answers as `Predictor`; the first actor that sees `FATAL_ROW` kills its process.

    Args:
        artifact: a folder; the file `killed` beside it says that it has happened.
        arguments: of the Predictor.
    """

    def __init__(self, artifact: str, **arguments: Any) -> None:
        self._marker = Path(artifact).parent / "killed"
        self._predictor = Predictor(artifact, **arguments)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if FATAL_ROW in batch["id"] and not self._marker.exists():
            self._marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self._predictor(batch)

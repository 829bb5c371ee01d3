"""A Predictor whose first batches wait for each other inside it; in a file that Ray's workers import."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from torch2engine.serving.ray import Predictor

TOGETHER = 4
LONGEST_S = 120.0  # where they are never together


class MeetsOthers:
    """Answers as `Predictor`, once `TOGETHER` batches have been inside at the same time.

    Args:
        artifact: a folder.
        arguments: of the Predictor.
    """

    def __init__(self, artifact: str, **arguments: Any) -> None:
        self._predictor = Predictor(artifact, **arguments)
        self._meeting = threading.Barrier(TOGETHER, timeout=LONGEST_S)
        self._have_met = threading.Event()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if not self._have_met.is_set():
            self._meeting.wait()
            self._have_met.set()
        return self._predictor(batch)

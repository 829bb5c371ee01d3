"""Outputs whose parts have different scales, with garbage in the small ones.

Enters: nothing. Leaves: arrays, faults in them, and honest errors. A room of its own because the judge's tests and the
study of trust attack with the same parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class HiddenPart:
    """Garbage in a part that is small beside the rest, or has few elements.

    Args:
        name: of the fault.
        values: the reference.
        part: an index of the part.
    """

    name: str
    values: Any
    part: Any

    def candidate(self) -> Any:
        """The reference with garbage of the part's own size."""
        wrong = self.values.copy()
        part = wrong[self.part]
        signs = np.where(np.arange(part.size) % 2, -1, 1).reshape(part.shape)
        wrong[self.part] = part + signs * self._size(part)
        return wrong

    def movements(self, sensitivity: float) -> Any:
        """How far rounding moves each element: in proportion to the size of its part."""
        rng = np.random.default_rng(12)
        noise = [np.square(rng.standard_normal(self.values.shape)) for _ in range(3)]
        return sensitivity * self._scale() * np.sqrt(np.mean(noise, axis=0))

    def honest(self, error: float) -> Any:
        """The reference with an error of every part's own size."""
        noise = np.random.default_rng(13).standard_normal(self.values.shape)
        return (self.values + error * self._scale() * noise).astype(self.values.dtype)

    def _scale(self) -> Any:
        scale = np.full(self.values.shape, self._size(self.values))
        scale[self.part] = self._size(self.values[self.part])
        return scale

    @staticmethod
    def _size(values: Any) -> float:
        return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def hidden_parts() -> list[HiddenPart]:
    """Outputs whose parts have different scales."""
    rng = np.random.default_rng(14)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape)

    def joined(*parts: Any) -> Any:
        return np.concatenate(parts, -1).astype(np.float32)

    few = normal(100, 2500).astype(np.float32)
    row = normal(16, 100).astype(np.float32)
    row[3] *= 1e-3
    classes = normal(2, 20, 16, 16).astype(np.float32)
    classes[:, 7] *= 0.05
    maps = np.stack((50 + 30 * normal(1, 16, 16), 0.5 + 0.2 * normal(1, 16, 16)), 1).astype(np.float32)
    scattered = (1000 * normal(4096)).astype(np.float32)
    places = rng.permutation(4096)[:600]
    scattered[places] /= 1e4
    return [
        HiddenPart("log-variance beside a mean", joined(10 * normal(32, 8), normal(32, 8)), np.s_[:, 8:]),
        HiddenPart("confidence beside metres", joined(50 + 30 * normal(64, 1), 0.5 + 0.2 * normal(64, 1)), np.s_[:, 1]),
        HiddenPart("the same in four rows", joined(50 + 30 * normal(4, 1), 0.5 + 0.2 * normal(4, 1)), np.s_[:, 1]),
        HiddenPart("a map of confidence beside one of metres", maps, np.s_[:, 1]),
        HiddenPart("scores beside boxes", joined(320 + 200 * normal(4, 90, 4), 0.1 * normal(4, 90, 2)), np.s_[..., 5]),
        HiddenPart("live values beside padding", joined(normal(8, 32), np.full((8, 32), 1e4)), np.s_[:, :32]),
        HiddenPart("a few elements of many", few, (np.array([3, 50, 70, 99]), np.array([0, 7, 1000, 2499]))),
        HiddenPart("one small row of a batch", row, np.s_[3]),
        HiddenPart("one class", classes, np.s_[:, 7]),
        HiddenPart("scattered small elements", scattered, places),
    ]

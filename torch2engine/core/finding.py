"""One reason why a deployed model is slower than it could be, as data.

Enters: what a rule measured. Leaves: a `Finding`, with text and JSON. Separate because rules of several folders make
findings, while reports, pages and the command line only show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch2engine.core.package import public

__all__ = ["Finding"]


@public
@dataclass(frozen=True, kw_only=True)
class Finding:
    """One reason why a deployed model is slower than it could be, or takes more memory.

    Args:
        name: of the kind, e.g. "wide profile"; the docs have a list.
        measured: what was found in this model, with figures.
        why: why it matters.
        suggestion: what to try.

    >>> turned = sample.transpose(2, 3)
    >>> findings = t2e.explain(module, turned).findings
    >>> print(next(finding for finding in findings if finding.name == "copies"))
    copies: every call converts inputs: 'x' is not contiguous (strides (12288, 4096, 1, 64)). A copy of an input costs a
    kernel and its memory before the engine begins. Try: inputs in the engine's dtype and contiguous, made so once and
    not in every call
    """

    name: str
    measured: str
    why: str
    suggestion: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}. {self.why}. Try: {self.suggestion}"

    def to_json(self) -> dict[str, str]:
        """Plain data, ready for json.dumps."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """The inverse of `to_json`."""
        return cls(**{name: str(data[name]) for name in ("name", "measured", "why", "suggestion")})

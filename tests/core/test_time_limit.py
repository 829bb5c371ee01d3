"""The time in which a search may begin anything."""

from __future__ import annotations

import pytest

from torch2engine.core.time_limit import OutOfTime, TimeLimit


def test_time_limit_forbids_beginnings_until_it_is_lifted() -> None:
    """What has begun is finished; afterwards everything may begin."""
    limit = TimeLimit(0)
    with pytest.raises(OutOfTime) as caught:
        limit.check("a graph")
    assert str(caught.value) == "a graph would begin after the 0 s of BuildConfig.optimize_seconds"
    limit.lift()
    limit.check("a graph")
    TimeLimit(3600).check("a graph")

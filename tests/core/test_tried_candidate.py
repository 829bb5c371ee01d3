"""What was tried, as rows of a table and as JSON values."""

from __future__ import annotations

import json

from torch2engine.core.tried_candidate import TriedCandidate, rank, tried_rows
from torch2engine.core.wording import aligned

TRIED = (
    TriedCandidate(
        name="engine", microseconds={"batch 1": 10.25, "batch 8": 1234.6}, is_chosen=True, reason="the fastest"
    ),
    TriedCandidate(name="torch.compile", is_chosen=False, reason="left out: no compiler"),
)


def test_table_has_a_column_for_each_case() -> None:
    """What was not timed has dashes; what was chosen says so."""
    assert aligned(tried_rows(TRIED)) == [
        "tried          µs at batch 1  µs at batch 8  outcome",
        "engine         10.25          1235           chosen: the fastest",
        "torch.compile  -              -              left out: no compiler",
    ]


def test_model_without_axes_has_one_column() -> None:
    """Its case has no name."""
    only = TriedCandidate(name="engine", microseconds={"": 10.0}, is_chosen=True, reason="the fastest")
    assert tried_rows([only])[0] == ("tried", "µs a call", "outcome")
    assert tried_rows([])[0] == ("tried", "outcome")


def test_json_brings_it_back() -> None:
    """Through text, as in a saved report."""
    for one in TRIED:
        assert TriedCandidate.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_first_one_wins_unless_another_is_clearly_faster() -> None:
    """The geometric mean over all opts counts; the reasons have the ratios."""
    close = rank({"engine": {"batch 1": 100, "batch 8": 400}, "eager": {"batch 1": 98, "batch 8": 392}}, _remarks())
    assert [(one.is_chosen, one.reason) for one in close] == [
        (True, "no other one is faster by more than 5%"),
        (False, "0.98 times the time of engine; in a CUDA graph"),
    ]
    slow = rank({"engine": {"batch 1": 100, "batch 8": 400}, "eager": {"batch 1": 50, "batch 8": 200}}, _remarks())
    assert [(one.is_chosen, one.reason) for one in slow] == [
        (False, "2.00 times the time of eager"),
        (True, "2.00 times as fast as engine; in a CUDA graph"),
    ]
    mixed = rank({"engine": {"batch 1": 10, "batch 8": 400}, "eager": {"batch 1": 40, "batch 8": 200}}, _remarks())
    assert [one.reason for one in mixed] == ["the fastest", "1.41 times the time of engine; in a CUDA graph"]
    (alone,) = rank({"engine": {}}, _remarks())
    assert alone.is_chosen and alone.reason == "nothing else can take its place"


def _remarks() -> dict[str, str]:
    return {"engine": "", "eager": "in a CUDA graph"}

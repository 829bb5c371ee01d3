"""Other libraries' loggers are silent for a while only."""

from __future__ import annotations

import logging

import pytest

from torch2engine.core.loggers import only_errors


def test_loggers_pass_errors_only_and_get_their_own_levels_back(caplog: pytest.LogCaptureFixture) -> None:
    """Each logger has its own level again, also after an exception."""
    talkative = logging.getLogger("tests.talkative")
    other = logging.getLogger("tests.other")
    talkative.setLevel(logging.DEBUG)

    def talk() -> None:
        with only_errors(["tests.talkative", "tests.other"]):
            talkative.warning("internal")
            talkative.error("told")
            raise KeyError

    with pytest.raises(KeyError):
        talk()
    assert [record.message for record in caplog.records] == ["told"]
    assert (talkative.level, other.level) == (logging.DEBUG, logging.NOTSET)

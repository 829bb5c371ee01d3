"""An artifact that all tests of serving share, and the rows that it answers."""

from __future__ import annotations

import pytest

from tests.support.deploy_models import mlp


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`mlp` as an exported model on disk: x (batch 1..8, 6) float32 -> output (batch, 3)."""
    return str(mlp()[1].save(tmp_path_factory.mktemp("serving") / "mlp.t2e"))

"""The model and the artifact that the tests of export and check share."""

from __future__ import annotations

import pytest

import torch2engine as t2e
from tests.support.deploy_models import BATCH, Mlp, sample, seeded
from torch2engine.artifact.onnx_artifact import OnnxArtifact


@pytest.fixture(scope="module")
def model() -> Mlp:
    """The reference, in training as users have it."""
    return seeded(Mlp).train()


@pytest.fixture(scope="module")
def exported(model: Mlp) -> OnnxArtifact:
    """Its ONNX artifact."""
    return t2e.export(model, sample(4, 6), BATCH)

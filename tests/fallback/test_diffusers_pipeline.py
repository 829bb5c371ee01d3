"""A real pipeline of diffusers with engines in it: `examples/stable_diffusion.py`, and the engines that it saves."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.run_scripts import run_scripts


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the example prints, and what another process saw that loaded the engines which it saved."""
    folder = tmp_path_factory.mktemp("pipeline")
    (ended,) = run_scripts([["-m", "tests.support.stable_diffusion", str(folder)]])
    assert (ended.code, ended.err) == (0, "")
    said, facts = ended.out.splitlines()
    return said, json.loads(facts)


def test_pipeline_answers_by_engines_with_an_adapter_and_is_restored(printed: tuple[str, dict[str, Any]]) -> None:
    """The example asserts that the images are PyTorch's; here, that the adapter changed them."""
    moved = re.fullmatch(r"images of \(1, 3, 8, 8\); the adapter moved one by ([\d.]+)", printed[0])
    assert moved is not None
    assert float(moved[1]) > 0.0


def test_saved_engines_answer_in_the_pipeline_of_another_process(printed: tuple[str, dict[str, Any]]) -> None:
    """They have the adapter that the pipeline lacks, whatever its own weights are, and leave no trace behind."""
    facts = printed[1]
    assert facts["names"] == ["text_encoder", "unet", "vae.decoder"]
    assert facts["off_by"] < 1e-6 < 1e-3 < facts["moved_by"]
    assert facts["engines_answer"]
    assert facts["restored"]
    assert facts["attributes_restored"]


def test_pipeline_reads_the_attributes_of_its_own_modules(printed: tuple[str, dict[str, Any]]) -> None:
    """Sizes, dtypes and devices stay where diffusers looks for them while engines answer."""
    assert printed[1]["read"] == {
        "unet.config.in_channels": 4,
        "unet.dtype": "torch.float32",
        "vae.config.scaling_factor": 0.18215,
        "text_encoder.device": "cpu",
        "device": "cpu",
        "components": True,
    }

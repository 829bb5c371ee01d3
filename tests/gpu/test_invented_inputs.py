"""Models whose integers depend on sizes or on each other leave the CUDA context alive.

Enters: the kinds of `integer_models`. Leaves: proof that a failed or successful deploy is followed by training. Apart
because all kinds run in one process of their own, whose context may die.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.gpu.integer_models import KINDS
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.xdist_group("invented inputs")


def outcomes_of(runtime: str) -> dict[str, Any]:
    """The outcome of every kind, in one process."""
    command = [sys.executable, "-m", "tests.gpu.integer_models", "cuda", runtime]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """The reference runs on the GPU; ONNX Runtime answers, so that no engine has to be built for each kind."""
    return outcomes_of("onnxruntime")


@pytest.mark.parametrize("name", KINDS)
def test_model_trains_on_after_its_deploy(outcomes: dict[str, Any], name: str) -> None:
    """Whatever became of the deploy, the CUDA context works and a step of training changes the model."""
    outcome = outcomes[name]
    assert outcome["alive"], outcome["error"]
    assert outcome["trained"], outcome["error"]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.fails])
def test_right_model_with_integers_deploys(outcomes: dict[str, Any], name: str) -> None:
    """Invented integers fit together at every size, or examples take their place; no case is left out."""
    outcome = outcomes[name]
    assert outcome["deployed"], outcome["error"]
    assert not [note for note in outcome["notes"] if note.startswith("no case")]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.fails])
def test_model_that_fails_at_a_promised_size_is_refused(outcomes: dict[str, Any], name: str) -> None:
    """The error is that of PyTorch on the CPU, with the axis."""
    outcome = outcomes[name]
    assert not outcome["deployed"]
    assert outcome["error"].startswith("DynamicAxisError: axes n = 40: ")
    assert "IndexError" in outcome["error"]


def test_index_out_of_range_ends_the_context_of_its_process() -> None:
    """The danger is real: without a trial the same index leaves no working CUDA behind."""
    code = (
        "import torch\n"
        "table = torch.randn(16, 4, device='cuda')\n"
        "try:\n"
        "    table[torch.arange(40, device='cuda')].sum().item()\n"
        "except Exception: pass\n"
        "try:\n"
        "    print('alive' if torch.ones(3, device='cuda').sum().item() == 3 else 'wrong')\n"
        "except Exception: print('dead')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split()[-1:] == ["dead"]

"""The command line on engines, among them files that another tool could have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.conftest import NET, run_command

AXIS = ("--axis", "batch=1:8:32")
SAMPLE = ("--sample", "8x3x32x32")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The current folder, with net.py and the engine that `deploy` made of it, in a folder and as bare files."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = run_command("deploy", "net.py:make", *SAMPLE, *AXIS, "--no-cache", "-o", "net.t2e")
        assert ended.code == 0, ended.err
        plan = (folder / "net.t2e" / "model.plan").read_bytes()
        metadata = json.dumps({"task": "classify", "names": {"0": "cat"}}).encode()
        (folder / "trtexec.engine").write_bytes(plan)
        (folder / "ultralytics.engine").write_bytes(len(metadata).to_bytes(4, "little") + metadata + plan)
        yield folder


@pytest.mark.parametrize("name", ["net.t2e", "trtexec.engine", "ultralytics.engine"])
def test_check_judges_an_engine_whoever_wrote_the_file(workspace: Path, name: str) -> None:
    """A right engine passes, and one whose weights are not the model's fails, with the exit code of each."""
    assert (workspace / name).exists()
    good = run_command("check", name, "net.py:make", *SAMPLE, "--json")
    assert (good.code, good.data["parity"]["passed"]) == (0, True), good.err
    assert {row["case"] for row in good.data["parity"]["rows"]} >= {"min", "opt", "max"}
    spoilt = run_command("check", name, "net.py:spoilt", *SAMPLE, "--json")
    assert (spoilt.code, spoilt.data["parity"]["passed"]) == (1, False), spoilt.err


def test_engine_file_is_compared_with_the_onnx_that_it_came_from(workspace: Path) -> None:
    """A reference that is a file runs on the CPU, the candidate on the GPU."""
    (workspace / "net.onnx").write_bytes((workspace / "net.t2e" / "model.onnx").read_bytes())
    ended = run_command("check", "trtexec.engine", "net.onnx", *AXIS)
    assert (ended.code, ended.err) == (0, "")


def test_engine_file_answers_arrays(workspace: Path) -> None:
    """`run` needs nothing but the file."""
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    np.savez(workspace / "images.npz", images)
    ended = run_command("run", "ultralytics.engine", "--input", "images.npz", "--output", "answers.npz", "--json")
    assert ended.code == 0, ended.err
    namespace: dict[str, Any] = {}
    exec(NET, namespace)
    expected = namespace["make"]().eval()(torch.from_numpy(images)).detach().numpy()
    answers = np.load(workspace / "answers.npz")
    np.testing.assert_allclose(answers[answers.files[0]], expected, rtol=1e-3, atol=1e-4)


def test_damaged_plan_is_refused_with_a_typed_error(workspace: Path) -> None:
    """Bytes that TensorRT can't read end the command with an error, not the process."""
    plan = (workspace / "trtexec.engine").read_bytes()
    (workspace / "cut.engine").write_bytes(plan[: len(plan) // 2])
    ended = run_command("check", "cut.engine", "net.py:make", *SAMPLE)
    assert ended.code == 3
    assert ended.err.startswith("error: engine file 'cut.engine' on ")


def test_bench_times_an_engine_beside_its_model(workspace: Path) -> None:
    """Host and device figures of both, after the answers agreed."""
    ended = run_command("bench", "net.t2e", "--model", "net.py:make", "--size", "batch=8", "--rounds", "3", "--json")
    assert ended.code == 0, ended.err
    assert {row["candidate"] == "PyTorch eager" for row in ended.data["rows"]} == {True, False}
    assert all(row["device_us"] > 0 for row in ended.data["rows"])

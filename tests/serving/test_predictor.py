"""`torch2engine.serving.ray.Predictor` without Ray: batches of any size, columns, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch2engine as t2e
from tests.support.deploy_models import engine, hide_gpu, mlp
from torch2engine.serving import batch_runner
from torch2engine.serving.array_runner import OrtRunner
from torch2engine.serving.batch_runner import BatchRunner
from torch2engine.serving.ray import Predictor, predict


class Centred(torch.nn.Module):
    """Takes the mean of the batch off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


def rows(count: int) -> Any:
    """(count, 6) float32, read-only, as Arrow gives them."""
    made = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)
    made.flags.writeable = False
    return made


def expected(x: Any) -> Any:
    """PyTorch's answers."""
    with torch.no_grad():
        return mlp()[0](torch.from_numpy(x.copy())).numpy()


def refusal(kind: type[Exception], call: Any, *args: Any, **kwargs: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.fixture(scope="module")
def predictor(folder: str) -> Predictor:
    return Predictor(folder)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 61])
def test_any_number_of_rows_is_answered(predictor: Predictor, count: int) -> None:
    """Short batches, whole ones and those above the largest profile: as many answers, in order, beside their ids."""
    x = rows(count)
    answers = predictor({"id": np.arange(count), "x": x})
    assert list(answers) == ["id", "output"]
    assert np.array_equal(answers["id"], np.arange(count))
    np.testing.assert_allclose(answers["output"], expected(x), rtol=1e-5, atol=1e-5)


def test_no_rows_give_no_rows(predictor: Predictor) -> None:
    """An empty block has answers of the right dtype and shape."""
    answers = predictor({"x": rows(0), "id": np.arange(0)})
    assert (answers["output"].shape, answers["output"].dtype) == ((0, 3), np.float32)


def test_rows_are_filled_up_where_the_least_batch_is_larger() -> None:
    """A profile from 4 on answers one row, and gives one back; rows are never answered by a neighbour's copy."""
    model = mlp()[0]
    axes = {"x": {0: t2e.Axis("batch", 4, 4, 8, multiple_of=4)}}
    runner = BatchRunner(t2e.export(model, torch.zeros(4, 6), axes))
    runner.warm_up()
    for count in (1, 3, 4, 5, 8, 13):
        x = rows(count)
        np.testing.assert_allclose(runner({"x": x})["output"], expected(x), rtol=1e-5, atol=1e-5)
    assert runner.batch_size == 8
    runner.close()


def test_calls_are_as_large_as_is_asked_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`batch_size` limits the rows of one call."""
    sizes: list[int] = []
    original = BatchRunner._padded_batches

    def noted(self: BatchRunner, columns: Any, count: int) -> Any:
        for call in original(self, columns, count):
            sizes.append(len(call["x"]))
            yield call

    monkeypatch.setattr(BatchRunner, "_padded_batches", noted)
    Predictor(folder, batch_size=3)({"x": rows(8)})
    assert sizes == [3, 3, 2]


def test_batch_keeps_two_calls_under_way(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches at a time have eight, and no more page-locked memory than these; a lone caller's runner has four."""
    depths: list[int] = []
    original = OrtRunner.infer_stream

    def noted(self: OrtRunner, items: Any, depth: int) -> Any:
        depths.append(depth)
        return original(self, items, depth)

    monkeypatch.setattr(OrtRunner, "infer_stream", noted)
    Predictor(folder)({"x": rows(8)})
    BatchRunner(mlp()[1]._artifact)({"x": rows(8)})
    assert depths == [2, 4]


def test_columns_are_renamed_and_chosen(folder: str) -> None:
    """An input's column may have any name, and only the columns to keep come back."""
    renamed = Predictor(folder, columns={"x": "pixels"}, keep=["id"])
    batch = {"pixels": rows(5), "id": np.arange(5), "path": np.array(["a"] * 5)}
    assert list(renamed(batch)) == ["id", "output"]
    assert list(Predictor(folder, columns={"x": "pixels"})(batch)) == ["id", "path", "output"]


def test_wrong_columns_are_refused(folder: str, predictor: Predictor) -> None:
    """What is missing, unknown, of other lengths or in the way of an output is named, with the way out."""
    assert refusal(t2e.InputError, Predictor, folder, columns={"y": "a"}).startswith(
        "columns: got an input 'y'; expected x; "
    )
    assert refusal(t2e.InputError, predictor, {"X": rows(3)}) == (
        "input 'x': got no column 'x'; expected one of X; did you mean 'X'?"
    )
    assert refusal(t2e.InputError, predictor, {"image": rows(3)}) == (
        "input 'x': got no column 'x'; expected one of image; name the column, in columns= for an input"
    )
    assert refusal(t2e.InputError, Predictor(folder, keep=["key"]), {"x": rows(3)}).startswith(
        "keep: got no column 'key'; expected one of x; "
    )
    assert refusal(t2e.InputError, predictor, {"x": rows(3), "output": rows(3)}) == (
        "column 'output': got a kept column with the name of an output; expected other names than the outputs'; "
        "rename the column, or leave it out of keep"
    )
    assert refusal(t2e.DtypeError, predictor, {"x": rows(3).astype(np.float64)}).startswith("input 'x': got dtype")
    assert refusal(t2e.ShapeError, predictor, {"x": rows(3)[:, :4]}).startswith("input 'x': got ")
    assert refusal(t2e.InputError, Predictor, folder, batch_size=0) == (
        "batch_size: got 0; expected an int of at least 1; pass such a number"
    )
    assert refusal(t2e.InputError, Predictor, 3).startswith("artifact: got an int; expected the path of a saved ")
    config = t2e.RuntimeConfig(cuda_graphs=True)
    assert "cuda_graphs=True" in refusal(t2e.InputError, Predictor, folder, runtime_config=config)
    assert refusal(t2e.ShapeError, BatchRunner(mlp()[1]._artifact), {"x": rows(3), "y": rows(2)}) == (
        "columns: got 'x' with 3 rows; 'y' with 2 rows; expected as many rows in each; pass the columns of one batch"
    )


def test_rows_that_influence_each_other_are_not_served() -> None:
    """Nobody's answer may depend on the rows of somebody else, nor on the rows that fill up a call."""
    mixing = t2e.export(Centred(), torch.zeros(4, 6), {"x": {0: t2e.Axis("batch", 1, 4, 8)}})
    text = refusal(t2e.InputError, BatchRunner, mixing)
    assert text.startswith("artifact: got a model in which the rows of a batch may influence each other: ")
    assert text.endswith(
        "; expected one that answers a row alike in every batch, since rows of several callers go together; write a "
        "worker of your own on a Processor, which gets a whole batch in each call"
    )


def test_engine_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor without a GPU says so."""
    hide_gpu(monkeypatch)
    assert refusal(t2e.InstallationError, Predictor, engine()).startswith("NVIDIA driver: ")


def test_low_types_come_as_float32() -> None:
    """Arrow has no bfloat16, so its values come widened."""
    low = np.arange(3, dtype=np.float16)
    assert batch_runner._join_batches([low], "bfloat16").dtype == np.float32
    assert batch_runner._join_batches([low], "float16").dtype == np.float16


def test_worker_needs_no_torch(folder: str, repository: Path) -> None:
    """What an actor imports and runs brings neither torch nor Ray: an import of torch takes seconds in each."""
    code = (
        "import sys, numpy; from torch2engine.serving.ray import Predictor; "
        f"y = Predictor({folder!r})({{'x': numpy.zeros((9, 6), 'f4')}})['output']; "
        "print(y.shape, sorted({'torch', 'ray', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("(9, 3) []\n", 0), done.stderr


def test_missing_ray_is_told(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text has the line that installs it."""
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert refusal(t2e.InstallationError, predict, None, folder) == (
        "Ray: got no module ray.data; expected an installed Ray; `pip install 'torch2engine[ray]'`"
    )

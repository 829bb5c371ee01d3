"""A backend is one folder and one row: a third one, of numpy, keeps the whole contract of a deployed module."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import torch2engine as t2e
from tests.support.deploy_models import Mlp, mlp, sample
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RUNTIMES
from torch2engine.core.errors import DeviceError, DtypeError, InputError, RefitError, ShapeError
from torch2engine.deployed.backend import Backend, RefittableBackend, WeightsGuard
from torch2engine.deployed.backend_table import BACKENDS, BackendEntry
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.module_access import prove_split_axes


class NumpyBackend:
    """Answers the `Mlp` of these tests with numpy."""

    title = "numpy"
    runtime_kind = ""
    device_type = "cpu"
    device = torch.device("cpu")

    def __init__(self, artifact: OnnxArtifact) -> None:
        self.artifact = artifact
        graph = onnx.load(artifact.onnx_path).graph
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def move(self, device: torch.device) -> None:
        raise AssertionError("there is one CPU")

    def check_ready(self) -> None:
        pass

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        w = self.weights
        hidden = np.tanh(inputs[0].numpy() @ w["first.weight"].T + w["first.bias"])
        return [torch.from_numpy(hidden @ w["second.weight"].T + w["second.bias"])]

    def current_artifact(self) -> OnnxArtifact:
        return self.artifact

    def in_state_dict(self, file: str) -> bool:
        return True


class NumpyModule(DeployedModule[NumpyBackend]):
    """The module of that backend."""

    def _make_backend(self, artifact: OnnxArtifact, guard: WeightsGuard, device: Any) -> NumpyBackend:
        return NumpyBackend(artifact)


@pytest.fixture
def module() -> NumpyModule:
    """`mlp` on the third backend."""
    return NumpyModule(mlp()[1]._artifact)


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


def test_contract_is_kept_by_all_backends(module: NumpyModule) -> None:
    """The types say what a backend must have; one whose weights can't be replaced needs no more."""
    backend: Backend = module._backend
    assert not isinstance(backend, RefittableBackend)
    assert isinstance(mlp()[1]._backend, RefittableBackend)
    assert (module.runtime, module.device, module.precision) == ("numpy", torch.device("cpu"), "fp32")
    call = "x: float32[batch, 6] -> output: float32[batch, 3]; batch 1..8 (opt 4)"
    assert repr(module) == f"NumpyModule({call}; fp32, device=cpu)"


def test_third_backend_answers_like_the_model(module: NumpyModule) -> None:
    """Arguments, casts and strides are the face's business: the backend only computes."""
    model = mlp()[0]
    for x in (sample(4, 6), sample(6, 4).t(), sample(2, 6).half().float()):
        close(module(x), model(x))
    close(module(x=sample(3, 6)), model(sample(3, 6)))


def test_third_backend_refuses_in_the_same_words(module: NumpyModule) -> None:
    """Device, dtype, size, arguments, casts, moves and surgery are refused as by every deployed module."""
    refused: list[tuple[type[Exception], Any, str]] = [
        (
            DeviceError,
            lambda: module(sample(4, 6).to("meta")),
            "input 'x': got device meta; expected cpu, where the module runs; ",
        ),
        (DtypeError, lambda: module(sample(4, 6).double()), "input 'x': got dtype float64; expected float32 "),
        (ShapeError, lambda: module(sample(9, 6)), "input 'x': got batch = 9; expected 1..8; "),
        (InputError, module, "argument 'x': got no value"),
        (InputError, module.half, "NumpyModule: got a cast to float16"),
        (DeviceError, lambda: module.to("meta"), "NumpyModule: got a move to meta; expected the CPU; "),
        (InputError, lambda: setattr(module, "w", torch.nn.ReLU()), "NumpyModule: got an attempt to set "),
        (RefitError, lambda: module.refit(mlp()[0]), "NumpyModule: got a module that was not deployed to be refitted"),
    ]
    for kind, call, text in refused:
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        assert str(caught.value).startswith(text)


def test_third_backend_handles_sizes_out_of_range() -> None:
    """Every policy is the wrapper's: chunks after a proof, or PyTorch's answer after a warning."""
    model, other = mlp()
    split = NumpyModule(other._artifact, runtime_config=t2e.RuntimeConfig(out_of_range="split"))
    assert prove_split_axes(split, [[sample(8, 6)]]) == ("axis 'batch' may be split: 8 entries answer like 5 + 3",)
    close(split(sample(20, 6)), model(sample(20, 6)))
    eager = NumpyModule(other._artifact, None, t2e.RuntimeConfig(out_of_range="eager"), model)
    with pytest.warns(UserWarning, match=r"PyTorch answers such calls"):
        close(eager(sample(20, 6)), model(sample(20, 6)))


def test_third_backend_is_benchmarked(module: NumpyModule) -> None:
    """The benchmark is a function of any deployed module."""
    report = module.benchmark(mlp()[0], sizes=[{"batch": 2}], rounds=2, calls=3, warmup=1)
    assert {row.candidate for row in report.rows} == {"numpy", "PyTorch eager"}
    assert report.parity is not None and report.parity.passed


def test_third_backend_is_copied_saved_and_loaded(module: NumpyModule, tmp_path: Path) -> None:
    """Copies, pickles, state_dicts and saved folders carry the artifact; a row in the table loads it."""
    model = mlp()[0]
    other = NumpyModule(t2e.export(Mlp(), sample(4, 6), {"x": {0: t2e.Axis("batch", 1, 4, 8)}}))
    other.load_state_dict(module.state_dict())
    for twin in (copy.copy(module), copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert twin._backend is not module._backend
        close(twin(sample(5, 6)), model(sample(5, 6)))
    path = module.save(tmp_path / "model.t2e")
    with pytest.MonkeyPatch.context() as patch:
        table = importlib.import_module("torch2engine.deployed.backend_table")
        patch.setattr(table, "BACKENDS", {"numpy": BackendEntry(OnnxArtifact, __name__, "NumpyModule"), **BACKENDS})
        loaded = t2e.load(path)
    assert type(loaded) is NumpyModule
    close(loaded(sample(5, 6)), model(sample(5, 6)))


def test_table_has_the_words_of_deploy() -> None:
    """deploy(runtime=...) takes the backends of the table, and "auto"."""
    assert sorted([*BACKENDS, "auto"]) == sorted(RUNTIMES)
    for entry in BACKENDS.values():
        assert issubclass(entry.module_class(), DeployedModule)
        assert getattr(t2e, entry.class_name) is entry.module_class()

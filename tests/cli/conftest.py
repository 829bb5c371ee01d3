"""A folder with a model, its exported form and its engine, made by the commands themselves; and a way to run one."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch2engine.cli.entry import main

NET = """
import torch


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten())


def drawn():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU(), torch.nn.Flatten())


def spoilt():
    model = make()
    with torch.no_grad():
        model[0].weight[0] *= 1.1
    return model


def broken():
    return torch.nn.Linear(2, 3)


number = 3
"""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What --json printed."""
        return json.loads(self.out)


Run = Callable[..., Ended]


def run_command(*words: str) -> Ended:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: net.py, net.t2e, net.onnx, engine.t2e and images.npz. The cache is one of its own."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    np.savez(folder / "images.npz", input=images)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        deploy = "deploy net.py:make --sample 8x3x32x32 --axis batch=1:8:32 --runtime onnxruntime -o net.t2e"
        deployed = run_command(*deploy.split())
        shutil.copyfile("net.t2e/model.onnx", "net.onnx")
        built = run_command(*["build", "net.onnx", "--axis", "batch=1:8:32", "-o", "engine.t2e"])
        shutil.copyfile("engine.t2e/model.plan", "net.engine")
        assert [(ended.code, ended.err) for ended in (deployed, built)] == [(0, ""), (0, "")]
        yield folder

"""Known pitfalls of the way from PyTorch to TensorRT, each as its user meets it; the number is that of its row."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import helper
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models, onnx_models, sample_artifacts
from tests.support.deploy_models import BATCH, Mlp, engine, sample, seeded
from tests.support.paths import REPOSITORY
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import (
    ArtifactError,
    DtypeError,
    DynamicAxisError,
    InputError,
    InstallationError,
    ShapeError,
    UnsupportedOperatorError,
)
from torch2engine.trt.bindings import find_tensorrt
from torch2engine.trt.gpu import CUDA_LIBRARIES

RTX = BuildConfig(flavour="tensorrt_rtx")


def line_of(kind: type, text: str) -> str:
    """ "FILE:LINE" of a line in a class of this file."""
    lines, start = inspect.getsourcelines(kind)
    return f"{__file__}:{start + next(number for number, line in enumerate(lines) if text in line)}"


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


def test_pitfall_03_strides_reach_the_answer() -> None:
    """A permuted image, a slice and an expanded row are answered as what they show, not as what lies in memory."""
    model = nn.Conv2d(3, 4, 3).eval()
    module = deploy_models.deploy(model, sample(4, 3, 6, 6), {"input": {0: t2e.Axis("batch", 1, 4, 8)}})
    images = (
        sample(5, 6, 6, 3).permute(0, 3, 1, 2),
        sample(8, 3, 12, 6)[::2, :, ::2],
        sample(3, 6, 6).expand(6, 3, 6, 6),
    )
    for image in images:
        assert not image.is_contiguous()
        close(module(image), model(image))


def test_pitfall_10_size_outside_every_profile_is_named_before_the_engine_sees_it() -> None:
    """Input, axis, size, ranges and the Axis that would allow it, instead of "no optimization profile"."""
    profiles = [{"batch": (1, 1, 1)}, {"batch": (8, 16, 32)}]
    module = deploy_models.deploy(seeded(Mlp), sample(8, 6), {"x": {0: "batch"}}, profiles=profiles)
    with pytest.raises(ShapeError) as caught:
        module(sample(64, 6))
    assert str(caught.value) == (
        "input 'x': got batch = 64; expected 1..1 or 8..32; redeploy with Axis('batch', 1, 1, 64)"
    )
    with pytest.raises(ShapeError) as gap:
        module(sample(4, 6))
    assert gap.value.got == "batch = 4"
    assert gap.value.name == "x"


class Wide(nn.Module):
    """Integers and doubles that a narrower dtype can't hold."""

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ids + 1, x * 3


def test_pitfall_11_wide_dtypes_come_back_whole_or_are_refused() -> None:
    """int64 beyond 2³¹ and the last digits of float64 survive; TensorRT, which has no float64, refuses it by name."""
    given = torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    module = deploy_models.deploy(Wide(), given)
    ids, x = torch.tensor([2**40 + 1, -(2**62), 7]), torch.tensor([1 + 2**-50, 1e300, 1e-300], dtype=torch.float64)
    found = module(ids, x)
    assert [tensor.dtype for tensor in found] == [torch.int64, torch.float64]
    assert torch.equal(found[0], ids + 1)
    assert torch.equal(found[1], x * 3)
    with pytest.raises(DtypeError) as caught:
        module(ids.double(), x)
    assert caught.value.name == "ids"
    with pytest.raises(DtypeError) as built:
        t2e.build(t2e.export(Wide(), given), config=RTX)
    assert str(built.value).startswith("input 'x': got dtype float64; expected one of float32, float16, ")


def test_pitfall_14_plan_of_another_version_or_gpu_is_refused_before_tensorrt_sees_it(tmp_path: Path) -> None:
    """The manifest decides; both sides and the line that rebuilds the engine are named."""
    path = engine().save(tmp_path / "model.t2e")
    manifest = json.loads((path / "manifest.json").read_text())
    here = Hardware(flavour="tensorrt_rtx", flavour_version=find_tensorrt("tensorrt_rtx").version, gpu="NVIDIA L4")
    EngineArtifact.load(path).check_hardware(here)
    manifest["hardware"]["flavour_version"] = "1.2.0.1"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError) as edited:
        t2e.load(path)
    assert "a manifest that was changed after it was written" in str(edited.value)
    (path / "manifest.json").write_bytes(sample_artifacts.sealed(manifest))
    with pytest.raises(ArtifactError) as caught:
        EngineArtifact.load(path).check_hardware(here)
    assert str(caught.value) == (
        f"artifact '{path}': got a plan of tensorrt_rtx 1.2.0.1; expected one of tensorrt_rtx "
        f"{here.flavour_version}, since a plan runs in its own version only; rebuild it here: "
        f"t2e.build('{path / 'model.onnx'}', ...)"
    )


def test_pitfall_15_progress_names_phases_and_counts_steps() -> None:
    """Whoever waits sees phases, steps and seconds; the last report is the end of the first phase."""
    events: list[tuple[str, int, int, float]] = []
    artifact = t2e.export(seeded(Mlp), sample(4, 6), BATCH)
    t2e.build(artifact, config=RTX, progress=lambda *event: events.append(event))
    phases = list(dict.fromkeys(phase for phase, *_ in events))
    assert phases[0] == "Building engine"
    assert len(phases) > 3
    assert events[-1][:2] == ("Building engine", events[-1][2])
    assert all(0 <= step <= steps for _, step, steps, _ in events)
    assert [seconds for *_, seconds in events] == sorted(seconds for *_, seconds in events)


class Head(nn.Module):
    """Shifted bytes, which TensorRT lacks."""

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return levels << 1


class Unsupported(nn.Module):
    """Two operators that TensorRT lacks, in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, x: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 2, self.head(levels), levels << 2


def test_pitfall_20_unsupported_operators_are_all_named_at_the_users_lines() -> None:
    """One error has every node that TensorRT can't build, with torch module and source line."""
    artifact = t2e.export(Unsupported(), (sample(4, 4), torch.arange(4, dtype=torch.uint8).view(2, 2)))
    with pytest.raises(UnsupportedOperatorError) as caught:
        t2e.build(artifact, config=RTX)
    assert [(node.op, node.module, node.source) for node in caught.value.nodes] == [
        ("BitShift", "head", line_of(Head, "levels << 1")),
        ("BitShift", "", line_of(Unsupported, "levels << 2")),
    ]
    title = find_tensorrt("tensorrt_rtx").title
    first, *lines = str(caught.value).splitlines()
    assert first == (
        f"{title}: got 2 nodes of the ONNX graph that it can't build; expected operators that it has; "
        "replace these operations in the model"
    )
    assert len(lines) == 2


WRONG_PROFILES: dict[str, tuple[Any, Any, str]] = {
    "opt above max": (
        "batch",
        [{"batch": (1, 64, 32)}],
        "axis 'batch': got min 1, opt 64, max 32; expected min <= opt <= max; give sizes in that "
        "order, e.g. Axis('batch', 1, 32, 64)",
    ),
    "no opt": (
        "batch",
        [{"batch": (1, 8)}],
        "profile of axis 'batch': got (1, 8); expected three ints (min, opt, max); e.g. {'batch': (1, 8, 32)}",
    ),
    "zero": (
        "batch",
        [{"batch": (0, 4, 8)}],
        "axis 'batch': got min = 0; expected an int of at least 1; an engine can't answer empty axes",
    ),
    "unknown axis": (
        "batch",
        [{"rows": (1, 4, 8)}],
        "profiles: got no axis named 'rows'; expected one of batch; use one of these names",
    ),
    "outside its Axis": (
        t2e.Axis("batch", 1, 4, 8),
        [{"batch": (1, 4, 16)}],
        "axis 'batch': got (1, 4, 16) in a profile; expected 1..8, as its Axis says; widen the Axis, "
        "or leave the range to the profiles by naming the axis only",
    ),
}


@pytest.mark.parametrize("what", WRONG_PROFILES)
def test_pitfall_23_wrong_profile_is_refused_before_any_work(what: str) -> None:
    """A profile that TensorRT would refuse after the export is refused when it is given."""
    axis, profiles, text = WRONG_PROFILES[what]
    with pytest.raises(DynamicAxisError) as caught:
        deploy_models.deploy(seeded(Mlp), sample(4, 6), {"x": {0: axis}}, profiles=profiles)
    assert str(caught.value) == text


def test_pitfall_23_input_that_decides_shapes_is_refused(tmp_path: Path) -> None:
    """A shape tensor among the inputs, which would need values in its profile, is named."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    path = onnx_models.save(
        tmp_path / "shape.onnx",
        [node],
        {"x": (onnx_models.FLOAT, [4, 6]), "shape": (onnx_models.INT64, [2])},
        {"y": (onnx_models.FLOAT, ["a", "b"])},
    )
    with pytest.raises(InputError) as caught:
        t2e.build(path, config=RTX)
    assert str(caught.value).startswith("input 'shape': ")


DEPLOY = """
import json, sys
sys.path[:0] = {folders!r}
import torch, torch2engine as t2e
from tests.support.deploy_models import Mlp
from torch2engine.trt.gpu import CUDA_LIBRARIES
try:
    t2e.deploy(Mlp(), torch.zeros(4, 6), config=t2e.BuildConfig(flavour={flavour!r}))
except t2e.InstallationError as error:
    print(json.dumps([str(error), "torch.onnx._internal.exporter._core" in sys.modules]))
"""


def deployed(folders: Sequence[Path], flavour: str, **environment: str) -> Any:
    """What the InstallationError of a deploy() in a fresh process says, and whether torch.onnx was at work by then."""
    code = DEPLOY.format(folders=[*map(str, folders), str(REPOSITORY)], flavour=flavour)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_pitfall_28_library_that_cannot_be_opened_is_named_with_the_install_line(tmp_path: Path) -> None:
    """The loader's own words, what is installed, and the exact line that mends it."""
    (tmp_path / "tensorrt").mkdir()
    reason = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt" / "__init__.py").write_text(f"raise OSError({reason!r})\n")
    text, exported = deployed([tmp_path], "tensorrt")
    assert text.startswith(f"TensorRT: got tensorrt that can't be loaded: '{reason}' (installed: tensorrt_rtx ")
    assert text.endswith(
        "); expected an installed one; `pip install 'torch2engine[tensorrt]'"
        "`, or deploy with runtime='onnxruntime' to run on the CPU"
    )
    assert not exported


DRIVER = r"""
int cuInit(unsigned flags) { return 35; }
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_INSUFFICIENT_DRIVER"; return 0; }
"""


def test_pitfall_29_driver_that_is_too_old_is_named_before_any_work(tmp_path: Path) -> None:
    """A driver that refuses to start (CUDA's error 35) is found first, not by a builder that is nothing."""
    (tmp_path / "driver.c").write_text(DRIVER)
    library = str(tmp_path / Path(CUDA_LIBRARIES[0]).name)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, str(tmp_path / "driver.c")], check=True)
    text, exported = deployed([], "tensorrt_rtx", LD_LIBRARY_PATH=str(tmp_path))
    assert text == (
        "NVIDIA driver: got CUDA_ERROR_INSUFFICIENT_DRIVER when it starts; expected a driver that "
        "starts; check that `nvidia-smi` works and that CUDA_VISIBLE_DEVICES shows the GPU"
        ", or deploy with runtime='onnxruntime' to run on the CPU"
    )
    assert not exported


def test_pitfall_29_missing_gpu_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the text says what to install."""
    deploy_models.hide_gpu(monkeypatch)
    with pytest.raises(InstallationError) as caught:
        t2e.deploy(seeded(Mlp), sample(4, 6))
    assert caught.value.fix == (
        "install the driver until `nvidia-smi` lists the GPU; start a container with `--gpus all`"
        ", or deploy with runtime='onnxruntime' to run on the CPU"
    )


class Found(nn.Module):
    """A result whose size depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).nonzero()


def test_pitfall_34_shape_that_depends_on_values_is_named() -> None:
    """No runtime gets such a size, not even one that could have it: the node and the user's line are in the error."""
    for call in (t2e.export, partial(t2e.deploy, runtime="onnxruntime")):
        with pytest.raises(UnsupportedOperatorError) as caught:
            call(Found(), sample(4, 6), {"x": [0]})
        (node,) = caught.value.nodes
        assert (node.op, node.source) == ("aten.nonzero", line_of(Found, "nonzero()"))
        assert node.name in str(caught.value)


def test_pitfall_39_external_weights_go_wherever_the_model_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights beside the graph, check, save, load, build and a save of the engine lose none of them."""
    monkeypatch.setattr(importlib.import_module("torch2engine.exporter.export_onnx"), "EXTERNAL_ABOVE_BYTES", 0)
    model = nn.Linear(64, 128).eval()
    artifact = t2e.export(model, sample(4, 64), {"input": {0: t2e.Axis("batch", 1, 4, 8)}})
    assert artifact.onnx_path.with_name("model.onnx.data").stat().st_size >= 4 * 64 * 128
    assert t2e.check(model, artifact, sample(4, 64)).passed
    loaded = t2e.load(artifact.save(tmp_path / "onnx.t2e"))
    close(loaded(sample(7, 64)), model(sample(7, 64)))
    built = t2e.build(artifact, config=RTX)
    assert len(built.read_plan()) >= 4 * 64 * 128
    assert set(EngineArtifact.load(built.save(tmp_path / "engine.t2e")).files) >= {"model.onnx", "model.onnx.data"}

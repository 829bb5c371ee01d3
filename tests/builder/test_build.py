"""`build` with the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import helper

from tests.support import onnx_models
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.builder import child_process
from torch2engine.builder import plan as plan_room
from torch2engine.builder.build import build
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import (
    ArtifactError,
    BuildError,
    DynamicAxisError,
    InputError,
    InstallationError,
    UnsupportedNode,
    UnsupportedOperatorError,
)
from torch2engine.core.spec import Axis, Profile, TensorSpec, Tree
from torch2engine.trt.bindings import find_tensorrt

TITLE = find_tensorrt("tensorrt_rtx").title


def test_build_gives_a_plan_with_its_signature(tmp_path: Path) -> None:
    """An ONNX file becomes an engine that knows its names, dtypes, axes, profiles and where it was built."""
    engine = build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)})
    assert engine.plan_path.stat().st_size > 1000
    assert engine.signature.inputs == (TensorSpec("x", "float32", ("batch", 4)),)
    assert engine.signature.outputs == (TensorSpec("y", "float32", ("batch", 4)),)
    assert engine.signature.axes == (Axis("batch", 1, 8, 32),)
    assert engine.signature.output == Tree("tensor")
    assert engine.profiles == (Profile({"batch": (1, 8, 32)}),)
    assert engine.precision == "fp32"
    assert (engine.hardware.flavour, engine.hardware.flavour_version) == ("tensorrt_rtx", find_tensorrt().version)
    assert engine.onnx_path is not None
    assert engine.onnx_path.read_bytes() == (tmp_path / "relu.onnx").read_bytes()


def test_build_of_a_torch_cnn_with_two_profiles(tmp_path: Path) -> None:
    """A network as torch.onnx.export leaves it builds with several profiles."""
    path = onnx_models.torch_export(
        onnx_models.Cnn(), (torch.randn(2, 3, 16, 16),), tmp_path / "cnn.onnx", [{0: "batch"}]
    )
    engine = build(path, [{"batch": (1, 1, 1)}, {"batch": (2, 8, 64)}])
    assert engine.profiles == (Profile({"batch": (1, 1, 1)}), Profile({"batch": (2, 8, 64)}))
    assert engine.signature.axes == (Axis("batch", 1, 1, 64),)
    assert engine.versions["producer"].startswith("pytorch 2.")


def test_build_of_a_torch_module_with_two_inputs_and_outputs(tmp_path: Path) -> None:
    """Several outputs come as a dict by name; an axis of one name is one axis."""
    sample = (torch.randn(2, 8), torch.randn(2, 4))
    path = onnx_models.torch_export(
        onnx_models.TwoInputs(), sample, tmp_path / "two.onnx", [{0: "batch"}, {0: "batch"}]
    )
    engine = build(path, {"batch": (1, 4, 16)})
    assert [spec.shape for spec in engine.signature.inputs] == [("batch", 8), ("batch", 4)]
    names = tuple(spec.name for spec in engine.signature.outputs)
    assert engine.signature.output == Tree("dict", names, (Tree("tensor"), Tree("tensor")))
    assert [parameter.name for parameter in engine.signature.parameters] == ["a", "b"]


def test_build_again_from_an_artifacts_own_onnx(tmp_path: Path) -> None:
    """The ONNX kept beside a plan builds the same plan, which a rebuild on other hardware rests on."""
    engine = build(onnx_models.matmul(tmp_path), {"batch": (1, 8, 32)})
    assert engine.onnx_path is not None
    again = build(engine.onnx_path, engine.profiles)
    assert (again.signature, again.profiles) == (engine.signature, engine.profiles)
    assert len(again.read_plan()) == pytest.approx(len(engine.read_plan()), rel=0.01)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True)])
def test_build_sets_tf32_by_precision_alone(precision: str, allowed: bool) -> None:
    """The builder's own default is TF32; "fp32" clears the flag and "tf32" sets it, on a real builder's config."""
    rt = find_tensorrt("tensorrt_rtx")
    builder = rt.api.Builder(rt.logger)
    flag = rt.api.BuilderFlag.TF32
    assert builder.create_builder_config().get_flag(flag)
    build = plan_room._PlanBuild(rt, plan_request(precision=precision), rt.log.mark())
    assert plan_room._configure(build, builder).get_flag(flag) is allowed


def plan_request(**changes: Any) -> Any:
    """What a builder's config is made of."""
    plain = {"precision": "fp32", "workspace_bytes": None, "refittable": False, "compute_capabilities": ()}
    return SimpleNamespace(**{**plain, "hardware_compatibility": None, **changes})


@pytest.mark.parametrize("level", ["same_compute_capability", "ampere_plus"])
def test_hardware_compatibility_that_is_not_taken_is_an_error(level: str) -> None:
    """TensorRT-RTX is refused before it is asked. What a builder's config ignores, as RTX's does, is noticed."""
    rt = find_tensorrt("tensorrt_rtx")
    request = plan_request(hardware_compatibility=level)
    builder = rt.api.Builder(rt.logger)
    with pytest.raises(InputError) as refused:
        plan_room._configure(plan_room._PlanBuild(rt, request, rt.log.mark()), builder)
    assert str(refused.value) == (
        f"BuildConfig.hardware_compatibility: got {level!r} with {TITLE}; expected None: its plans run on several "
        "GPUs anyway; leave it out, or name GPUs in compute_capabilities"
    )
    with pytest.raises(BuildError, match=f"got {level!r}, which {TITLE} does not take; expected a level") as ignored:
        plan_room._configure(plan_room._PlanBuild(replace(rt, is_rtx=False), request, rt.log.mark()), builder)
    assert "setHardwareCompatibilityLevel() is unsupported" in str(ignored.value.log)


def test_engine_is_built_for_named_gpus(tmp_path: Path) -> None:
    """The plan is another one, says so after a cache and a save, and is refused on other GPUs."""
    path = onnx_models.matmul(tmp_path)
    config = BuildConfig(flavour="tensorrt_rtx", compute_capabilities=((7, 5), (8, 6)))
    engines = [build(path, {"batch": (1, 8, 32)}, config=config, cache=tmp_path / "cache") for _ in range(2)]
    usual = build(path, {"batch": (1, 8, 32)}, config=BuildConfig(flavour="tensorrt_rtx"), cache=tmp_path / "cache")
    assert engines[0].plan_sha256 == engines[1].plan_sha256 != usual.plan_sha256
    assert len(engines[0].read_plan()) > len(usual.read_plan())
    assert usual.hardware.compute_capabilities == ()
    for engine in (*engines, EngineArtifact.load(engines[0].save(tmp_path / "engine.t2e"))):
        assert engine.hardware.compute_capabilities == ((7, 5), (8, 6))
        engine.check_hardware(replace(engine.hardware, compute_capability=(8, 6)))
        with pytest.raises(ArtifactError, match=r"compute capability 7\.5 or 8\.6; expected one for 9\.0"):
            engine.check_hardware(replace(engine.hardware, compute_capability=(9, 0)))


def test_gpus_that_nothing_is_built_for_are_refused(tmp_path: Path) -> None:
    """With those that this TensorRT can build for."""
    config = BuildConfig(flavour="tensorrt_rtx", compute_capabilities=((8, 6), (6, 1)))
    with pytest.raises(InputError) as caught:
        build(onnx_models.matmul(tmp_path), {"batch": (1, 8, 32)}, config=config)
    assert str(caught.value) == (
        f"BuildConfig.compute_capabilities: got (6, 1) with {TITLE}; expected those that it can build for: (7, 5), "
        "(8, 0), (8, 6), (8, 9), (12, 0), (12, 1); pass some of these, or leave it out"
    )


@pytest.mark.parametrize("override", ["0", "1", None])
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_engine_computes_in_what_was_asked_whatever_the_environment_says(
    precision: str, override: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder's process has the variable for float32 alone; this process keeps its own value."""
    environments: list[Any] = []
    popen = subprocess.Popen

    def spying_popen(*args: Any, **options: Any) -> Any:
        environments.append(options["env"])
        return popen(*args, **options)

    if override is None:
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    else:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    monkeypatch.setattr(child_process.subprocess, "Popen", spying_popen)
    engine = build(onnx_models.matmul(tmp_path), {"batch": (1, 8, 32)}, precision=precision)
    assert engine.precision == precision
    assert [environment.get("NVIDIA_TF32_OVERRIDE") for environment in environments] == [
        "0" if precision == "fp32" else None
    ]
    assert os.environ.get("NVIDIA_TF32_OVERRIDE") == override


def test_pitfall_20_every_unsupported_node_is_listed_at_once(tmp_path: Path) -> None:
    """Three operators that TensorRT lacks are three entries, with module and source line where they are known."""
    with pytest.raises(UnsupportedOperatorError) as caught:
        build(onnx_models.unsupported(tmp_path), {"batch": (1, 2, 4)})
    assert caught.value.nodes == (
        UnsupportedNode("Det", "det", "head.volume", "model.py:12", "no importer or unsupported dtype/attribute"),
        UnsupportedNode(
            "BitwiseNot", "invert", "head.mask", "model.py:31", "no importer or unsupported dtype/attribute"
        ),
        UnsupportedNode("Mystery", "mystery", "", "", "Op type Mystery is not supported in TensorRT-RTX."),
    )
    assert str(caught.value).splitlines()[:2] == [
        (
            f"{TITLE}: got 3 nodes of the ONNX graph that it can't build; expected operators that it has; "
            "replace these operations in the model"
        ),
        "  Det (det) in module 'head.volume' at model.py:12: no importer or unsupported dtype/attribute",
    ]


def test_out_of_workspace_is_named_as_memory(tmp_path: Path) -> None:
    """A workspace of one byte is no riddle: the error says memory, and which knob."""
    with pytest.raises(BuildError) as caught:
        build(onnx_models.matmul(tmp_path), {"batch": (1, 8, 32)}, config=BuildConfig(workspace_bytes=1))
    assert caught.value.out_of_memory
    assert str(caught.value).splitlines()[0] == (
        f"{TITLE}: got too little memory; expected more of it; raise workspace_bytes (it is 1), or "
        "lower the largest sizes of the profiles (batch 1..32 (opt 8)), or free GPU memory"
    )
    assert any("workspace limit" in line for line in caught.value.log)


def test_a_node_without_implementation_is_a_build_error_with_tensorrts_lines(tmp_path: Path) -> None:
    """What parses but can't be built is told in TensorRT's words, with what to do."""
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["chosen"], name="nms")
    path = onnx_models.save(
        tmp_path / "nms.onnx",
        [node],
        {"boxes": (onnx_models.FLOAT, [1, 8, 4]), "scores": (onnx_models.FLOAT, [1, 1, 8])},
        {"chosen": (onnx_models.INT64, ["found", 3])},
    )
    with pytest.raises(BuildError) as caught:
        build(path)
    assert not caught.value.out_of_memory
    assert str(caught.value).splitlines()[0] == (
        f"{TITLE}: got no engine; expected one; this TensorRT has no implementation of that node; replace it"
    )
    assert "nms" in caught.value.log[0]


def test_a_build_that_names_a_node_tells_its_line(tmp_path: Path) -> None:
    """TensorRT's TopK has a limit that its parser does not know: the operator, its module and its line are told."""
    node = helper.make_node("TopK", ["x", "count"], ["values", "places"], name="sort_long")
    for key, value in (("torch2engine.module", "head.order"), ("torch2engine.source", "model.py:7")):
        node.metadata_props.add(key=key, value=value)
    outputs = {"values": (onnx_models.FLOAT, [4000]), "places": (onnx_models.INT64, [4000])}
    inputs = {"x": (onnx_models.FLOAT, [4000])}
    path = onnx_models.save(tmp_path / "topk.onnx", [node], inputs, outputs, {"count": [4000]})
    with pytest.raises(BuildError) as caught:
        build(path)
    first, *_, last = str(caught.value).splitlines()
    assert first == f"{TITLE}: got no engine; expected one; replace the named operation in the model"
    assert last == "  from TopK (sort_long) in module 'head.order' at model.py:7"


def test_an_input_that_decides_shapes_is_refused(tmp_path: Path) -> None:
    """An engine's profiles hold sizes, not values: such an input is named, with two ways out."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    path = onnx_models.save(
        tmp_path / "reshape.onnx",
        [node],
        {"x": (onnx_models.FLOAT, ["batch", 4]), "shape": (onnx_models.INT64, [2])},
        {"y": (onnx_models.FLOAT, ["rows", "columns"])},
    )
    with pytest.raises(InputError) as caught:
        build(path, {"batch": (1, 2, 4)})
    assert str(caught.value) == (
        "input 'shape': got values that decide shapes inside the network; expected inputs that are "
        "data; make it a constant, or take the size from another input's dynamic axis"
    )


def test_pitfall_24_unused_inputs_and_constant_outputs_build(tmp_path: Path) -> None:
    """Neither an input that nothing reads nor an output that no input feeds stops a build."""
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["z"])]
    path = onnx_models.save(
        tmp_path / "odd.onnx",
        nodes,
        {"x": (onnx_models.FLOAT, ["batch", 4]), "unused": (onnx_models.FLOAT, [3])},
        {"y": (onnx_models.FLOAT, ["batch", 4]), "z": (onnx_models.FLOAT, [2])},
        {"c": [1.0, 2.0]},
    )
    engine = build(path, {"batch": (1, 2, 4)})
    assert [spec.name for spec in engine.signature.inputs] == ["x", "unused"]


def test_an_axis_that_the_graph_fixes_is_an_error(tmp_path: Path) -> None:
    """A signature that promises an axis which the network doesn't have is refused, not narrowed."""
    from torch2engine.builder.child_process import compile_in_child
    from torch2engine.builder.plan import PlanRequest

    engine = build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)})
    request = PlanRequest(
        onnx_path=str(onnx_models.relu(tmp_path, (8, 4))),
        plan_path=str(tmp_path / "plan"),
        signature=engine.signature,
        profiles=engine.profiles,
        precision="fp32",
    )
    with pytest.raises(DynamicAxisError) as caught:
        compile_in_child(request, lambda phase, step, steps: None)
    assert str(caught.value) == (
        "axis 'batch': got the size 8, fixed in the ONNX graph (dimension 0 of input 'x'); expected "
        "a symbolic dimension; export with that dimension dynamic"
    )
    assert caught.value.axis == "batch"


def test_flavour_that_is_missing_is_an_installation_error(tmp_path: Path) -> None:
    """Asking for a flavour by name never builds with the other."""
    (tmp_path / "tensorrt").mkdir()
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(InstallationError) as caught:
            build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, config=BuildConfig(flavour="tensorrt"))
    finally:
        sys.path.remove(str(tmp_path))
    assert str(caught.value).endswith("); expected an installed one; `pip install 'torch2engine[tensorrt]'`")


def test_source_of_another_kind_is_refused() -> None:
    """A torch module is not what build takes, and the message says where it goes."""
    wrong: Any = torch.nn.Linear(2, 2)
    with pytest.raises(InputError) as caught:
        build(wrong)
    assert str(caught.value) == (
        "build's source: got a Linear; expected an OnnxArtifact or the path of an ONNX file; for a "
        "torch module use deploy, or export it first"
    )


def test_unknown_precision_is_refused(tmp_path: Path) -> None:
    """The words are listed."""
    with pytest.raises(InputError) as caught:
        build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, precision="fp8")
    assert str(caught.value) == (
        "precision: got 'fp8'; expected one of 'fp32', 'tf32', the builder's own; export the model in it, "
        "torch2engine.export(..., precision='fp8'), and build that"
    )


def test_progress_reports_phases_from_begin_to_end(tmp_path: Path) -> None:
    """Each phase begins at 0, ends at its steps, and time runs forwards."""
    events: list[tuple[str, int, int, float]] = []
    build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, progress=lambda *event: events.append(event))
    assert events[0][:2] == ("Building engine", 0)
    assert events[-1][0] == "Building engine"
    assert events[-1][1] == events[-1][2]
    for name in {event[0] for event in events}:
        mine = [event for event in events if event[0] == name]
        assert mine[0][1] == 0
        assert mine[-1][1] == mine[-1][2]
        assert sum(step == 0 for _, step, _, _ in mine) == sum(step == steps for _, step, steps, _ in mine)
    seconds = [event[3] for event in events]
    assert seconds == sorted(seconds)


def test_progress_that_returns_false_cancels(tmp_path: Path) -> None:
    """The build ends at once, with an error that says who ended it."""
    with pytest.raises(BuildError) as caught:
        build(
            onnx_models.deep(tmp_path, 100),
            onnx_models.DEEP_RANGES,
            progress=lambda phase, *_: phase != "Optimizing graph",
        )
    assert str(caught.value) == (
        "build: got False from progress in 'Optimizing graph'; expected another value, since False "
        "cancels; return None to go on"
    )


def test_progress_that_raises_ends_the_build(tmp_path: Path) -> None:
    """The callable's own exception arrives, unlike in TensorRT's bindings, which swallow it."""

    def fail(phase: str, step: int, steps: int, seconds: float) -> None:
        raise LookupError(phase)

    with pytest.raises(LookupError, match="Building engine"):
        build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, progress=fail)


def test_tensorrts_warnings_reach_pythons_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of the builder's process are logged in this one."""
    path = onnx_models.relu(tmp_path, dtype=onnx_models.INT64)
    with caplog.at_level(logging.WARNING, "torch2engine.tensorrt"):
        build(path, {"batch": (1, 8, 32)})
    assert any("Int64" in record.message for record in caplog.records)


def test_threads_may_build_side_by_side(tmp_path: Path) -> None:
    """Builds from several threads all succeed; they take turns."""
    path = onnx_models.relu(tmp_path)
    engines: list[EngineArtifact] = []
    threads = [threading.Thread(target=lambda: engines.append(build(path, {"batch": (1, 8, 32)}))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = [len(engine.read_plan()) for engine in engines]
    assert min(sizes) == pytest.approx(max(sizes), rel=0.01)
    assert len(engines) == 3


def test_a_file_that_changes_later_does_not_reach_the_artifact(tmp_path: Path) -> None:
    """The artifact holds its own copy of a foreign file: training goes on and exports over it."""
    path = onnx_models.relu(tmp_path)
    before = path.read_bytes()
    engine = build(path, {"batch": (1, 8, 32)})
    with path.open("r+b") as file:
        file.write(b"something else")
    assert engine.onnx_path is not None
    assert engine.onnx_path.read_bytes() == before


def test_saved_engine_loads_again(tmp_path: Path) -> None:
    """What build returns can be saved as a folder and loaded with every byte checked."""
    engine = build(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)})
    engine.save(tmp_path / "model.t2e")
    loaded = EngineArtifact.load(tmp_path / "model.t2e")
    assert loaded.read_plan() == engine.read_plan()
    assert loaded.signature == engine.signature


def test_missing_file_is_an_artifact_error(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(ArtifactError) as caught:
        build(tmp_path / "none.onnx")
    assert str(caught.value) == (
        f"'{tmp_path / 'none.onnx'}': got no such file; expected an ONNX file; give the path of one"
    )
    assert caught.value.path == str(tmp_path / "none.onnx")

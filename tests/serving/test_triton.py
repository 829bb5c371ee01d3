"""`export_triton`: the configuration by Triton's rules, the files, and what is refused.

`benchmarks/triton_server.py` serves such a model by the real server, and parses the text by its protobuf.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import torch2engine as t2e
from tests.support.deploy_models import engine, mlp
from tests.support.sample_artifacts import HARDWARE, fresh_engine
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.spec import Axis, Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.serving.triton_config import config_text

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 2))
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int4": TensorProto.INT4}


def refusal(kind: type[Exception], *args: Any, **kwargs: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        t2e.export_triton(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def exported(
    folder: Path,
    *specs: TensorSpec,
    profiles: tuple[Profile, ...] = (Profile({"batch": (1, 4, 8)}),),
    influences: Mapping[str, str | None] | None = None,
    weight: str = "float32",
) -> t2e.OnnxArtifact:
    """An exported model; the last tensor is its output. Its file has only a weight, since nothing runs it."""
    tensor = helper.make_tensor("w", TYPES[weight], [2], [1, 1])
    model = helper.make_model(helper.make_graph([], "graph", [], [], [tensor]))
    onnx.save(model, str(folder / "model.onnx"))
    names = {name for profile in profiles for name in profile.ranges}
    sizes = {name: [profile.ranges[name] for profile in profiles] for name in names}
    axes = tuple(
        Axis(name, min(r[0] for r in all_), all_[0][1], max(r[2] for r in all_)) for name, all_ in sizes.items()
    )
    parameters = tuple(Parameter(spec.name, "positional", Tree("tensor")) for spec in specs[:-1])
    signature = Signature(inputs=specs[:-1], outputs=specs[-1:], axes=axes, parameters=parameters)
    analysed = dict.fromkeys(names) if influences is None else influences
    return t2e.OnnxArtifact(
        folder, signature=signature, profiles=profiles, precision="fp32", influences=analysed or None
    )


def lines(artifact: Any, backend: str = "tensorrt", **options: Any) -> str:
    """A configuration in one line, without its beginning."""
    text = config_text(artifact, "m", backend, **options)
    return " ".join(text.partition("max_batch_size: ")[2].split())


def test_requests_are_merged_along_the_batch(tmp_path: Path) -> None:
    """The whole text: dims without the batch, the largest batch, and the sizes that the profiles are made for."""
    folder = t2e.export_triton(mlp()[1]._artifact, tmp_path / "models", "mlp", max_wait_s=0.002, instances=2)
    assert folder == tmp_path / "models" / "mlp"
    assert (folder / "config.pbtxt").read_text() == (
        "# fp32; requests are merged along 'batch'\n"
        'name: "mlp"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 8\n"
        "input [\n"
        '  { name: "x" data_type: TYPE_FP32 dims: [ 6 ] }\n'
        "]\n"
        "output [\n"
        '  { name: "output" data_type: TYPE_FP32 dims: [ 3 ] }\n'
        "]\n"
        "instance_group [ { count: 2 kind: KIND_AUTO } ]\n"
        "dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2000 }\n"
    )
    assert [path.name for path in (folder / "1").iterdir()] == ["model.onnx"]
    assert (folder / "1" / "model.onnx").read_bytes() == mlp()[1]._artifact.read("model.onnx")


def test_requests_are_answered_alone_where_rows_can_not_be_merged(tmp_path: Path) -> None:
    """Whoever merged them would change answers, or get sizes that no profile has; the first line says why."""

    def first_line(artifact: Any) -> str:
        text = config_text(artifact, "m", "onnxruntime")
        assert "max_batch_size: 0\n" in text
        assert "dynamic_batching" not in text
        return text.partition("\n")[0].removeprefix("# fp32; requests are answered alone, since ")

    least = exported(tmp_path, X, Y, profiles=(Profile({"batch": (4, 4, 8)}), Profile({"batch": (5, 6, 9)})))
    assert first_line(least) == "the least 'batch' is 4, and Triton fills nothing up"
    shared = exported(tmp_path, X, TensorSpec("scale", "float32", (3,)), Y)
    assert first_line(shared) == "'scale: float32[3]' does not begin with 'batch'"
    mixing = exported(tmp_path, X, Y, influences={"batch": "ReduceMean"})
    assert first_line(mixing) == "the entries of 'batch' may influence each other: ReduceMean"
    foreign = exported(tmp_path, X, Y, influences={})
    assert first_line(foreign) == "nobody has analysed whether the entries of 'batch' influence each other"
    fixed = exported(tmp_path, TensorSpec("x", "float32", (4, 3)), TensorSpec("y", "int32", (4,)), profiles=())
    assert first_line(fixed) == "'x: float32[4, 3]' begins with no dynamic axis"
    square = exported(tmp_path, X, TensorSpec("y", "float32", ("batch", "batch")))
    assert first_line(square) == "another size of 'y: float32[batch, batch]' follows from 'batch'"
    assert 'dims: [ -1, 3 ] } ] output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ]' in lines(mixing)


def test_rows_without_further_dimensions_are_reshaped(tmp_path: Path) -> None:
    """Triton has no empty dims: a client sends (n, 1), and the model gets (n,)."""
    text = lines(exported(tmp_path, X, TensorSpec("y", "int64", ("batch",))))
    assert 'output [ { name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } } ]' in text


def test_sizes_that_change_are_left_open(tmp_path: Path) -> None:
    """An input's size is given where all profiles have one; an output's is open wherever the engine's is."""
    profile = Profile({"batch": (1, 4, 8), "width": (5, 5, 5), "height": (1, 2, 3)})
    inputs = TensorSpec("x", "bfloat16", ("batch", "width", "height", "2*height"))
    text = lines(exported(tmp_path, inputs, TensorSpec("y", "bool", ("batch", "width")), profiles=(profile,)))
    assert text.startswith('8 input [ { name: "x" data_type: TYPE_BF16 dims: [ 5, -1, -1 ] } ] output [ { name: "y" ')
    assert "data_type: TYPE_BOOL dims: [ -1 ]" in text


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(1, 4, 8), (1, 1, 1)], ("8", "[ 4, 8 ]", "")),
        ([(1, 1, 1), (1, 4, 8)], ("8", "[ 4, 8 ]", 'profile: [ "1" ]')),
        ([(1, 2, 4), (2, 8, 16)], ("4", "[ 2, 4 ]", 'profile: [ "0", "1" ]')),
        ([(1, 4, 8), (1, 4, 8)], ("8", "[ 4, 8 ]", "")),
        ([(1, 1, 8)], ("8", "[ 8 ]", "")),
    ],
)
def test_profiles_are_those_that_no_other_contains(
    tmp_path: Path, ranges: list[tuple[int, int, int]], expected: tuple[str, str, str]
) -> None:
    """A batch that is too large for one of the named profiles fails the load, so contained ones are not named."""
    profiles = tuple(Profile({"batch": sizes}) for sizes in ranges)
    text = lines(exported(tmp_path, X, Y, profiles=profiles))
    largest, preferred, named = expected
    assert text.startswith(f"{largest} input")
    assert f"preferred_batch_size: {preferred}" in text
    assert text.partition("kind: KIND_GPU ")[2].startswith(f"{named} }} ]".lstrip())
    assert "profile" not in lines(exported(tmp_path, X, Y, profiles=profiles), "onnxruntime")


def test_single_rows_need_no_batching(tmp_path: Path) -> None:
    """At a largest batch of 1 nothing is merged."""
    text = lines(exported(tmp_path, X, Y, profiles=(Profile({"batch": (1, 1, 1)}),)))
    assert text.startswith("1 input")
    assert "dynamic_batching" not in text


@pytest.mark.parametrize(("weight", "level"), [("float32", ""), ("float16", "1"), ("int4", "2")])
def test_optimizer_of_onnxruntime_is_held_back_for_low_types(tmp_path: Path, weight: str, level: str) -> None:
    """Its highest level crashes on half attention, and makes graphs with int4 or float8 wrong."""
    model = exported(tmp_path, X, Y, weight=weight)
    text = (t2e.export_triton(model, tmp_path / "models", "m") / "config.pbtxt").read_text()
    assert ("optimization" in text) == bool(level)
    assert f"optimization {{ graph {{ level: {level} }} }}" in text or not level


def test_engines_for_several_gpus_are_one_model(tmp_path: Path) -> None:
    """Triton chooses the plan by the compute capability; the plans are bare, and nothing else is copied."""
    ampere = dataclasses.replace(HARDWARE, gpu="NVIDIA A100", compute_capability=(8, 0))
    engines = [fresh_engine(tmp_path / "h", plan=b"h"), fresh_engine(tmp_path / "a", hardware=ampere, plan=b"a")]
    folder = t2e.export_triton(engines, tmp_path / "models", "m", 3)
    files = {path.name: path.read_bytes() for path in (folder / "3").iterdir()}
    assert files == {"model_9.0.plan": b"h of an ONNX model", "model_8.0.plan": b"a of an ONNX model"}
    text = (folder / "config.pbtxt").read_text()
    assert 'cc_model_filenames [ { key: "9.0" value: "model_9.0.plan" } ]\n' in text
    assert text.endswith('cc_model_filenames [ { key: "8.0" value: "model_8.0.plan" } ]\n')
    bundled = t2e.export_triton(t2e.bundle(tmp_path / "bundle.t2e", engines), tmp_path / "models", "bundled")
    assert {path.name: path.read_bytes() for path in (bundled / "1").iterdir()} == files
    alone = t2e.export_triton(engines[0], tmp_path / "models", "alone")
    assert (alone / "1" / "model.plan").read_bytes() == b"h of an ONNX model"
    assert "cc_model_filenames" not in (alone / "config.pbtxt").read_text()


def test_engine_goes_to_onnxruntime_by_its_graph(tmp_path: Path) -> None:
    """The ONNX and its data files lie beside each other, and no plan."""
    saved = engine().save(tmp_path / "engine.t2e")
    folder = t2e.export_triton(saved, tmp_path / "models", "m", backend="onnxruntime")
    assert [path.name for path in (folder / "1").iterdir()] == ["model.onnx"]


def test_next_version_has_the_same_configuration(tmp_path: Path) -> None:
    """It is put beside the first, whatever the precision; no version is replaced, and no configuration changed."""
    models = tmp_path / "models"
    first, other = mlp()[1]._artifact, exported(tmp_path, X, Y, influences={})
    folder = t2e.export_triton(first, models, "m")
    config = (folder / "config.pbtxt").read_text()
    t2e.export_triton(first.replace(precision="tf32"), models, "m", 2)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "config.pbtxt"]
    assert (folder / "config.pbtxt").read_text() == config
    assert refusal(t2e.ArtifactError, first, models, "m", 2) == (
        f"Triton model '{folder / '2'}': got something at that path; expected a new version, since a server may read "
        "the other one now; pass the next version"
    )
    message = refusal(t2e.ArtifactError, other, models, "m", 3)
    assert message == (
        f"Triton model '{folder}': got config.pbtxt with 'max_batch_size: 8'; expected the same configuration for all "
        "versions of a model; export it under another name, or move config.pbtxt away, and a new one is written"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "config.pbtxt"]
    (folder / "config.pbtxt").unlink()  # the fix works
    t2e.export_triton(other, models, "m", 3)
    assert "max_batch_size: 0\n" in (folder / "config.pbtxt").read_text()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    """A file that was changed since it was loaded is refused, and the repository is as it was."""
    models = tmp_path / "models"
    model = t2e.OnnxArtifact.load(mlp()[1].save(tmp_path / "mlp.t2e"))
    t2e.export_triton(model, models, "kept")
    before = sorted(models.rglob("*"))
    with (tmp_path / "mlp.t2e" / "model.onnx").open("r+b") as file:
        file.write(b"other")
    assert "artifact '" in refusal(t2e.ArtifactError, model, models, "m")
    assert "artifact '" in refusal(t2e.ArtifactError, model, models, "kept", 2)
    assert sorted(models.rglob("*")) == before


def test_failure_leaves_the_configuration_to_another_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two exports of one new model: the first fails while the second writes its version, which needs config.pbtxt."""
    models = tmp_path / "models"
    model = mlp()[1]._artifact
    first_writes, second_writes = threading.Event(), threading.Event()
    copy_files = t2e.OnnxArtifact.copy_files

    def copy_in_turn(artifact: t2e.OnnxArtifact, folder: Path, names: Sequence[str]) -> None:
        if threading.current_thread() is first:
            first_writes.set()
            assert second_writes.wait(600)
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        second_writes.set()
        first.join(600)
        copy_files(artifact, folder, names)

    failures: list[str] = []
    first = threading.Thread(target=lambda: failures.append(refusal(t2e.ArtifactError, model, models, "m")))
    monkeypatch.setattr(t2e.OnnxArtifact, "copy_files", copy_in_turn)
    first.start()
    assert first_writes.wait(600)
    folder = t2e.export_triton(model, models, "m", 2)
    assert "No space left on device" in failures[0]
    assert sorted(path.name for path in folder.iterdir()) == ["2", "config.pbtxt"]


def test_file_systems_without_hard_links_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is put there by a rename, and one that is there still stays."""

    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links", str(target))

    monkeypatch.setattr(os, "link", refuse)
    folder = t2e.export_triton(exported(tmp_path, X, Y), tmp_path / "models", "m")
    assert "got config.pbtxt with" in refusal(
        t2e.ArtifactError, exported(tmp_path, X, Y, influences={}), tmp_path / "models", "m", 2
    )
    assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]


def test_what_triton_can_not_express_is_refused(tmp_path: Path) -> None:
    """By the tensor's name, with the reason and the way out."""

    def text(*specs: TensorSpec, backend: str = "tensorrt") -> str:
        with pytest.raises(t2e.InputError) as caught:
            config_text(exported(tmp_path, *specs), "m", backend)
        return str(caught.value)

    assert text(X, TensorSpec("y", "float8_e4m3fn", ("batch",))) == (
        "output 'y': got dtype float8_e4m3fn; expected a dtype of Triton's backend for TensorRT; cast it inside the "
        "model, e.g. to float32"
    )
    assert text(TensorSpec("x", "float64", ("batch",)), Y).startswith("input 'x': got dtype float64; expected a dtype")
    scalar = TensorSpec("y", "float32", ())
    assert text(X, scalar) == (
        "output 'y': got shape []; expected a dimension of at least 1, as Triton's backend for TensorRT needs; give it "
        "one dimension inside the model, e.g. by reshape(1)"
    )
    assert "dims: [ 1 ]" in lines(exported(tmp_path, X, scalar), "onnxruntime")
    assert text(X, TensorSpec("y", "float32", ("batch", 0))).startswith("output 'y': got shape [batch, 0]; expected")
    live = TensorSpec("w", "float32", (1,), live=LiveParameter("w", "parameter"))
    model = exported(tmp_path, X, Y)
    signature = dataclasses.replace(model.signature, inputs=(X, live))
    model = model.replace(signature=signature, live_values={"w": "AAAAAA=="})
    assert refusal(t2e.InputError, model, tmp_path / "models", "m") == (
        "input 'w': got a parameter that is an input of the engine; expected inputs that a request brings, since "
        "Triton keeps no values; deploy without live parameters"
    )


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    model, plan = mlp()[1]._artifact, fresh_engine(tmp_path / "engine")
    models = tmp_path / "models"
    assert refusal(t2e.InputError, model, models, "../m").startswith("name: got '../m'; expected letters, digits, '_',")
    assert refusal(t2e.InputError, model, models, "m", 0) == (
        "version: got 0; expected an int of at least 1; pass such a number"
    )
    assert refusal(t2e.InputError, model, models, "m", instances=True).startswith("instances: got True; ")
    assert refusal(t2e.InputError, model, models, "m", max_wait_s=-1.0).startswith("max_wait_s: got -1.0; ")
    assert refusal(t2e.InputError, model, models, "m", max_wait_s="1").startswith("max_wait_s: got '1'; ")
    assert refusal(t2e.InputError, model, models, 3).startswith("name: got 3; ")
    assert refusal(t2e.InputError, model, models, "m", backend="onnx") == (
        "backend: got 'onnx'; expected 'tensorrt' or 'onnxruntime'; did you mean 'onnxruntime'?"
    )
    assert refusal(t2e.InputError, model, models, "m", backend="tensorrt") == (
        "backend: got 'tensorrt' for an exported model; expected an engine; build it first: t2e.build(..., "
        "config=t2e.BuildConfig(flavour='tensorrt')), or pass backend='onnxruntime'"
    )
    assert refusal(t2e.InputError, engine(), models, "m") == (
        f"backend: got 'tensorrt' for a plan of tensorrt_rtx {engine().hardware.flavour_version}; expected a plan of "
        "tensorrt, since Triton's backend reads no other; build it with BuildConfig(flavour='tensorrt'), or pass "
        "backend='onnxruntime'"
    )
    assert refusal(t2e.InputError, [], models, "m") == (
        "artifact: got an empty list; expected at least one artifact; pass one"
    )
    assert refusal(t2e.InputError, [model, model], models, "m") == (
        "artifact: got 2 exported models; expected one, which every GPU runs; pass one of them"
    )
    assert refusal(t2e.InputError, [plan, plan], models, "m") == (
        "artifact: got two engines for compute capability 9.0; expected one for each compute capability; leave one out"
    )
    other = plan.replace(profiles=plan.profiles[:1])
    assert "different signatures or profiles" in refusal(t2e.InputError, [plan, other], models, "m")
    unknown = plan.replace(hardware=dataclasses.replace(HARDWARE, compute_capability=None))
    assert refusal(t2e.InputError, [unknown, plan], models, "m").startswith(
        "artifact: got an engine that says no compute capability; expected engines that were built on a GPU; "
    )
    assert "expected the path of a saved artifact" in refusal(t2e.InputError, 3, models, "m")
    assert not models.exists()

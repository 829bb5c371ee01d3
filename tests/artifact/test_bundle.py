"""One folder with one model and several plans, by the rules of every artifact; other models stay out."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.sample_artifacts import HARDWARE, fresh_engine, fresh_onnx, sealed
from torch2engine.artifact.bundle import bundle
from torch2engine.artifact.bundle_artifact import BundleArtifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import ArtifactError, InputError

A10 = replace(HARDWARE, gpu="NVIDIA A10", compute_capability=(8, 6))
H200_PLAN = "tensorrt-10.16.1.11-NVIDIA-H200"
A10_PLAN = "tensorrt-10.16.1.11-NVIDIA-A10"


def engine_of(folder: Path, hardware: Hardware = HARDWARE, text: str = "an ONNX model") -> EngineArtifact:
    """An engine whose plan says where it was built."""
    return fresh_engine(folder, text, hardware, plan=f"a plan for {hardware.gpu}".encode()).with_report(
        {"built on": hardware.gpu}
    )


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A bundle of two engines, one from its folder and one in memory."""
    saved = engine_of(tmp_path / "h200").save(tmp_path / "h200.t2e")
    return bundle(tmp_path / "both.t2e", [saved, engine_of(tmp_path / "a10", A10)])


def refusal(error: pytest.ExceptionInfo[ArtifactError], folder: Path) -> str:
    """An error's text without the test's own folder."""
    return str(error.value).replace(str(folder), "DIR")


def test_bundle_holds_the_model_once_and_every_plan(both: Path) -> None:
    """Plans, kernels and reports have the plan's name in front; the folder loads as a bundle, checked."""
    own = ("model.plan", "report.json", "runtime.cache")
    expected = [f"{plan}.{name}" for plan in (A10_PLAN, H200_PLAN) for name in own]
    assert sorted(os.listdir(both)) == sorted(["manifest.json", "model.onnx", "model.onnx.data", *expected])
    loaded = load_artifact(both, to_run=True)
    assert isinstance(loaded, BundleArtifact)
    assert dict(loaded.plans) == {A10_PLAN: A10, H200_PLAN: HARDWARE}
    assert isinstance(pickle.loads(pickle.dumps(loaded)), BundleArtifact)


def test_engine_of_a_bundle_is_the_one_that_went_in(both: Path, tmp_path: Path) -> None:
    """Its plan, kernels, report and ONNX files, under their usual names; saved and pickled it is a plain engine."""
    loaded = BundleArtifact.load(both)
    engine = loaded.engine_for([A10])
    travelled = [engine, EngineArtifact.load(engine.save(tmp_path / "a10.t2e")), pickle.loads(pickle.dumps(engine))]
    for one in travelled:
        assert one.read_plan() == b"a plan for NVIDIA A10 of an ONNX model"
        assert one.read_runtime_cache() == b"kernels of an ONNX model"
        assert one.hardware == A10
    assert engine.read_report() == travelled[1].read_report() == {"built on": "NVIDIA A10"}
    assert engine.manifest() == travelled[1].manifest() == engine_of(tmp_path / "again", A10).manifest()
    assert engine.read("model.onnx.data") == b"weights of an ONNX model"
    assert engine.onnx_path == both / "model.onnx"
    assert engine.plan_path.read_bytes() == engine.read_plan()
    assert engine.plan_path.name == "model.plan"
    assert engine.checked_onnx_path is not None and engine.checked_onnx_path.parent != both
    assert engine.with_runtime_cache(b"").files == ("model.onnx", "model.onnx.data", "model.plan", "report.json")
    assert loaded.exported().manifest() == fresh_onnx(tmp_path / "onnx").manifest()


def test_private_copy_of_a_bundles_engine_has_the_usual_names(both: Path) -> None:
    """A build reads the files by their names, wherever they lie."""
    engine = BundleArtifact.load(both).engine(H200_PLAN).in_private_folder()
    assert (engine.folder / "model.plan").read_bytes() == b"a plan for NVIDIA H200 of an ONNX model"
    assert sorted(os.listdir(engine.folder)) == list(engine.files)


def test_bundle_grows_in_its_place(both: Path, tmp_path: Path) -> None:
    """A bundle stands for its plans, at the path that is written too; an equal plan comes once."""
    other = engine_of(tmp_path / "l4", replace(HARDWARE, gpu="NVIDIA L4", compute_capability=(8, 9)))
    bundle(both, [both, other, BundleArtifact.load(both).engine(A10_PLAN)])
    assert list(BundleArtifact.load(both).plans) == [A10_PLAN, H200_PLAN, "tensorrt-10.16.1.11-NVIDIA-L4"]


def test_plan_for_many_gpus_lies_beside_that_of_one(tmp_path: Path) -> None:
    """Both were built on the same GPU; the manifest says which is which."""
    portable = replace(HARDWARE, hardware_compatibility="ampere_plus")
    engines = [
        engine_of(tmp_path / "h200"),
        fresh_engine(tmp_path / "many", hardware=portable, plan=b"a portable plan"),
    ]
    loaded = BundleArtifact.load(bundle(tmp_path / "both.t2e", engines))
    assert loaded.plans == {H200_PLAN: HARDWARE, f"{H200_PLAN}-ampere_plus": portable}
    assert loaded.engine_for([A10]).read_plan() == b"a portable plan of an ONNX model"


def test_plan_is_left_out_as_the_error_says(both: Path, tmp_path: Path) -> None:
    """Two plans for one GPU are refused, and the way that the message names leaves one of them out."""
    newer = fresh_engine(tmp_path / "newer", hardware=A10, plan=b"a newer plan")
    with pytest.raises(ArtifactError) as error:
        bundle(both, [both, newer])
    assert refusal(error, tmp_path) == (
        "artifact 'DIR/newer/engine': got another plan for NVIDIA A10 than 'DIR/both.t2e' has; expected one plan for "
        "each; leave one of the two out; t2e.BundleArtifact.load(path).engine(name) gives a bundle's one by one"
    )
    bundle(both, [BundleArtifact.load(both).engine(H200_PLAN), newer])
    assert BundleArtifact.load(both).engine(A10_PLAN).read_plan() == b"a newer plan of an ONNX model"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"text": "another ONNX model"}, "another 'model.onnx' than in"),
        ({"precision": "fp16"}, "other precision than in"),
        ({"profiles": slice(1)}, "other profiles than in"),
        ({"influences": {"batch": None}}, "other influences than in"),
        ({"weights": True}, "a 'weights.json', which is missing in"),
    ],
)
def test_engines_of_other_models_are_refused(tmp_path: Path, change: dict[str, object], difference: str) -> None:
    """By the first field or file that differs, before anything is written."""
    first = engine_of(tmp_path / "first")
    second = engine_of(tmp_path / "second", A10, str(change.pop("text", "an ONNX model")))
    if "profiles" in change:
        change = {"profiles": second.profiles[:1]}
    if change.pop("weights", False):
        second = second.refitted(second.read_plan(), b"{}", keep_onnx=True)
    with pytest.raises(ArtifactError) as error:
        bundle(tmp_path / "none.t2e", [first, second.replace(**change)])
    assert error.value.got == f"{difference} '{tmp_path / 'first' / 'engine'}'"
    assert error.value.allowed == "the same model in every artifact of a bundle"
    assert not (tmp_path / "none.t2e").exists()


def test_engine_without_its_model_is_refused(tmp_path: Path) -> None:
    """Nothing tells then which model it is of."""
    with pytest.raises(ArtifactError, match=r"got an engine without its model\.onnx; expected one"):
        bundle(tmp_path / "none.t2e", [engine_of(tmp_path / "first").without_onnx()])


def test_what_is_no_engine_is_refused(tmp_path: Path) -> None:
    """An exported model, a word, an empty list."""
    onnx = fresh_onnx(tmp_path / "onnx").save(tmp_path / "onnx.t2e")
    for wrong in ([onnx], [OnnxArtifact.load(onnx)], [3], [], str(onnx)):
        with pytest.raises(InputError, match=r"^artifacts: got ") as error:
            bundle(tmp_path / "none.t2e", wrong)  # type: ignore[arg-type]  # the wrong kind is the case
        assert not (tmp_path / "none.t2e").exists()
    with pytest.raises(InputError) as error:
        bundle(tmp_path / "none.t2e", [onnx])
    assert str(error.value).replace(str(tmp_path), "DIR") == (
        "artifacts: got an OnnxArtifact in 'DIR/onnx.t2e'; expected engines and bundles, or their folders; build it "
        "first: t2e.build(...); a model in parts can't be bundled"
    )


@pytest.mark.parametrize("name", ["model.onnx", f"{A10_PLAN}.model.plan", f"{H200_PLAN}.runtime.cache"])
def test_damaged_file_of_a_bundle_is_refused(both: Path, name: str) -> None:
    """Also one of a plan that this machine would not take."""
    data = bytearray((both / name).read_bytes())
    data[0] ^= 1
    (both / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"got other bytes in '{name}'") as error:
        load_artifact(both)
    assert error.value.path == str(both / name)


def test_file_of_a_bundle_that_changed_since_is_refused(both: Path, tmp_path: Path) -> None:
    """The engine reads the file that was checked; what was written into it afterwards is noticed, by its real name."""
    engine = BundleArtifact.load(both).engine(A10_PLAN)
    with (both / f"{A10_PLAN}.model.plan").open("r+b") as file:
        file.write(b"A")
    with pytest.raises(ArtifactError) as error:
        engine.read_plan()
    assert error.value.path == str(both / f"{A10_PLAN}.model.plan")
    with pytest.raises(ArtifactError):
        engine.save(tmp_path / "copy.t2e")


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"plans": {}}, '"plans" that do not fit the kind'),
        ({"kind": "onnx"}, '"plans" that do not fit the kind'),
        ({"hardware": None}, "manifest field hardware = None"),
        ({"plans": {"../up": {}}}, "a manifest without plans['../up'].hardware"),
        ({"files": {}}, "no 'model.onnx'"),
    ],
)
def test_contradicting_manifest_of_a_bundle_is_refused(both: Path, change: dict[str, object], got: str) -> None:
    """Though its digest is right."""
    manifest = json.loads((both / "manifest.json").read_text())
    (both / "manifest.json").write_bytes(sealed({**manifest, **change}))
    with pytest.raises(ArtifactError) as error:
        load_artifact(both)
    assert error.value.got == got


def test_plan_that_the_manifest_names_must_be_there(both: Path) -> None:
    """A plan without its file, and a plan whose name leaves the folder."""
    manifest = json.loads((both / "manifest.json").read_text())
    for name, got in (("gone", "no 'gone.model.plan'"), ("../up", "manifest field plans = '../up'")):
        plans = {**manifest["plans"], name: manifest["plans"][A10_PLAN]}
        (both / "manifest.json").write_bytes(sealed({**manifest, "plans": plans}))
        with pytest.raises(ArtifactError) as error:
            load_artifact(both)
        assert error.value.got == got


def test_no_plan_for_a_gpu_says_what_is_there(both: Path) -> None:
    """And how to get one; without any TensorRT the first plan's engine says later what is missing."""
    loaded = BundleArtifact.load(both)
    with pytest.raises(ArtifactError) as error:
        loaded.engine_for([replace(HARDWARE, gpu="NVIDIA L4", compute_capability=(8, 9))])
    assert refusal(error, both.parent) == (
        "artifact 'DIR/both.t2e': got plans of tensorrt 10.16.1.11 for NVIDIA A10, tensorrt 10.16.1.11 for NVIDIA "
        "H200; expected one of tensorrt 10.16.1.11 for NVIDIA L4; t2e.load(path, on_mismatch='rebuild') builds one, "
        "and t2e.bundle adds what t2e.build made here"
    )
    assert loaded.engine_for([]).hardware == A10
    with pytest.raises(ArtifactError, match=f"got no plan 'x'; expected one of {A10_PLAN}, "):
        loaded.engine("x")


def test_bundle_is_not_taken_for_another_kind(both: Path, tmp_path: Path) -> None:
    """The message names the way, and the way works."""
    with pytest.raises(ArtifactError, match="got a bundle; expected an engine; take one of its engines: "):
        EngineArtifact.load(both)
    with pytest.raises(ArtifactError, match="got a bundle; expected an ONNX model; take its exported model: "):
        OnnxArtifact.load(both)
    with pytest.raises(ArtifactError, match="got an engine; expected a bundle; make a bundle of it: "):
        BundleArtifact.load(tmp_path / "h200.t2e")
    alone = bundle(tmp_path / "alone.t2e", [tmp_path / "h200.t2e"])
    assert list(BundleArtifact.load(alone).plans) == [H200_PLAN]


def test_only_an_undamaged_artifact_is_replaced_by_a_bundle(both: Path, tmp_path: Path) -> None:
    """A foreign file in the folder stays, and so does the old artifact; overwrite=False replaces nothing."""
    (both / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"with 'notes\.txt', which torch2engine did not write"):
        bundle(both, [tmp_path / "h200.t2e"])
    (both / "notes.txt").unlink()
    with pytest.raises(ArtifactError, match="overwrite=False replaces nothing"):
        bundle(both, [tmp_path / "h200.t2e"], overwrite=False)
    assert len(BundleArtifact.load(both).plans) == 2

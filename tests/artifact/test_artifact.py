"""What a saved artifact promises: the same facts and bytes again, or an ArtifactError."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_artifacts import HARDWARE, PROFILES, SIGNATURE, VERSIONS, fresh_engine, fresh_onnx, onnx_bytes
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import ArtifactError
from torch2engine.core.spec import Parameter, Profile, Signature, TensorSpec, Tree

GOLDEN_SIGNATURE = Signature(
    inputs=(TensorSpec("café", "float16", (2,)),),
    outputs=(),
    parameters=(Parameter("café", "positional", Tree("tensor")),),
    output=Tree("tuple"),
)
GOLDEN = """\
{
 "digest": "5994aab009c21675e0e81f97826433bc59602e759fa37bb37358ab29e8a0b96c",
 "files": {
  "model.plan": {
   "bytes": 2,
   "sha256": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
  }
 },
 "format": "torch2engine",
 "format_version": 1,
 "hardware": {
  "compute_capabilities": [],
  "compute_capability": [
   9,
   0
  ],
  "driver": null,
  "flavour": "tensorrt",
  "flavour_version": "10.16.1",
  "gpu": null
 },
 "kind": "engine",
 "precision": "tf32",
 "profiles": [
  {}
 ],
 "signature": {
  "axes": [],
  "inputs": [
   {
    "dtype": "float16",
    "name": "caf\\u00e9",
    "shape": [
     2
    ]
   }
  ],
  "output": {
   "kind": "tuple"
  },
  "outputs": [],
  "parameters": [
   {
    "default": null,
    "kind": "positional",
    "name": "caf\\u00e9",
    "optional": false,
    "tree": {
     "kind": "tensor"
    }
   }
  ]
 },
 "versions": {
  "torch": "2.9.0"
 }
}
"""


def message(error: pytest.ExceptionInfo[ArtifactError], folder: Path) -> str:
    """An error's text with the test's own folder left out."""
    return str(error.value).replace(str(folder), "DIR")


def test_save_and_load_give_the_same_onnx_artifact(tmp_path: Path) -> None:
    """An ONNX artifact comes back with every fact and every byte."""
    path = fresh_onnx(tmp_path / "fresh").save(tmp_path / "new" / "model.t2e")
    loaded = load_artifact(path)
    assert isinstance(loaded, OnnxArtifact)
    assert loaded.signature == SIGNATURE
    assert (loaded.profiles, loaded.precision, loaded.versions) == (PROFILES, "fp32", VERSIONS)
    assert loaded.folder == path
    assert loaded.onnx_path.read_bytes() == onnx_bytes()
    assert loaded.onnx_path.with_name("model.onnx.data").read_bytes() == b"weights of an ONNX model"


def test_save_and_load_give_the_same_engine(tmp_path: Path) -> None:
    """An engine comes back with its plan, its hardware and the ONNX files that it was built from."""
    path = fresh_engine(tmp_path / "fresh").save(str(tmp_path / "model.t2e"))
    loaded = load_artifact(str(path))
    assert isinstance(loaded, EngineArtifact)
    assert loaded.hardware == HARDWARE
    assert loaded.files == ("model.onnx", "model.onnx.data", "model.plan", "runtime.cache")
    assert loaded.read_plan() == loaded.plan_path.read_bytes() == b"a plan of an ONNX model"
    assert loaded.onnx_path == path / "model.onnx"
    assert loaded.runtime_cache_path == path / "runtime.cache"
    assert loaded.read("runtime.cache") == b"kernels of an ONNX model"


def test_manifest_is_the_golden_text(tmp_path: Path) -> None:
    """The bytes of a manifest are fixed: sorted, ASCII, one space of indent, a newline at the end."""
    (tmp_path / "model.plan").write_bytes(b"hi")
    engine = EngineArtifact(
        tmp_path,
        signature=GOLDEN_SIGNATURE,
        profiles=[Profile({})],
        precision="tf32",
        versions={"torch": "2.9.0"},
        hardware=Hardware(flavour="tensorrt", flavour_version="10.16.1", compute_capability=(9, 0)),
    )
    written = (engine.save(tmp_path / "model.t2e") / "manifest.json").read_text("ascii")
    assert written == GOLDEN
    assert engine.manifest() == json.loads(GOLDEN)


def test_golden_manifest_is_read(tmp_path: Path) -> None:
    """A folder written by hand, to the letter of the format, is an artifact."""
    (tmp_path / "model.plan").write_bytes(b"hi")
    (tmp_path / "manifest.json").write_text(GOLDEN, "ascii")
    engine = EngineArtifact.load(tmp_path)
    assert engine.signature.inputs == (TensorSpec("café", "float16", (2,)),)
    assert (engine.hardware.compute_capability, engine.precision, engine.read_plan()) == ((9, 0), "tf32", b"hi")


@pytest.mark.parametrize("value", [None, True, 0, -3, 0.1, 1e300, -0.0, math.inf, -math.inf, "", "naïve \ud800"])
def test_constants_survive_a_save(tmp_path: Path, value: Any) -> None:
    """Every constant that a call can hold comes back with its type, infinities and lone surrogates included."""
    constant = Parameter("p", "keyword", Tree("constant", value=value), value)
    signature = replace(SIGNATURE, parameters=(*SIGNATURE.parameters, constant))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    (tmp_path / "model.onnx.data").touch()
    fresh = OnnxArtifact(tmp_path, signature=signature, profiles=PROFILES, precision="fp32")
    parameter = load_artifact(fresh.save(tmp_path / "model.t2e")).signature.parameters[-1]
    assert parameter.tree is not None
    assert repr((parameter.default, parameter.tree.value)) == repr((value, value))


def test_nan_survives_a_save(tmp_path: Path) -> None:
    """A default of NaN is NaN again."""
    signature = replace(SIGNATURE, parameters=(*SIGNATURE.parameters, Parameter("p", "keyword", None, math.nan)))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    (tmp_path / "model.onnx.data").touch()
    fresh = OnnxArtifact(tmp_path, signature=signature, profiles=PROFILES, precision="fp32")
    assert math.isnan(load_artifact(fresh.save(tmp_path / "model.t2e")).signature.parameters[-1].default)


def test_unknown_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """Loading does not mind what other tools put beside the artifact."""
    path = fresh_onnx(tmp_path / "fresh").save(tmp_path / "model.t2e")
    (path / "config.pbtxt").write_text("theirs")
    assert load_artifact(path).files == ("model.onnx", "model.onnx.data")


def test_relative_paths_stay_right_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact made or loaded by a relative path is found after os.chdir."""
    monkeypatch.chdir(tmp_path)
    fresh = fresh_onnx(Path("fresh"))
    fresh.save("model.t2e")
    loaded = OnnxArtifact.load("model.t2e")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loaded.onnx_path.read_bytes() == fresh.onnx_path.read_bytes() == onnx_bytes()


def test_saved_files_have_the_users_own_permissions(tmp_path: Path) -> None:
    """Another user may serve what was saved: the folder's mode is the umask's, not that of scratch folders."""
    fresh = fresh_onnx(tmp_path / "fresh")
    old = os.umask(0o022)
    try:
        path = fresh.save(tmp_path / "model.t2e")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o755
    assert {entry.stat().st_mode & 0o777 for entry in path.iterdir()} == {0o644}


def test_construction_refuses_a_folder_without_the_file(tmp_path: Path) -> None:
    """A stage that wrote no model.onnx can't make an artifact of it."""
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=PROFILES, precision="fp32")
    assert message(error, tmp_path) == (
        "artifact 'DIR': got no 'model.onnx'; expected every file that it needs; save it again or "
        "restore it from a copy"
    )
    assert error.value.path == str(tmp_path)


def test_construction_refuses_facts_that_could_not_be_loaded(tmp_path: Path) -> None:
    """What load would refuse is refused before it is saved, naming the field."""
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=PROFILES, precision="fp64")
    assert str(error.value) == (
        "onnx artifact: got manifest field precision = 'fp64'; expected one of 'fp32', 'tf32', "
        "'fp16', 'bf16', 'int8', 'fp8'; correct that field"
    )
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=[], precision="fp32")
    assert str(error.value) == (
        "onnx artifact: got manifest field profiles = []; expected at least one, for the axes batch; correct that field"
    )


def test_construction_refuses_a_signature_that_is_nested_too_deeply(tmp_path: Path) -> None:
    """Nesting has a stated limit, far below the interpreter's own."""
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    (tmp_path / "model.onnx.data").touch()

    def artifact(depth: int) -> OnnxArtifact:
        tree = Tree("tensor")
        for _ in range(depth - 1):
            tree = Tree("list", (0,), (tree,))
        return OnnxArtifact(tmp_path, signature=replace(SIGNATURE, output=tree), profiles=PROFILES, precision="fp32")

    assert load_artifact(artifact(64).save(tmp_path / "model.t2e")).signature.output.leaves() == 1
    with pytest.raises(ArtifactError) as error:
        artifact(65)
    assert str(error.value) == (
        "onnx artifact: got a signature nested more than 64 levels deep; expected fields that fit "
        "together; correct that field"
    )
    with pytest.raises(ArtifactError) as error:
        artifact(900)
    assert (
        str(error.value)
        == "onnx artifact: got a signature nested too deeply; expected fields that fit together; correct that field"
    )


def test_load_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    """A missing folder, a file, an empty folder and a foreign manifest each get their own words."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"name": "web app"}')
    give = "give the folder that torch2engine saved"
    for name, text in {
        "missing": f"artifact 'DIR/missing': got no such folder; expected a saved artifact's folder; {give}",
        "file": f"artifact 'DIR/file': got a file; expected a saved artifact's folder; {give}",
        "a\0b": f"artifact 'DIR/a\0b': got no such folder; expected a saved artifact's folder; {give}",
        "empty": (
            "artifact 'DIR/empty': got no 'manifest.json'; expected every file of its manifest; save it "
            "again or restore it from a copy"
        ),
        "foreign": "artifact 'DIR/foreign': got a manifest that is not one of torch2engine; expected "
        f"\"format\": 'torch2engine' in it; {give}",
    }.items():
        with pytest.raises(ArtifactError) as error:
            load_artifact(tmp_path / name)
        assert message(error, tmp_path) == text


def test_load_of_the_other_kind_says_what_to_do(tmp_path: Path) -> None:
    """EngineArtifact.load insists on an engine, OnnxArtifact.load on an ONNX model."""
    onnx = fresh_onnx(tmp_path / "fresh").save(tmp_path / "onnx.t2e")
    engine = fresh_engine(tmp_path / "built").save(tmp_path / "engine.t2e")
    with pytest.raises(ArtifactError) as error:
        EngineArtifact.load(onnx)
    assert message(error, tmp_path) == (
        "artifact 'DIR/onnx.t2e': got an ONNX model; expected an engine; build it first: t2e.build(...)"
    )
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.load(engine)
    assert message(error, tmp_path) == "artifact 'DIR/engine.t2e': got an engine; expected an ONNX model"


def test_reading_the_plan_refuses_what_changed_after_loading(tmp_path: Path) -> None:
    """The bytes that reach TensorRT are those that were hashed, even if the file changed in between."""
    path = fresh_engine(tmp_path / "fresh").save(tmp_path / "model.t2e")
    loaded = EngineArtifact.load(path)
    (path / "model.plan").write_bytes(b"A plan of an ONNX model")
    for read in (loaded.read_plan, loaded.plan_buffer, lambda: loaded.save(tmp_path / "other.t2e")):
        with pytest.raises(ArtifactError) as error:
            read()
        assert message(error, tmp_path) == (
            "artifact 'DIR/model.t2e': got other bytes in 'model.plan' than were saved; expected "
            "bytes whose SHA-256 is 96b6e7d1c917ce5c…; it was changed since it was loaded: load it "
            "again"
        )
    assert not (tmp_path / "other.t2e").exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_carries_the_engine_without_its_onnx(tmp_path: Path, protocol: int) -> None:
    """An unpickled engine has the plan in memory and the same facts; nothing is on the disk until it is asked for."""
    data = pickle.dumps(fresh_engine(tmp_path, text="x" * 1000), protocol)
    engine = pickle.loads(data)
    assert (engine.signature, engine.profiles, engine.hardware) == (SIGNATURE, PROFILES, HARDWARE)
    assert engine.files == ("model.plan", "runtime.cache")
    assert engine.read_plan() == b"a plan of " + b"x" * 1000
    assert repr(engine) == "EngineArtifact('in memory', precision='fp32')"
    assert engine.plan_path.read_bytes() == engine.read_plan()
    assert engine.onnx_path is None


def test_pickle_of_an_onnx_artifact_carries_its_files(tmp_path: Path) -> None:
    """An ONNX artifact travels with its weights."""
    onnx = pickle.loads(pickle.dumps(fresh_onnx(tmp_path)))
    assert onnx.onnx_path.with_name("model.onnx.data").read_bytes() == b"weights of an ONNX model"


def test_pickle_hands_the_plan_over_out_of_band_without_a_copy(tmp_path: Path) -> None:
    """With protocol 5 the plan is a buffer of its own, and the engine on the other side reads that very memory."""
    plan = b"p" * 100_000
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(fresh_engine(tmp_path, plan=plan), 5, buffer_callback=buffers.append)
    assert len(data) < 10_000
    memory = [bytearray(buffer) for buffer in buffers]
    engine = pickle.loads(data, buffers=memory)
    view = engine.plan_buffer()
    assert view.readonly
    assert bytes(view[:100_000]) == plan
    assert any(view.obj is block for block in memory)
    assert pickle.loads(pickle.dumps(engine, 5)).read_plan() == engine.read_plan()


def test_pickle_with_a_damaged_buffer_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Bytes that changed on the way never reach TensorRT."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(fresh_engine(tmp_path), 5, buffer_callback=buffers.append)
    memory = [bytearray(buffer) for buffer in buffers]
    for block in memory:
        block[0] ^= 1
    engine = pickle.loads(data, buffers=memory)
    for read in (engine.read_plan, lambda: engine.plan_path, lambda: engine.save(tmp_path / "model.t2e")):
        with pytest.raises(ArtifactError) as error:
            read()
        assert error.value.got in [f"other bytes in '{name}' than were saved" for name in engine.files]


def test_copies_are_the_artifact_itself(tmp_path: Path) -> None:
    """copy and deepcopy share what can't change; attributes can't be set."""
    engine = fresh_engine(tmp_path)
    assert copy.copy(engine) is engine
    assert copy.deepcopy({"engine": engine})["engine"] is engine
    with pytest.raises(AttributeError):
        engine.precision = "fp16"  # type: ignore[misc]
    with pytest.raises(TypeError):
        engine.versions["torch"] = "0"  # type: ignore[index]


def test_manifest_and_bytes_make_the_engine_again(tmp_path: Path) -> None:
    """A state_dict can carry the manifest and the plan; files that are left out are gone."""
    fresh = fresh_engine(tmp_path)
    manifest = json.loads(json.dumps(fresh.manifest()))
    engine = EngineArtifact.from_manifest(manifest, {"model.plan": fresh.read_plan()})
    assert engine.files == ("model.plan",)
    assert engine.plan_sha256 == fresh.plan_sha256
    assert EngineArtifact.load(engine.save(tmp_path / "model.t2e")).read_plan() == fresh.read_plan()


def test_manifest_with_wrong_bytes_is_refused(tmp_path: Path) -> None:
    """Every way in which a manifest and bytes can disagree is an ArtifactError that says which."""
    fresh = fresh_engine(tmp_path)
    manifest, plan = fresh.manifest(), fresh.read_plan()
    files = "model.onnx, model.onnx.data, model.plan, runtime.cache"
    for changed, given, text in [
        (
            manifest,
            {},
            ("got no 'model.plan'; expected every file that it needs; save it again or restore it from a copy"),
        ),
        (
            manifest,
            {"model.plan": plan, "x": b""},
            f"got a file 'x'; expected files of its manifest: {files}; pass what manifest() and read() gave, as it was",
        ),
        (
            manifest,
            {"model.plan": plan[1:]},
            (
                "got 22 bytes in 'model.plan'; expected 23, as its manifest says; save it again or "
                "restore it from a copy"
            ),
        ),
        (
            {**manifest, "precision": "bf16"},
            {"model.plan": plan},
            "got a manifest that was changed after it was written; expected bytes that match its own "
            "digest; save it again or restore it from a copy",
        ),
        (
            {**manifest, "x": {1}},
            {},
            (
                "got a manifest that is not JSON (Object of type set is not JSON serializable); expected "
                "JSON values; pass what manifest() and read() gave, as it was"
            ),
        ),
    ]:
        with pytest.raises(ArtifactError) as error:
            EngineArtifact.from_manifest(changed, given)
        assert str(error.value) == f"artifact 'in memory': {text}"
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.from_manifest(manifest, {"model.plan": plan})
    assert str(error.value) == "artifact 'in memory': got an engine; expected an ONNX model"
    onnx = fresh_onnx(tmp_path / "other")
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.from_manifest(onnx.manifest(), {"model.onnx": b"an ONNX model"})
    assert error.value.got == "no 'model.onnx.data'"

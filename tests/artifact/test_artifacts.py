"""What a saved artifact promises: the same facts and bytes again, whole or not at all, or an ArtifactError."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_artifacts import HARDWARE, PROFILES, SIGNATURE, VERSIONS, fresh_engine, fresh_onnx
from torch2engine.artifact import atomic_folder
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load import load_artifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError
from torch2engine.core.spec import Parameter, Profile, Signature, TensorSpec, Tree

GOLDEN = """\
{
 "digest": "d1c26f85dfcf7f86ed3a96dccc14dee7f3b6b11022154a2eac436912874e0961",
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
   "kind": "tensor"
  },
  "outputs": [],
  "parameters": []
 },
 "versions": {
  "torch": "2.9.0"
 }
}
"""


def message(error: pytest.ExceptionInfo[ArtifactError], folder: Path) -> str:
    """An error's text with the test's own folder left out."""
    return str(error.value).replace(str(folder), "DIR")


# What comes back


def test_save_and_load_give_the_same_onnx_artifact(tmp_path: Path) -> None:
    """An ONNX artifact comes back with every fact and every byte."""
    path = fresh_onnx(tmp_path / "fresh").save(tmp_path / "new" / "model.t2e")
    loaded = load_artifact(path)
    assert isinstance(loaded, OnnxArtifact)
    assert loaded.signature == SIGNATURE
    assert (loaded.profiles, loaded.precision, loaded.versions) == (PROFILES, "fp32", VERSIONS)
    assert loaded.folder == path
    assert loaded.onnx_path.read_bytes() == b"an ONNX model"
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
        signature=Signature((TensorSpec("café", "float16", (2,)),), ()),
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
    signature = replace(SIGNATURE, parameters=(Parameter("p", "keyword", Tree("constant", value=value), value),))
    (tmp_path / "model.onnx").touch()
    fresh = OnnxArtifact(tmp_path, signature=signature, profiles=PROFILES, precision="fp32")
    (parameter,) = load_artifact(fresh.save(tmp_path / "model.t2e")).signature.parameters
    assert parameter.tree is not None
    assert repr((parameter.default, parameter.tree.value)) == repr((value, value))


def test_nan_survives_a_save(tmp_path: Path) -> None:
    """A default of NaN is NaN again."""
    signature = replace(SIGNATURE, parameters=(Parameter("p", "keyword", None, math.nan),))
    (tmp_path / "model.onnx").touch()
    fresh = OnnxArtifact(tmp_path, signature=signature, profiles=PROFILES, precision="fp32")
    assert math.isnan(load_artifact(fresh.save(tmp_path / "model.t2e")).signature.parameters[0].default)


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
    assert loaded.onnx_path.read_bytes() == fresh.onnx_path.read_bytes() == b"an ONNX model"


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


# What is refused at construction and by load


def test_construction_refuses_a_folder_without_the_file(tmp_path: Path) -> None:
    """A stage that wrote no model.onnx can't make an artifact of it."""
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=PROFILES, precision="fp32")
    assert message(error, tmp_path) == (
        "artifact 'DIR': it holds no 'model.onnx'; save it again or restore it from a copy"
    )
    assert error.value.path == str(tmp_path)


def test_construction_refuses_facts_that_could_not_be_loaded(tmp_path: Path) -> None:
    """What load would refuse is refused before it is saved, naming the field."""
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=PROFILES, precision="fp64")
    assert str(error.value) == (
        "onnx artifact: its manifest's precision is 'fp64', it must be one of 'fp32', 'tf32', 'fp16', 'bf16', "
        "'int8', 'fp8'"
    )
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact(tmp_path, signature=SIGNATURE, profiles=[], precision="fp32")
    assert str(error.value) == (
        "onnx artifact: its manifest's profiles is [], it must be at least one, for the axes batch"
    )


def test_construction_refuses_a_signature_that_is_nested_too_deeply(tmp_path: Path) -> None:
    """Nesting has a stated limit, far below the interpreter's own."""
    (tmp_path / "model.onnx").touch()

    def artifact(depth: int) -> OnnxArtifact:
        tree = Tree("tensor")
        for _ in range(depth - 1):
            tree = Tree("list", (0,), (tree,))
        return OnnxArtifact(tmp_path, signature=replace(SIGNATURE, output=tree), profiles=PROFILES, precision="fp32")

    assert load_artifact(artifact(64).save(tmp_path / "model.t2e")).signature.output.leaves() == 1
    with pytest.raises(ArtifactError) as error:
        artifact(65)
    assert str(error.value) == "onnx artifact: its signature is nested more than 64 levels deep"
    with pytest.raises(ArtifactError) as error:
        artifact(900)
    assert str(error.value) == "onnx artifact: the signature is nested too deeply"


def test_load_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    """A missing folder, a file, an empty folder and a foreign manifest each get their own words."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"name": "web app"}')
    give = "give the folder that torch2engine saved"
    for name, text in {
        "missing": f"artifact 'DIR/missing': there is no such folder; {give}",
        "file": f"artifact 'DIR/file': it is a file; {give}",
        "a\0b": f"artifact 'DIR/a\0b': there is no such folder; {give}",
        "empty": "artifact 'DIR/empty': it holds no 'manifest.json'; save it again or restore it from a copy",
        "foreign": "artifact 'DIR/foreign': its manifest is not one of torch2engine, "
        f"its \"format\" must be 'torch2engine'; {give}",
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
        "artifact 'DIR/onnx.t2e': it is an ONNX model, an engine is needed here; build it first: t2e.build(...)"
    )
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.load(engine)
    assert message(error, tmp_path) == "artifact 'DIR/engine.t2e': it is an engine, an ONNX model is needed here"


def test_reading_the_plan_refuses_what_changed_after_loading(tmp_path: Path) -> None:
    """The bytes that reach TensorRT are those that were hashed, even if the file changed in between."""
    path = fresh_engine(tmp_path / "fresh").save(tmp_path / "model.t2e")
    loaded = EngineArtifact.load(path)
    (path / "model.plan").write_bytes(b"A plan of an ONNX model")
    for read in (loaded.read_plan, loaded.plan_buffer, lambda: loaded.save(tmp_path / "other.t2e")):
        with pytest.raises(ArtifactError) as error:
            read()
        assert message(error, tmp_path) == (
            "artifact 'DIR/model.t2e': the bytes of 'model.plan' are not those that were saved, "
            "their SHA-256 must be 96b6e7d1c917ce5c…; it was changed since it was loaded: load it again"
        )
    assert not (tmp_path / "other.t2e").exists()


# Saving


def test_save_replaces_an_artifact_and_leaves_nothing_else(tmp_path: Path) -> None:
    """The second save takes the first one's place; files of the first that the second lacks are gone."""
    path = tmp_path / "model.t2e"
    fresh_engine(tmp_path / "built").save(path)
    fresh_onnx(tmp_path / "fresh", "another model").save(path)
    assert OnnxArtifact.load(path).read("model.onnx") == b"another model"
    assert sorted(entry.name for entry in path.iterdir()) == ["manifest.json", "model.onnx", "model.onnx.data"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["built", "fresh", "model.t2e"]


def test_save_onto_itself_keeps_the_artifact(tmp_path: Path) -> None:
    """An artifact can be saved to the folder that it was loaded from."""
    path = fresh_engine(tmp_path / "fresh").save(tmp_path / "model.t2e")
    loaded = EngineArtifact.load(path)
    loaded.save(path)
    assert loaded.read_plan() == EngineArtifact.load(path).read_plan() == b"a plan of an ONNX model"


def test_save_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    """A symbolic link such as 'current' stays a link."""
    fresh_onnx(tmp_path / "one").save(tmp_path / "v1.t2e")
    (tmp_path / "current").symlink_to("v1.t2e")
    fresh_onnx(tmp_path / "two", "another model").save(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert OnnxArtifact.load(tmp_path / "v1.t2e").read("model.onnx") == b"another model"


def test_save_with_overwrite_false_refuses_what_is_there(tmp_path: Path) -> None:
    """overwrite=False replaces nothing, and writes where nothing is."""
    fresh = fresh_onnx(tmp_path / "fresh")
    fresh.save(tmp_path / "model.t2e", overwrite=False)
    with pytest.raises(ArtifactError) as error:
        fresh.save(tmp_path / "model.t2e", overwrite=False)
    assert message(error, tmp_path) == (
        "artifact 'DIR/model.t2e': something is there already, overwrite=False replaces nothing; "
        "save to another path, or move away what is there"
    )


def a_file(path: Path) -> None:
    path.write_text("theirs")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("theirs")


def a_foreign_manifest(path: Path) -> None:
    a_folder(path)
    (path / "manifest.json").write_text('{"format": "other"}')


def a_linked_manifest(path: Path) -> None:
    a_folder(path)
    (path / "manifest.json").symlink_to(path / "thesis.tex")


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (a_file, "a file is there already"),
        (Path.mkdir, "a folder without a torch2engine manifest is there already"),
        (a_folder, "a folder without a torch2engine manifest is there already"),
        (a_foreign_manifest, "a folder without a torch2engine manifest is there already"),
        (a_linked_manifest, "a folder without a torch2engine manifest is there already"),
    ],
)
def test_save_never_touches_what_is_not_an_artifact(tmp_path: Path, make: Callable[[Path], None], got: str) -> None:
    """Somebody's file or folder stays as it is, whatever it is."""
    path = tmp_path / "there"
    make(path)
    before = sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.rglob("*"))
    with pytest.raises(ArtifactError) as error:
        fresh_onnx(tmp_path.parent / f"{tmp_path.name}-fresh").save(path)
    assert message(error, tmp_path) == (
        f"artifact 'DIR/there': {got}, only a torch2engine artifact is replaced; "
        "save to another path, or move away what is there"
    )
    assert sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.rglob("*")) == before


def test_save_keeps_an_artifact_with_somebodys_file_in_it(tmp_path: Path) -> None:
    """A replacement would delete the user's notes, so it is refused."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    (path / "notes.txt").write_text("theirs")
    with pytest.raises(ArtifactError) as error:
        fresh.save(path)
    assert message(error, tmp_path) == (
        "artifact 'DIR/model.t2e': the artifact that is there also holds 'notes.txt', "
        "which torch2engine did not write; move 'notes.txt' away"
    )
    assert (path / "notes.txt").read_text() == "theirs"


def test_save_replaces_a_damaged_or_newer_artifact(tmp_path: Path) -> None:
    """What torch2engine wrote can be replaced even where it can't be loaded."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    (path / "manifest.json").write_text('{"format": "torch2engine", "format_version": 2, "files": {"model.new": 1}}')
    (path / "model.new").touch()
    fresh.save(path)
    assert load_artifact(path).files == ("model.onnx", "model.onnx.data")


def test_failed_save_leaves_no_trace(tmp_path: Path) -> None:
    """A file of the artifact that vanished is named; the path and its siblings are as before."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "out" / "model.t2e")
    (tmp_path / "fresh" / "model.onnx.data").unlink()
    with pytest.raises(ArtifactError) as error:
        fresh.save(path)
    assert message(error, tmp_path) == (
        "artifact 'DIR/fresh': it holds no 'model.onnx.data'; save it again or restore it from a copy"
    )
    assert load_artifact(path).files == ("model.onnx", "model.onnx.data")
    assert [entry.name for entry in path.parent.iterdir()] == ["model.t2e"]


def test_save_below_a_file_is_an_artifact_error(tmp_path: Path) -> None:
    """What the operating system refuses comes as an ArtifactError with its words."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError) as error:
        fresh_onnx(tmp_path / "fresh").save(tmp_path / "file" / "model.t2e")
    assert message(error, tmp_path) == "artifact 'DIR/file/model.t2e': File exists ('DIR/file')"
    assert error.value.path == str(tmp_path / "file" / "model.t2e")


# Crashes and rivals

CRASH = """
import os, sys
from pathlib import Path
from tests.support.sample_artifacts import fresh_onnx
from torch2engine.artifact import atomic_folder
from torch2engine.artifact.load import load_artifact

root, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    atomic_folder._exchange = lambda *arguments: False
old = fresh_onnx(root / "old", "old" * 1000)
new = fresh_onnx(root / "new", "new" * 1000)
path = root / "model.t2e"
"""

STEPS = """
def die_at(step):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event.split(".")[0] in ("open", "os", "shutil", "ctypes"):
            seen += 1
            if seen == step:
                os._exit(9)
    sys.addaudithook(hook)

step, texts, status = 0, set(), 9
while status == 9:
    step += 1
    old.save(path)
    child = os.fork()
    if child == 0:
        die_at(step)
        new.save(path)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = load_artifact(path).read("model.onnx").decode()
    assert text in ("old" * 1000, "new" * 1000), text
    texts.add(text[:3])
old.save(path)
left = sorted(entry.name for entry in root.iterdir())
print(__import__("json").dumps([status, step, sorted(texts), left]))
"""


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_save_that_dies_at_any_step_leaves_old_or_new(tmp_path: Path, repository: Path, how: str) -> None:
    """Killed before each of its system calls in turn, a save leaves a whole artifact, and the next save tidies up."""
    command = [sys.executable, "-c", CRASH + STEPS, str(tmp_path), how]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    status, steps, texts, left = json.loads(done.stdout)
    assert (status, texts, left) == (0, ["new", "old"], ["model.t2e", "new", "old"])
    assert steps > 15


LOOP = """
print("ready", flush=True)
old.save(path)
while True:
    new.save(path)
    old.save(path)
"""


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_save_that_is_killed_at_random_leaves_old_or_new(tmp_path: Path, repository: Path, how: str) -> None:
    """Twenty SIGKILLs at random moments: the path always holds one whole artifact."""
    random_ = random.Random(0)
    path = fresh_onnx(tmp_path / "first", "old" * 1000).save(tmp_path / "model.t2e")
    for _ in range(10):
        command = [sys.executable, "-c", CRASH + LOOP, str(tmp_path), how]
        with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(random_.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        assert OnnxArtifact.load(path).read("model.onnx") in (b"old" * 1000, b"new" * 1000)
    fresh_onnx(tmp_path / "last").save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "last", "model.t2e", "new", "old"]


def test_loading_while_another_saves_never_sees_half_an_artifact(tmp_path: Path) -> None:
    """A server that loads while training saves gets the old or the new artifact, never an error."""
    artifacts = [fresh_onnx(tmp_path / text, text) for text in ("old", "new")]
    path = artifacts[0].save(tmp_path / "model.t2e")
    done = threading.Event()

    def save() -> None:
        for index in range(40):
            artifacts[index % 2].save(path)
            time.sleep(0.002)
        done.set()

    saver = threading.Thread(target=save)
    saver.start()
    loads = 0
    try:
        while not done.is_set():
            assert load_artifact(path).manifest()["files"]["model.onnx"]["bytes"] == 3
            loads += 1
    finally:
        saver.join()
    assert loads > 0


def test_failed_second_step_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two names can't be exchanged and the disk fails half-way, the old artifact is where it was."""
    path = fresh_onnx(tmp_path / "old", "old").save(tmp_path / "model.t2e")
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        if "saving" in source.name:
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(atomic_folder, "_exchange", lambda *arguments: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError) as error:
        fresh_onnx(tmp_path / "new", "new").save(path)
    assert message(error, tmp_path) == "artifact 'DIR/model.t2e': Input/output error ('DIR/model.t2e')"
    assert (path / "model.onnx").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.t2e", "new", "old"]


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_two_savers_end_with_one_whole_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Two processes may save to one path at once: neither fails, and one of them has the last word."""
    if how == "two steps":
        monkeypatch.setattr(atomic_folder, "_exchange", lambda *arguments: False)
    path = tmp_path / "model.t2e"
    errors: list[BaseException] = []

    def save(text: str) -> None:
        try:
            artifact = fresh_onnx(tmp_path / text, text)
            for _ in range(15):
                artifact.save(path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert OnnxArtifact.load(path).read("model.onnx") in (b"one", b"two")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.t2e", "one", "two"]


# Scratch folders


def test_scratch_folder_goes_with_the_last_artifact(tmp_path: Path) -> None:
    """The folder lives as long as an artifact holds it, and no longer."""
    owner = scratch_folder()
    folder = owner.path
    artifact = fresh_onnx(folder, owner=owner)
    assert folder.stat().st_mode & 0o077 == 0
    del owner
    gc.collect()
    assert artifact.onnx_path.exists()
    del artifact
    gc.collect()
    assert not folder.exists()


def test_scratch_folder_goes_when_the_process_ends(run_python: Callable[[str], Any]) -> None:
    """A folder that is still held when the interpreter ends is removed without a word."""
    path = run_python(
        "import json; from torch2engine.artifact.scratch_folder import scratch_folder; owner = scratch_folder(); "
        "(owner.path / 'file').touch(); print(json.dumps(str(owner.path)))"
    )
    assert not Path(path).exists()


def test_scratch_folder_survives_a_forked_child(run_python: Callable[[str], Any]) -> None:
    """A child that collects the owner, or ends with exit handlers, leaves the parent's folder alone."""
    there, path = run_python(
        "import gc, json, os, sys\n"
        "from torch2engine.artifact.scratch_folder import scratch_folder\n"
        "owner = scratch_folder()\n"
        "path = str(owner.path)\n"
        "for collect in (True, False):\n"
        "    if os.fork() == 0:\n"
        "        if collect:\n"
        "            del owner\n"
        "            gc.collect()\n"
        "        sys.exit()\n"
        "    os.wait()\n"
        "print(json.dumps([os.path.isdir(path), path]))"
    )
    assert there
    assert not Path(path).exists()


def test_scratch_folder_names_the_cure_where_none_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place for temporary files the error names TMPDIR."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ArtifactError) as error:
        scratch_folder()
    assert error.value.subject == "scratch folder"
    assert error.value.fix == "point TMPDIR at a folder with room that can be written"


# Engines from ONNX models


def test_engine_from_onnx_links_the_files(tmp_path: Path) -> None:
    """The ONNX files beside the plan take no second copy on the disk, and facts come from the ONNX artifact."""
    onnx = fresh_onnx(tmp_path / "onnx")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "model.plan").write_bytes(b"a plan")
    engine = EngineArtifact.from_onnx(
        onnx, tmp_path / "engine", hardware=HARDWARE, profiles=PROFILES[:1], versions={"tensorrt": "10.16.1"}
    )
    assert engine.onnx_path is not None
    assert engine.onnx_path.samefile(onnx.onnx_path)
    assert (engine.signature, engine.profiles, engine.precision) == (SIGNATURE, PROFILES[:1], "fp32")
    assert engine.versions == {**VERSIONS, "tensorrt": "10.16.1"}


def test_engine_from_onnx_copies_where_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another file system the files are copied."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    engine = fresh_engine(tmp_path)
    assert engine.read("model.onnx.data") == b"weights of an ONNX model"
    assert (engine.folder / "model.onnx").stat().st_nlink == 1


def test_engine_from_onnx_notices_an_onnx_file_that_changed(tmp_path: Path) -> None:
    """A loaded ONNX file that somebody overwrites is not passed off as what the plan was built from."""
    loaded = OnnxArtifact.load(fresh_onnx(tmp_path / "fresh").save(tmp_path / "onnx.t2e"))
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "model.plan").touch()
    engine = EngineArtifact.from_onnx(loaded, tmp_path / "engine", hardware=HARDWARE)
    with loaded.onnx_path.open("r+b") as file:
        file.write(b"AN")
    with pytest.raises(ArtifactError) as error:
        engine.save(tmp_path / "engine.t2e")
    assert error.value.got == "the bytes of 'model.onnx' are not those that were saved"


# The runtime cache


def test_with_runtime_cache_gives_the_same_engine_with_other_kernels(tmp_path: Path) -> None:
    """The cache is replaced, added or taken away; facts and other files stay, and so does the artifact before."""
    old = fresh_engine(tmp_path)
    new = old.with_runtime_cache(b"other kernels")
    assert (new.read_runtime_cache(), old.read_runtime_cache()) == (b"other kernels", b"kernels of an ONNX model")
    assert (new.signature, new.profiles, new.hardware) == (old.signature, old.profiles, old.hardware)
    assert new.files == old.files
    assert new.read_plan() == old.read_plan()
    none = new.with_runtime_cache(b"")
    assert none.files == ("model.onnx", "model.onnx.data", "model.plan")
    assert (none.read_runtime_cache(), none.runtime_cache_path) == (b"", None)
    assert none.with_runtime_cache(bytearray(b"again")).read_runtime_cache() == b"again"


def test_with_runtime_cache_neither_copies_nor_hashes_the_plan(tmp_path: Path) -> None:
    """On the disk both artifacts name one file, in memory they read one buffer, and a known hash stays known."""
    loaded = EngineArtifact.load(fresh_engine(tmp_path).save(tmp_path / "model.t2e"))
    new = loaded.with_runtime_cache(b"other kernels")
    assert new.plan_path == loaded.plan_path == tmp_path / "model.t2e" / "model.plan"
    assert new.onnx_path == loaded.onnx_path
    pickled = pickle.loads(pickle.dumps(loaded))
    assert pickled.with_runtime_cache(b"x").plan_buffer().obj is pickled.plan_buffer().obj
    loaded.plan_path.unlink()
    assert new.plan_sha256 == loaded.plan_sha256
    files = {name: new.manifest()["files"][name]["bytes"] for name in new.files}
    assert files == {"model.onnx": 13, "model.onnx.data": 24, "model.plan": 23, "runtime.cache": 13}


def test_replaced_runtime_cache_survives_every_way_to_travel(tmp_path: Path) -> None:
    """Saved, saved onto itself, pickled and from a state_dict's parts, the engine has its new kernels."""
    path = fresh_engine(tmp_path).save(tmp_path / "model.t2e")
    new = EngineArtifact.load(path).with_runtime_cache(b"other kernels")
    parts = {name: new.read(name) for name in ("model.plan", "runtime.cache")}
    memory = EngineArtifact.from_manifest(json.loads(json.dumps(new.manifest())), parts)
    pickled = [pickle.loads(pickle.dumps(new, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    saved = [
        EngineArtifact.load(engine.save(tmp_path / f"{index}.t2e"))
        for index, engine in enumerate((new, memory, memory.with_runtime_cache(b"other kernels"), *pickled))
    ]
    again = EngineArtifact.load(new.save(path))
    for engine in (memory, *pickled, *saved, again):
        assert engine.read_runtime_cache() == b"other kernels"
        assert engine.read_plan() == b"a plan of an ONNX model"
    assert again.files == ("model.onnx", "model.onnx.data", "model.plan", "runtime.cache")


def test_replaced_runtime_cache_lies_beside_the_linked_plan(tmp_path: Path) -> None:
    """Who asks for a folder gets one with every file, its plan a second name of the first; it goes with the engine."""
    old = EngineArtifact.load(fresh_engine(tmp_path).save(tmp_path / "model.t2e"))
    new = old.with_runtime_cache(b"other kernels")
    assert new.runtime_cache_path is not None
    assert new.runtime_cache_path.read_bytes() == b"other kernels"
    folder = new.folder
    assert new.runtime_cache_path.parent == folder != old.folder
    assert sorted(entry.name for entry in folder.iterdir()) == list(new.files)
    assert (folder / "model.plan").samefile(old.plan_path)
    assert old.read("runtime.cache") == b"kernels of an ONNX model"
    del new
    gc.collect()
    assert not folder.exists()
    assert old.plan_path.exists()


def test_replaced_runtime_cache_holds_the_scratch_folder(tmp_path: Path) -> None:
    """An engine whose first artifact is gone still has its plan."""
    owner = scratch_folder()
    (owner.path / "model.plan").write_bytes(b"a plan")
    first = EngineArtifact(
        owner.path, signature=SIGNATURE, profiles=PROFILES, precision="fp32", hardware=HARDWARE, owner=owner
    )
    new = first.with_runtime_cache(b"kernels")
    folder = owner.path
    del owner, first
    gc.collect()
    assert new.read_plan() == b"a plan"
    del new
    gc.collect()
    assert not folder.exists()


def test_loading_to_run_reads_the_plan_once(tmp_path: Path) -> None:
    """The first plan and cache are the very bytes that load checked; afterwards the files are read, and checked."""
    path = fresh_engine(tmp_path / "fresh").save(tmp_path / "model.t2e")
    loaded = load_artifact(path, to_run=True)
    assert isinstance(loaded, EngineArtifact)
    for name in ("model.plan", "runtime.cache"):
        (path / name).write_bytes(b"nonsense")
    assert loaded.plan_buffer() == b"a plan of an ONNX model"
    assert loaded.read_runtime_cache() == b"kernels of an ONNX model"
    for read in (loaded.plan_buffer, loaded.read_runtime_cache):
        with pytest.raises(ArtifactError, match="its manifest says"):
            read()


# Hardware


RTX = replace(HARDWARE, flavour="tensorrt_rtx", flavour_version="1.6.1")


@pytest.mark.parametrize(
    ("built", "current"),
    [
        (HARDWARE, HARDWARE),
        (HARDWARE, replace(HARDWARE, gpu="NVIDIA H100", driver="575.1", flavour_version="10.16.1")),
        (HARDWARE, replace(HARDWARE, gpu=None, compute_capability=None, driver=None)),
        (RTX, replace(RTX, compute_capability=(12, 0))),
        (replace(RTX, gpu=None, compute_capability=None), RTX),
        (replace(RTX, compute_capabilities=((8, 6), (9, 0))), replace(RTX, compute_capability=(8, 6))),
    ],
)
def test_hardware_that_fits_passes(tmp_path: Path, built: Hardware, current: Hardware) -> None:
    """The driver, the GPU's name, the fourth number and an unknown compute capability are no reasons to refuse."""
    fresh_engine(tmp_path, hardware=built).check_hardware(current)


VERSION = "and a plan runs in its own version only"


@pytest.mark.parametrize(
    ("built", "current", "text"),
    [
        (
            HARDWARE,
            RTX,
            f"its plan was built by tensorrt 10.16.1.11, this process has tensorrt_rtx 1.6.1 {VERSION}",
        ),
        (
            HARDWARE,
            replace(HARDWARE, flavour_version="10.16.2.11"),
            f"its plan was built by tensorrt 10.16.1.11, this process has tensorrt 10.16.2.11 {VERSION}",
        ),
        (
            RTX,
            replace(RTX, flavour_version="1.7.1"),
            f"its plan was built by tensorrt_rtx 1.6.1, this process has tensorrt_rtx 1.7.1 {VERSION}",
        ),
        (
            HARDWARE,
            replace(HARDWARE, gpu="NVIDIA L4", compute_capability=(8, 9)),
            "its plan was built for compute capability 9.0, this GPU (NVIDIA L4) has 8.9",
        ),
        (
            replace(RTX, compute_capabilities=((8, 6), (8, 9))),
            replace(RTX, gpu=None),
            "its plan was built for compute capability 8.6 or 8.9, this GPU has 9.0",
        ),
    ],
)
def test_hardware_that_does_not_fit_is_refused(tmp_path: Path, built: Hardware, current: Hardware, text: str) -> None:
    """Another flavour, version or compute capability is named on both sides, with the line that rebuilds."""
    engine = fresh_engine(tmp_path, hardware=built)
    with pytest.raises(ArtifactError) as error:
        engine.check_hardware(current)
    assert message(error, tmp_path) == (
        f"artifact 'DIR/engine': {text}; rebuild it here: t2e.build('DIR/engine/model.onnx', ...)"
    )


def test_hardware_error_without_onnx_says_to_deploy_again(tmp_path: Path) -> None:
    """An engine whose ONNX was not kept can't be rebuilt from it."""
    engine = pickle.loads(pickle.dumps(fresh_engine(tmp_path)))
    with pytest.raises(ArtifactError) as error:
        engine.check_hardware(RTX)
    assert error.value.subject == "artifact 'in memory'"
    assert error.value.fix == "deploy the model again on this machine"


# Pickle, copies and state_dicts


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
        assert error.value.got in [f"the bytes of '{name}' are not those that were saved" for name in engine.files]


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
        (manifest, {}, "it holds no 'model.plan'; save it again or restore it from a copy"),
        (manifest, {"model.plan": plan, "x": b""}, f"'x' was given, its manifest lists {files}"),
        (
            manifest,
            {"model.plan": plan[1:]},
            "'model.plan' has 22 bytes, its manifest says 23; save it again or restore it from a copy",
        ),
        (
            {**manifest, "precision": "bf16"},
            {"model.plan": plan},
            "its manifest was changed after it was written, its bytes must match its own digest; "
            "save it again or restore it from a copy",
        ),
        ({**manifest, "x": {1}}, {}, "its manifest is not JSON (Object of type set is not JSON serializable)"),
    ]:
        with pytest.raises(ArtifactError) as error:
            EngineArtifact.from_manifest(changed, given)
        assert str(error.value) == f"artifact 'in memory': {text}"
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.from_manifest(manifest, {"model.plan": plan})
    assert str(error.value) == "artifact 'in memory': it is an engine, an ONNX model is needed here"
    onnx = fresh_onnx(tmp_path / "other")
    with pytest.raises(ArtifactError) as error:
        OnnxArtifact.from_manifest(onnx.manifest(), {"model.onnx": b"an ONNX model"})
    assert error.value.got == "it holds no 'model.onnx.data'"

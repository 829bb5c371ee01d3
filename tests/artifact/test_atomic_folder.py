"""A save appears whole or not at all, whatever dies and whoever else saves, and scratch folders go by themselves."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_artifacts import fresh_engine, fresh_onnx, onnx_bytes, sealed
from torch2engine.artifact import atomic_folder
from torch2engine.artifact.atomic_folder import folder_content
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError


def message(error: pytest.ExceptionInfo[ArtifactError], folder: Path) -> str:
    """An error's text with the test's own folder left out."""
    return str(error.value).replace(str(folder), "DIR")


def test_save_replaces_an_artifact_and_leaves_nothing_else(tmp_path: Path) -> None:
    """The second save takes the first one's place; files of the first that the second lacks are gone."""
    path = tmp_path / "model.t2e"
    fresh_engine(tmp_path / "built").save(path)
    fresh_onnx(tmp_path / "fresh", "another model").save(path)
    assert OnnxArtifact.load(path).read("model.onnx") == onnx_bytes("another model")
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
    assert OnnxArtifact.load(tmp_path / "v1.t2e").read("model.onnx") == onnx_bytes("another model")


def test_save_with_overwrite_false_refuses_what_is_there(tmp_path: Path) -> None:
    """overwrite=False replaces nothing, and writes where nothing is."""
    fresh = fresh_onnx(tmp_path / "fresh")
    fresh.save(tmp_path / "model.t2e", overwrite=False)
    with pytest.raises(ArtifactError) as error:
        fresh.save(tmp_path / "model.t2e", overwrite=False)
    assert message(error, tmp_path) == (
        "artifact 'DIR/model.t2e': got something at that path; expected nothing there, since "
        "overwrite=False replaces nothing; save to another path, or move away what is there"
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
        (a_file, "got a file at that path"),
        (Path.mkdir, "got a folder without a torch2engine manifest at that path"),
        (a_folder, "got a folder without a torch2engine manifest at that path"),
        (a_foreign_manifest, "got a folder without a torch2engine manifest at that path"),
        (a_linked_manifest, "got a folder without a torch2engine manifest at that path"),
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
        f"artifact 'DIR/there': {got}; expected a torch2engine artifact, which alone is replaced; "
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
        "artifact 'DIR/model.t2e': got an artifact at that path with 'notes.txt', which torch2engine "
        "did not write; expected files of torch2engine alone; move 'notes.txt' away"
    )
    assert (path / "notes.txt").read_text() == "theirs"


def forge(path: Path) -> None:
    """Let an unsealed manifest claim somebody's file."""
    (path / "thesis.tex").write_text("theirs")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"]["thesis.tex"] = {"sha256": "0" * 64, "bytes": 6}
    (path / "manifest.json").write_text(json.dumps(manifest))


def claim(path: Path) -> None:
    """Let a sealed manifest claim somebody's file."""
    forge(path)
    (path / "manifest.json").write_bytes(sealed(json.loads((path / "manifest.json").read_bytes())))


def their_file(path: Path) -> None:
    (path / "model.onnx").write_text("theirs")


def their_folder(path: Path) -> None:
    (path / "runtime.cache").mkdir()
    (path / "runtime.cache" / "thesis.tex").write_text("theirs")


def their_link(path: Path) -> None:
    (path / "weights.json").symlink_to(path.parent)


@pytest.mark.parametrize(
    ("spoil", "got", "fix"),
    [
        (forge, "an artifact with a manifest that was changed after it was written at that path", "save to another"),
        (claim, "an artifact at that path with 'thesis.tex', which torch2engine did not write", "move 'thesis.tex'"),
        (their_file, "an artifact at that path with 'model.onnx', which torch2engine did not write", "move 'model.o"),
        (their_folder, "an artifact at that path with 'runtime.cache', which torch2engine did not write", "move 'run"),
        (their_link, "an artifact at that path with 'weights.json', which torch2engine did not write", "move 'weigh"),
    ],
)
def test_save_removes_only_files_whose_hash_a_verified_manifest_records(
    tmp_path: Path, spoil: Callable[[Path], None], got: str, fix: str
) -> None:
    """A file of somebody else stays, even under a name of ours and even if a manifest lists it."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    spoil(path)
    before = folder_content(path)
    with pytest.raises(ArtifactError) as error:
        fresh.save(path)
    assert error.value.got == got
    assert error.value.fix.startswith(fix)
    assert folder_content(path) == before
    if fix.startswith("move"):  # the cure works
        name = fix.split("'")[1][:5]
        for file in path.glob(f"{name}*"):
            file.rename(tmp_path / file.name)
        fresh.save(path)
        assert load_artifact(path).files == ("model.onnx", "model.onnx.data")


def test_save_replaces_an_artifact_of_a_newer_version(tmp_path: Path) -> None:
    """What a newer torch2engine wrote can be replaced as long as its manifest records its files by their hashes."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    (path / "model.new").touch()
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["format_version"] = 2
    manifest["files"]["model.new"] = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    (path / "manifest.json").write_bytes(sealed(manifest))
    fresh.save(path)
    assert load_artifact(path).files == ("model.onnx", "model.onnx.data")


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_file_that_comes_between_check_and_replacement_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What the user puts into the old artifact at the last moment is not removed with it."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    exchange = atomic_folder._exchange

    def late(first: Path, second: Path) -> bool:
        (path / "notes.txt").write_text("theirs")
        return how == "exchange" and exchange(first, second)

    monkeypatch.setattr(atomic_folder, "_exchange", late)
    with pytest.raises(ArtifactError, match=r"with 'notes.txt', which torch2engine did not write"):
        fresh.save(path)
    assert (path / "notes.txt").read_text() == "theirs"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fresh", "model.t2e"]


def test_artifact_that_a_crash_left_aside_counts_as_there(tmp_path: Path) -> None:
    """Killed between two renames, a save leaves an artifact that load finds: overwrite=False does not replace it."""
    fresh = fresh_onnx(tmp_path / "fresh", "new")
    path = fresh_onnx(tmp_path / "old", "old").save(tmp_path / "model.t2e")
    path.rename(atomic_folder.previous_folder(path))
    assert OnnxArtifact.load(path).read("model.onnx") == onnx_bytes("old")
    with pytest.raises(ArtifactError, match="overwrite=False replaces nothing"):
        fresh.save(path, overwrite=False)
    assert OnnxArtifact.load(path).read("model.onnx") == onnx_bytes("old")
    fresh.save(path)
    assert OnnxArtifact.load(path).read("model.onnx") == onnx_bytes("new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fresh", "model.t2e", "old"]


def test_old_folder_aside_with_a_file_of_the_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two names can't be exchanged, a folder under the name that is needed is removed only if it is ours."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "model.t2e")
    monkeypatch.setattr(atomic_folder, "_exchange", lambda *arguments: False)
    aside = atomic_folder.previous_folder(path)
    a_folder(aside)
    with pytest.raises(ArtifactError, match=r"torch2engine-previous.*a folder without a torch2engine manifest"):
        fresh.save(path)
    assert (aside / "thesis.tex").read_text() == "theirs"
    (aside / "thesis.tex").unlink()
    aside.rmdir()
    fresh.save(aside)  # an artifact of ours, as a crash leaves it
    fresh.save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fresh", "model.t2e"]


def test_failed_save_leaves_no_trace(tmp_path: Path) -> None:
    """A file of the artifact that vanished is named; the path and its siblings are as before."""
    fresh = fresh_onnx(tmp_path / "fresh")
    path = fresh.save(tmp_path / "out" / "model.t2e")
    (tmp_path / "fresh" / "model.onnx.data").unlink()
    with pytest.raises(ArtifactError) as error:
        fresh.save(path)
    assert message(error, tmp_path) == (
        "artifact 'DIR/fresh': got no 'model.onnx.data'; expected every file of its manifest; save "
        "it again or restore it from a copy"
    )
    assert load_artifact(path).files == ("model.onnx", "model.onnx.data")
    assert [entry.name for entry in path.parent.iterdir()] == ["model.t2e"]


def test_save_where_no_folder_can_be_is_an_artifact_error(tmp_path: Path) -> None:
    """A file system that answers every new folder with "no such file" does not keep a save trying for ever."""
    with pytest.raises(ArtifactError, match="No such file or directory"):
        fresh_onnx(tmp_path / "fresh").save("/proc/model.t2e")


def test_unfinished_folder_that_is_removed_is_made_again_and_left_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another save may take it for abandoned before it is locked; no descriptor of it stays open."""
    real_flock = atomic_folder.fcntl.flock
    removed: list[Path] = []

    def remove_once(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(next(tmp_path.glob(".model.t2e.torch2engine-saving-*")))
            removed[0].rmdir()
        real_flock(descriptor, operation)

    artifact = fresh_onnx(tmp_path / "fresh")
    monkeypatch.setattr(atomic_folder.fcntl, "flock", remove_once)
    before = len(os.listdir("/proc/self/fd"))
    artifact.save(tmp_path / "model.t2e")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(removed) == 1
    assert load_artifact(tmp_path / "model.t2e").files == ("model.onnx", "model.onnx.data")


def test_save_below_a_file_is_an_artifact_error(tmp_path: Path) -> None:
    """What the operating system refuses comes as an ArtifactError with its words."""
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError) as error:
        fresh_onnx(tmp_path / "fresh").save(tmp_path / "file" / "model.t2e")
    assert message(error, tmp_path) == (
        "artifact 'DIR/file/model.t2e': got 'File exists ('DIR/file')'; "
        "expected a place that can be "
        "read and written; see whether this process may use it and the disk has room"
    )
    assert error.value.path == str(tmp_path / "file" / "model.t2e")


CRASH = """
import os, sys
from pathlib import Path
from tests.support.sample_artifacts import fresh_onnx, onnx_bytes
from torch2engine.artifact import atomic_folder
from torch2engine.artifact.atomic_folder import folder_content
from torch2engine.artifact.load_artifact import load_artifact

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

versions = {onnx_bytes("old" * 1000): "old", onnx_bytes("new" * 1000): "new"}
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
    texts.add(versions[load_artifact(path).read("model.onnx")])
old.save(path)
left = sorted(entry.name for entry in root.iterdir())
print(__import__("json").dumps([status, step, sorted(texts), left]))
"""


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_save_that_dies_at_any_step_leaves_old_or_new(tmp_path: Path, repository: Path, how: str) -> None:
    """Killed before each of its system calls in turn, a save leaves a whole artifact, and the next save tidies up."""
    command = [sys.executable, "-c", CRASH + STEPS, str(tmp_path), how]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, steps, texts, left = json.loads(done.stdout)
    assert (status, texts, left) == (0, ["new", "old"], ["model.t2e", "new", "old"])
    assert steps > 15


KILLED = """
import random, signal, time

versions = {onnx_bytes("old" * 1000): "old", onnx_bytes("new" * 1000): "new"}
random_, parent = random.Random(0), os.getpid()
old.save(path)
for _ in range(10):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"ready")
        while os.getppid() == parent:
            new.save(path)
            old.save(path)
    assert os.read(read, 5) == b"ready"
    time.sleep(random_.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    os.close(read)
    os.close(write)
    print(versions[load_artifact(path).read("model.onnx")])
"""


@pytest.mark.parametrize("how", ["exchange", "two steps"])
def test_save_that_is_killed_at_random_leaves_old_or_new(tmp_path: Path, repository: Path, how: str) -> None:
    """Twenty SIGKILLs at random moments: the path always holds one whole artifact."""
    path = fresh_onnx(tmp_path / "first", "old" * 1000).save(tmp_path / "model.t2e")
    command = [sys.executable, "-c", CRASH + KILLED, str(tmp_path), how]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    versions = done.stdout.split()
    assert len(versions) == 10
    assert set(versions) <= {"old", "new"}
    fresh_onnx(tmp_path / "last").save(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "last", "model.t2e", "new", "old"]


def test_loading_while_another_saves_never_sees_half_an_artifact(tmp_path: Path) -> None:
    """A server that loads while training saves gets the old or the new artifact, never an error."""
    artifacts = [fresh_onnx(tmp_path / text, text) for text in ("old", "new")]
    path = artifacts[0].save(tmp_path / "model.t2e")
    saves, done, loaded = 40, threading.Event(), threading.Semaphore(0)

    def save() -> None:
        for index in range(saves):
            artifacts[index % 2].save(path)
            loaded.acquire()  # no save gets ahead of the loads
        done.set()

    saver = threading.Thread(target=save)
    saver.start()
    loads = 0
    try:
        while not done.is_set():
            assert load_artifact(path).manifest()["files"]["model.onnx"]["bytes"] == len(onnx_bytes("old"))
            loads += 1
            loaded.release()
    finally:
        loaded.release(saves)
        saver.join()
    assert loads >= saves


def test_new_folder_with_the_inode_of_the_old_one_is_another(tmp_path: Path) -> None:
    """File systems give the inode of a removed folder to the next one."""
    identities: list[object] = []
    for _ in range(20):
        (tmp_path / "model.t2e").mkdir()
        identities.append(atomic_folder.folder_identity(tmp_path / "model.t2e"))
        (tmp_path / "model.t2e").rmdir()
    assert len(set(identities)) == 20


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
    assert message(error, tmp_path) == (
        "artifact 'DIR/model.t2e': got 'Input/output error ('DIR/model.t2e')'; expected a place that can be "
        "read and written; see whether this process may use it and the disk has room"
    )
    assert (path / "model.onnx").read_bytes() == onnx_bytes("old")
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
    assert OnnxArtifact.load(path).read("model.onnx") in (onnx_bytes("one"), onnx_bytes("two"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.t2e", "one", "two"]


@pytest.mark.parametrize("user_file", [None, "notes.txt"])
def test_another_save_leaves_the_old_artifact_until_it_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_file: str | None
) -> None:
    """Another save tidies up just after the swap of the names; a file that a user added meanwhile is not lost."""
    path = fresh_onnx(tmp_path / "old", "old").save(tmp_path / "model.t2e")
    exchange = vars(atomic_folder)["_exchange"]

    def exchange_beside_another_save(first: Path, second: Path) -> bool:
        if user_file and not (first / user_file).exists() and not (second / user_file).exists():
            (path / user_file).write_text("mine", encoding="utf-8")
        done = exchange(first, second)
        atomic_folder.remove_abandoned(path)
        return done

    monkeypatch.setattr(atomic_folder, "_exchange", exchange_beside_another_save)
    new = fresh_onnx(tmp_path / "new", "new")
    if user_file is None:
        new.save(path)
        assert (path / "model.onnx").read_bytes() == onnx_bytes("new")
    else:
        with pytest.raises(ArtifactError, match=user_file):
            new.save(path)
        assert (path / user_file).read_text(encoding="utf-8") == "mine"
        assert (path / "model.onnx").read_bytes() == onnx_bytes("old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.t2e", "new", "old"]


@pytest.mark.usefixtures("quick_collection")
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

"""`torch2engine.artifact.engine_cache`: engines that were built before, shared by processes that may die.

Enters: engines built by the real TensorRT-RTX, which needs no GPU, and small artifacts where only the store matters.
Leaves: proof that nothing but the same build is ever found, once, whole, and that the store keeps its bounds.
"""

from __future__ import annotations

import errno
import importlib
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import torch2engine as t2e
from tests.support import onnx_models
from tests.support.sample_artifacts import fresh_engine as sample
from torch2engine.artifact import build_lock, trust
from torch2engine.artifact import engine_cache as cache_room
from torch2engine.artifact.atomic_folder import folder_content
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts, resolve_cache
from torch2engine.artifact.manifest import NAME
from torch2engine.builder import load_or_build as room
from torch2engine.builder.onnx_fingerprint import engine_fingerprint
from torch2engine.builder.source import make_build_source
from torch2engine.core.errors import InputError

RANGES = {"batch": (1, 8, 32)}


TAIL = b" of an ONNX model"  # which the sample's plan ends with


def fresh_engine(folder: Path, plan: bytes = b"a plan") -> EngineArtifact:
    """A small engine without kernels."""
    return sample(folder, plan=plan).with_runtime_cache(b"")


def key(number: int) -> str:
    """A key like another."""
    return hash_facts({"number": number})


def taken(cache: EngineCache, name: str) -> EngineArtifact:
    """The entry, which must be there."""
    found = cache.take(name)
    assert found is not None
    return found


def never(*args: Any, **options: Any) -> EngineArtifact:
    """A build that must not happen."""
    raise AssertionError("built")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def filled(cache: EngineCache, tmp_path: Path, count: int) -> list[str]:
    """Entries of 10 kB and more, stored one after the other, the last a minute ago; their keys."""
    keys = [key(number) for number in range(count)]
    for number, name in enumerate(keys):
        made = fresh_engine(tmp_path / f"made{number}", plan=bytes([number]) * 10_000)
        cache.store(name, made)
        stored = time.time() - 60 * (count - number)
        for file in (cache.folder / name).iterdir():
            os.utime(file, (stored, stored))
    return keys


# What is found


def test_same_build_is_found_and_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build takes the very bytes of the first, and keeps the ONNX that it was given."""
    path = onnx_models.matmul(tmp_path)
    first = t2e.build(path, RANGES, cache=tmp_path / "cache")
    monkeypatch.setattr(room, "compile_in_child", never)
    second = t2e.build(path, RANGES, cache=tmp_path / "cache")
    assert second.read_plan() == first.read_plan()
    assert second.manifest() == first.manifest()
    (entry,) = EngineCache(tmp_path / "cache").entries()
    assert sorted(file.name for file in entry.path.iterdir()) == ["manifest.json", "model.plan"]
    model = onnx.load(path)
    model.graph.node[0].metadata_props.add(key="source", value="elsewhere.py:3")
    onnx.save(model, path)
    third = t2e.build(path, RANGES, cache=tmp_path / "cache")
    assert third.read_plan() == first.read_plan()
    assert third.onnx_path is not None
    assert third.onnx_path.read_bytes() == path.read_bytes()
    with pytest.raises(AssertionError, match="built"):
        t2e.build(path, RANGES)


def gemm(folder: Path) -> Path:
    """y = 0.5 * (x @ w)."""
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm", alpha=0.5)
    ends = (onnx_models.FLOAT, ["batch", 4])
    return onnx_models.save(folder / "gemm.onnx", [node], {"x": ends}, {"y": ends}, {"w": np.eye(4, dtype=np.float32)})


def node_argument(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].attribute[0].f = 0.25
    onnx.save(model, path)


def renamed(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"
    onnx.save(model, path)


def other_weight(path: Path) -> None:
    model = onnx.load(path)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[7] += 1e-6
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)


def other_subgraph(path: Path) -> None:
    model = onnx.load(path)
    branches = [attribute.g for attribute in model.graph.node[0].attribute]
    branches[0].node[0].op_type = "Neg"
    onnx.save(model, path)


def remarks(path: Path) -> None:
    """Sources and texts on everything that can have some."""
    model = onnx.load(path)
    parts = [model, model.graph, *model.graph.node, *model.graph.input]
    for graph in [part.g for node in model.graph.node for part in node.attribute if part.HasField("g")]:
        parts += [graph, *graph.node]
    for part in parts:
        part.doc_string = "said"
        part.metadata_props.add(key="source", value="elsewhere.py:3")
    onnx.save(model, path)


def branches(folder: Path) -> Path:
    """y = -(-x) or y = |x|."""
    ends = onnx.helper.make_tensor_value_info("y", onnx_models.FLOAT, ["batch", 4])
    parts = [
        onnx.helper.make_graph([onnx.helper.make_node(op, ["x"], ["y"], name=op)], op, [], [ends])
        for op in ("Abs", "Identity")
    ]
    node = onnx.helper.make_node("If", ["c"], ["y"], name="if", then_branch=parts[0], else_branch=parts[1])
    inputs = {"x": (onnx_models.FLOAT, ["batch", 4])}
    weights = {"c": np.array(True)}
    return onnx_models.save(folder / "if.onnx", [node], inputs, {"y": (onnx_models.FLOAT, ["batch", 4])}, weights)


@pytest.mark.parametrize("make", [gemm, branches])
def test_remarks_are_not_part_of_the_build(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Source lines and texts, also of nodes in branches; what is in a branch is."""
    path = make(tmp_path)
    before = found_key(path)
    remarks(path)
    assert found_key(path) == before
    if make is branches:
        other_subgraph(path)
        assert found_key(path) != before


def test_naming_the_only_flavour_is_no_change(tmp_path: Path) -> None:
    """None means the one that is installed."""
    path = gemm(tmp_path)
    assert found_key(path, config=t2e.BuildConfig(flavour="tensorrt_rtx")) == found_key(path)


def gpu(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another GPU than the one of the first build."""
    from torch2engine.trt.gpu import Gpu

    here = Gpu(index=0, name="NVIDIA H200", compute_capability=(9, 0), driver="580.1", memory_bytes=1)
    return lambda monkeypatch: monkeypatch.setattr(room, "list_gpus", lambda: [replace(here, **changes)])


def flavour(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another TensorRT."""
    from torch2engine.trt.bindings import find_tensorrt

    here = find_tensorrt()
    return lambda monkeypatch: monkeypatch.setattr(room, "find_tensorrt", lambda name=None: replace(here, **changes))


CHANGES: dict[str, Any] = {
    "node argument": {"file": node_argument},
    "name": {"file": renamed},
    "weight": {"file": other_weight},
    "min": {"ranges": {"batch": (2, 8, 32)}},
    "opt": {"ranges": {"batch": (1, 9, 32)}},
    "max": {"ranges": {"batch": (1, 8, 33)}},
    "profiles": {"ranges": [RANGES, RANGES]},
    "precision": {"precision": "tf32"},
    "workspace": {"config": t2e.BuildConfig(workspace_bytes=1 << 28)},
    "refittable": {"config": t2e.BuildConfig(refittable=True)},
    "GPUs built for": {"config": t2e.BuildConfig(compute_capabilities=((8, 6),))},
    "TensorRT's version": {"world": flavour(version="1.6.2.1")},
    "GPU": {"world": gpu()},
    "GPU's name": {"world": gpu(name="NVIDIA H100"), "before": gpu()},
    "compute capability": {"world": gpu(compute_capability=(9, 1)), "before": gpu()},
    "torch2engine": {"world": lambda monkeypatch: monkeypatch.setattr(room, "__version__", "0.0.0")},
}


def found_key(path: Path, ranges: Any = RANGES, precision: str = "fp32", config: Any = None) -> str:
    """The key of a build that is not carried out."""
    source = make_build_source(path, ranges, precision)
    return hash_facts(room.engine_facts(source, config or t2e.BuildConfig()))


@pytest.mark.parametrize("name", CHANGES)
def test_every_single_change_misses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decides what TensorRT makes is in the key."""
    change = CHANGES[name]
    change.get("before", lambda monkeypatch: None)(monkeypatch)
    path = gemm(tmp_path)
    before = found_key(path)
    assert found_key(path) == before
    change.get("file", lambda path: None)(path)
    change.get("world", lambda monkeypatch: None)(monkeypatch)
    options = {option: change[option] for option in ("ranges", "precision", "config") if option in change}
    assert found_key(path, **options) != before


def test_tf32_setting_of_the_environment_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision alone decides on TF32."""
    path = onnx_models.matmul(tmp_path)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    before = found_key(path)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert found_key(path) == before


def test_driver_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan runs under every driver."""
    path = onnx_models.matmul(tmp_path)
    gpu()(monkeypatch)
    before = found_key(path)
    gpu(driver="600.1")(monkeypatch)
    assert found_key(path) == before


SOURCE = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)
    def forward(self, x):
        return torch.nn.functional.gelu(self.norm(self.conv(x)))
"""


def fingerprint(folder: Path) -> Any:
    """By which an engine of the folder's net.py is found."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "net", raising=False)
        patch.syspath_prepend(folder)
        net = importlib.import_module("net")
        torch.manual_seed(0)
        return engine_fingerprint(
            t2e.export(net.Net().eval(), torch.randn(4, 1, 8, 8), {"x": {0: t2e.Axis("batch", 1, 4, 8)}})
        )


def test_export_in_another_place_is_the_same_build(run_fork: Callable[[str], Any], tmp_path: Path) -> None:
    """Another process, another folder and other lines: else no restarted notebook would find its engine."""
    for place, text in (("here", SOURCE), ("there", "# a line more\n" + SOURCE)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "net.py").write_text(text)
    there = run_fork(
        "import json; from pathlib import Path; from tests.artifact.test_engine_cache import fingerprint\n"
        f"print(json.dumps(fingerprint(Path({str(tmp_path / 'there')!r}))))"
    )
    assert fingerprint(tmp_path / "here") == there


# Wrong engines


class Judge:
    """Wants an engine and fails, or not, before it is kept."""

    def __init__(self, tmp_path: Path) -> None:
        self.path, self.cache = onnx_models.matmul(tmp_path), EngineCache(tmp_path / "cache")

    def __call__(self, error: Exception | None = None) -> EngineArtifact:
        with room.load_or_build(self.path, cache=self.cache, profiles=RANGES) as pending_engine:
            if error is not None:
                raise error
            pending_engine.store(pending_engine.artifact)
            return pending_engine.artifact


def test_work_beside_a_build_blames_no_engine_of_the_cache(tmp_path: Path) -> None:
    """It is done once, whether the engine is built or loaded; its error stores nothing and removes nothing."""
    judge = Judge(tmp_path)
    done: list[int] = []

    def fail() -> None:
        done.append(len(judge.cache.entries()))
        raise t2e.BuildError("work")

    def obtain() -> None:
        room.load_or_build(judge.path, cache=judge.cache, early=room.EarlyBuilder(None, fail), profiles=RANGES)

    with pytest.raises(t2e.BuildError, match="work"):
        obtain()
    assert judge.cache.entries() == ()
    judge()
    with pytest.raises(t2e.BuildError, match="work"):
        obtain()
    assert (done, len(judge.cache.entries())) == ([0, 1], 1)


@pytest.mark.parametrize("error", [t2e.BuildError("parity"), RuntimeError("CUDA error")])
def test_engine_that_is_found_wrong_is_not_found_again(error: Exception, tmp_path: Path) -> None:
    """Neither the one that was built just now, nor one from the cache."""
    judge = Judge(tmp_path)
    with pytest.raises(type(error)):
        judge(error)
    assert judge.cache.entries() == ()
    judge()
    assert len(judge.cache.entries()) == 1
    with pytest.raises(type(error)):
        judge(error)
    assert judge.cache.entries() == ()


@pytest.mark.parametrize(
    "error",
    [
        t2e.InputError("out_of_range"),
        t2e.BuildError("deploy", cancelled=True),
        t2e.BuildError("execution context", out_of_memory=True),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=["input", "cancelled", "memory", "PyTorch's memory"],
)
def test_failure_that_is_no_fault_of_the_engine_leaves_it(error: Exception, tmp_path: Path) -> None:
    """The entry stays: a build would be lost because a user pressed stop, say."""
    judge = Judge(tmp_path)
    judge()
    with pytest.raises(type(error)):
        judge(error)
    assert len(judge.cache.entries()) == 1


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda entry: (entry / "model.plan").write_bytes(b"\x01" + bytes(9_999)),
    "truncated": lambda entry: (entry / "model.plan").write_bytes(b""),
    "plan is gone": lambda entry: (entry / "model.plan").unlink(),
    "manifest is gone": lambda entry: (entry / NAME).unlink(),
    "manifest is no JSON": lambda entry: (entry / NAME).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entry_is_removed(damage: Callable[[Path], object], cache: EngineCache, tmp_path: Path) -> None:
    """With a warning, also where warnings are errors; and it counts as long as it is there."""
    (name,) = filled(cache, tmp_path, 1)
    damage(cache.folder / name)
    assert [entry.key for entry in cache.entries()] == [name]
    with pytest.warns(UserWarning, match="an engine in the cache was damaged and is built anew"):
        assert cache.take(name) is None
    assert cache.take(name) is None
    assert cache.entries() == ()
    cache.store(name, fresh_engine(tmp_path / "anew", plan=b"anew"))
    assert taken(cache, name).read_plan() == b"anew" + TAIL


def test_full_temporary_folder_is_not_the_entrys_fault(
    cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays for when there is room again."""
    (name,) = filled(cache, tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        assert cache.take(name) is None
    assert "can't be taken" in caplog.text
    assert taken(cache, name).read_plan() == bytes(10_000) + TAIL


# Several processes


def test_threads_that_want_the_same_engine_build_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait until the first has found it right, and are told so."""
    judge, builds, told = Judge(tmp_path), list[int](), list[str]()
    waiting = threading.Semaphore(0)
    real = room.compile_in_child

    def counted(*args: Any, **options: Any) -> Any:
        builds.append(1)
        for _ in range(5):  # the build goes on when all others wait for it
            waiting.acquire()
        return real(*args, **options)

    monkeypatch.setattr(room, "compile_in_child", counted)
    found: list[str] = []

    def tell(phase: str, step: int, *_: Any) -> None:
        told.append(f"{phase} {step}")
        if told[-1] == "waiting for another process 0":
            waiting.release()

    def run() -> None:
        options = {"cache": judge.cache, "progress": tell}
        found.append(t2e.build(judge.path, RANGES, **options).plan_sha256)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 6
    assert len(set(found)) == 1
    assert "waiting for another process 0" in told
    assert "waiting for another process 1" in told


def test_locks_leave_nothing_and_are_for_one_key_each(cache: EngineCache) -> None:
    """A build within another, of a metric say, waits for nobody."""
    with cache.building(key(0)), cache.building(key(1), lambda: pytest.fail("waited")):
        assert len(list((cache.folder / "locks").iterdir())) == 2
    assert list((cache.folder / "locks").iterdir()) == []


def test_gpu_is_the_one_that_is_current_when_the_engine_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """deploy makes its GPU current after it began to look."""
    from torch2engine.trt.gpu import Gpu

    gpus = [Gpu(index, name, (9, 0), "580.1", 1) for index, name in enumerate(["one", "two"])]
    monkeypatch.setattr(room, "list_gpus", lambda: gpus)
    path, names = onnx_models.matmul(tmp_path), list[str]()
    real = room.hash_facts
    monkeypatch.setattr(room, "hash_facts", lambda facts: names.append(facts["gpu"][0]) or real(facts))
    cache = EngineCache(tmp_path / "cache")
    monkeypatch.setattr(room, "current_gpu_index", lambda: 1)
    monkeypatch.setattr(room, "_build_engine", lambda *args: None)
    room.load_or_build(path, cache=cache, profiles=RANGES)
    assert names == ["two"]


def test_waiting_can_be_cancelled(tmp_path: Path) -> None:
    """By progress, as a build can."""
    judge = Judge(tmp_path)
    with room.load_or_build(judge.path, cache=judge.cache, profiles=RANGES) as pending_engine:
        with pytest.raises(
            t2e.BuildError,
            match=(
                "got False from progress in 'waiting for another process'; expected another value, since "
                "False cancels; return None to go on"
            ),
        ):
            t2e.build(judge.path, RANGES, cache=judge.cache, progress=lambda *_: False)
        # Who gave up has not taken the lock from who builds.
        told: list[str] = []
        with (
            pytest.raises(ZeroDivisionError),
            judge.cache.building(pending_engine.engine_key, lambda: told.append("waits") or 1 / 0),
        ):
            pass
        assert told == ["waits"]


def test_lock_that_a_stopped_process_holds_is_told_with_its_holder(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever: the error says who holds what, and its cure works."""
    monkeypatch.setattr(build_lock, "_SILENCE_LIMIT_S", 0.0)
    read, write = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        with cache.building(key(0)):
            os.write(write, b"1")
            os.kill(os.getpid(), signal.SIGSTOP)
    os.read(read, 1)
    os.waitid(os.P_PID, child, os.WSTOPPED)
    try:
        with pytest.raises(t2e.BuildError) as caught, cache.building(key(0)):
            pass
        assert str(caught.value) == (
            f"engine cache '{cache.folder}': got the lock of an engine that process {child} on {platform.node()} "
            "holds, without a sign of life for 0 s; expected a process that builds the engine and lets go; end that "
            f"process, e.g. kill -9 {child}, or pass cache=False"
        )
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with cache.building(key(0), lambda: pytest.fail("waited")):
        pass


def test_holder_of_a_lock_that_is_alive_is_waited_for(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It touches the lock's file every few seconds."""
    monkeypatch.setattr(build_lock, "_BEAT_S", 0.0)
    monkeypatch.setattr(build_lock, "_POLL_S", 0.0)
    waits = list(range(50))
    with cache.building(key(0)):
        (place,) = (cache.folder / "locks").iterdir()
        before = place.stat().st_mtime_ns
        with pytest.raises(IndexError), cache.building(key(0), waits.pop):
            pass
        while place.stat().st_mtime_ns == before:
            pass


def test_lock_does_not_live_on_in_a_fork(cache: EngineCache) -> None:
    """A worker that was forked during a build may stay for hours."""
    with cache.building(key(0)):
        child = os.fork()
        if not child:  # pragma: no cover
            signal.pause()
            os._exit(0)
    try:
        with cache.building(key(0), lambda: pytest.fail("waited")):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


RACER = """
import sys, pathlib
import torch2engine as t2e
from torch2engine.builder import load_or_build as room
from torch2engine.core.errors import InputError
real, folder = room.compile_in_child, pathlib.Path(sys.argv[1])
def counted(*args, **options):
    with (folder / "builds").open("a") as file:
        file.write("built\\n")
    return real(*args, **options)
room.compile_in_child = counted
print(t2e.build(folder / "matmul.onnx", {"batch": (1, 8, 32)}, cache=folder / "cache").plan_sha256)
"""


def test_processes_that_want_the_same_engine_build_it_once(tmp_path: Path, repository: Path) -> None:
    """Four at once: one builds, all have the same plan."""
    onnx_models.matmul(tmp_path)
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    plans = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert len(set(plans)) == 1
    assert len(plans[0].strip()) == 64
    assert (tmp_path / "builds").read_text() == "built\n"


WRITER = """
import os, sys, pathlib, random
from tests.support.sample_artifacts import fresh_engine
from torch2engine.artifact.engine_cache import EngineCache, hash_facts
folder = pathlib.Path(sys.argv[1])
cache = EngineCache(folder / "cache", max_bytes=1_500_000)
made = [fresh_engine(folder / f"made{n}", plan=bytes([n]) * 300_000) for n in range(8)]
cache.store(hash_facts({"number": 0}), made[0])  # on a slow machine no child may live long enough to store one

def write(draw):
    while True:
        n = draw.randrange(8)
        key = hash_facts({"number": n})
        with cache.building(key):
            cache.store(key, made[n])
        cache.take(key)
        if n == 3:
            cache.remove(key)

for seed in sys.stdin:
    child = os.fork()
    if not child:
        write(random.Random(int(seed)))
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def test_killed_processes_leave_a_good_cache(tmp_path: Path, repository: Path) -> None:
    """100 SIGKILLs at random moments amid storing, replacing and removing: every entry is whole, nothing is left."""
    draw = random.Random(0)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writers:
        assert writers.stdin is not None
        assert writers.stdout is not None
        for seed in range(100):
            writers.stdin.write(f"{seed}\n".encode())
            writers.stdin.flush()
            child = int(writers.stdout.readline())
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
    assert writers.returncode == 0
    cache = EngineCache(tmp_path / "cache")
    entries = cache.entries()
    assert entries
    for entry in entries:
        number = next(number for number in range(8) if key(number) == entry.key)
        assert taken(cache, entry.key).read_plan() == bytes([number]) * 300_000 + TAIL
    cache.prune()
    assert {path.name for path in cache.folder.iterdir()} <= {"locks", *(key(n) for n in range(8))}
    assert cache.clear() > 0
    assert [path.name for path in cache.folder.iterdir()] == ["locks"]


# Bounds


def test_least_recently_used_goes_first(cache: EngineCache, tmp_path: Path) -> None:
    """What was just taken counts as used; the one that was just stored stays whatever the bound."""
    first, second, third = filled(cache, tmp_path, 3)
    size = cache.entries()[0].size_bytes
    taken(cache, first)
    assert [entry.key for entry in cache.entries()] == [second, third, first]
    assert cache.prune(2 * size) == size
    assert [entry.key for entry in cache.entries()] == [third, first]
    small = EngineCache(cache.folder.parent, max_bytes=1)
    small.store(key(9), fresh_engine(tmp_path / "large", plan=bytes(20_000)))
    assert [entry.key for entry in cache.entries()] == [key(9)]
    assert cache.clear() > 20_000
    assert cache.entries() == ()
    assert cache.prune() == 0


def test_engine_outlives_its_entry(cache: EngineCache, tmp_path: Path) -> None:
    """What was taken can be run, saved and loaded after the entry has gone."""
    (name,) = filled(cache, tmp_path, 1)
    found = taken(cache, name)
    assert cache.remove(name) is True
    assert cache.remove(name) is False
    assert found.read_plan() == bytes(10_000) + TAIL
    assert EngineArtifact.load(found.save(tmp_path / "saved.t2e")).read_plan() == bytes(10_000) + TAIL


def kept(judge: Judge, kernels: bytes, driver: str | None = None) -> bytes:
    """Keep the engine as found, with these kernels; the kernels that are found then."""
    with room.load_or_build(judge.path, cache=judge.cache, profiles=RANGES) as pending_engine:
        engine = pending_engine.artifact
        if driver is not None:
            hardware = replace(engine.hardware, driver=driver)
            engine = engine.replace(hardware=hardware)
        pending_engine.store(engine.with_runtime_cache(kernels))
    (entry,) = judge.cache.entries()
    return EngineArtifact.load(entry.path).read_runtime_cache()


def test_compiled_kernels_are_kept(tmp_path: Path) -> None:
    """The first ones, until a driver comes that does not take them."""
    judge = Judge(tmp_path)
    assert kept(judge, b"") == b""
    assert kept(judge, b"kernels") == b"kernels"
    assert kept(judge, b"others") == b"kernels"
    assert kept(judge, b"newer", driver="600.1") == b"newer"
    # This machine has no driver: a build alone, which compiles nothing, does not pass those on as its own.
    assert t2e.build(judge.path, RANGES, cache=judge.cache).read_runtime_cache() == b""
    (entry,) = judge.cache.entries()
    assert EngineArtifact.load(entry.path).read_runtime_cache() == b""


# Options


@pytest.mark.parametrize("in_the_way", ["folder", "entry"])
def test_cache_that_can_not_be_used_is_told(in_the_way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The engine is built all the same."""
    judge = Judge(tmp_path)
    if in_the_way == "folder":
        (tmp_path / "cache").write_text("in the way")
        assert judge().plan_path.exists()
        assert "can't be used" in caplog.text
        return
    judge.cache.folder.mkdir(parents=True)
    (judge.cache.folder / key(0)).write_text("in the way")
    judge.cache.store(key(0), fresh_engine(tmp_path / "made"))
    assert "can't keep an engine" in caplog.text


def test_folder_that_everybody_may_write_to_is_not_used(
    cache: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine is code."""
    (name,) = filled(cache, tmp_path, 1)
    assert cache.folder.stat().st_mode & 0o077 == 0
    cache.folder.chmod(0o777)
    assert cache.take(name) is None
    cache.store(key(1), fresh_engine(tmp_path / "made"))
    assert len(cache.entries()) == 1
    assert "everybody may write to it" in caplog.text
    cache.folder.chmod(0o700)
    taken(cache, name)


def link_of_mine(cache: EngineCache) -> None:
    """A link of the user's own to a folder of the user's own is fine; one to an open folder is not."""
    real = cache.folder.parent.with_name("open")
    cache.folder.parent.rename(real)
    cache.folder.parent.symlink_to(real)
    real.chmod(0o777)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one path seem to belong to another user, which only root can really do."""
    real = trust._status

    def status(place: Path) -> os.stat_result | None:
        found = real(place)
        if found is None or place != path:
            return found
        return os.stat_result((*found[:4], 12345, *found[5:10]))

    monkeypatch.setattr(trust, "_status", status)


def open_group(cache: EngineCache) -> None:
    cache.folder.chmod(0o770)


def open_parent(cache: EngineCache) -> None:
    cache.folder.parent.chmod(0o777)


DISTRUSTED: dict[str, tuple[Callable[[EngineCache], None], str]] = {
    "group": (open_group, "a group may write to it"),
    "parent": (open_parent, "everybody may write to '.*', above it"),
    "linked parent": (link_of_mine, "everybody may write to '.*open', above it"),
}


@pytest.mark.parametrize(("change", "reason"), DISTRUSTED.values(), ids=DISTRUSTED)
def test_folder_in_other_hands_is_not_used(
    change: Callable[[EngineCache], None],
    reason: str,
    cache: EngineCache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever can write to the cache, or put another folder in its place, decides which code runs."""
    (name,) = filled(cache, tmp_path, 1)
    cache.write_record(key(5), RequestRecord(name, {}))
    change(cache)
    before = folder_content(cache.folder)
    assert cache.take(name) is None
    assert cache.read_record(key(5)) is None
    cache.store(key(1), fresh_engine(tmp_path / "made"))
    cache.write_record(key(6), RequestRecord(name, {}))
    with cache.building(key(2)):
        assert folder_content(cache.folder) == before
    assert re.search(f"is not used: .*{reason}", caplog.text)


@pytest.mark.parametrize("owned", ["folder", "parent", "link"])
def test_folder_of_another_user_is_not_used(
    owned: str, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner decides which code runs, as does the owner of a folder above it, or of a link that leads to it."""
    (name,) = filled(cache, tmp_path, 1)
    if owned == "link":
        cache.folder.parent.rename(tmp_path / "real")
        cache.folder.parent.symlink_to(tmp_path / "real")
    with monkeypatch.context() as patch:
        give_away(cache.folder if owned == "folder" else cache.folder.parent, patch)
        assert cache.take(name) is None
    assert "belongs to another user" in caplog.text
    taken(cache, name)


def test_entry_in_other_hands_is_not_used_and_no_link_is_followed(
    cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an entry of another user, nor one that others may write to, nor a link, which stays."""
    first, second, third = filled(cache, tmp_path, 3)
    (cache.folder / first).chmod(0o777)
    give_away(cache.folder / second, monkeypatch)
    theirs = fresh_engine(tmp_path / "theirs").save(tmp_path / "theirs.t2e")
    shutil.rmtree(cache.folder / third)
    (cache.folder / third).symlink_to(theirs)
    before = folder_content(theirs)
    assert [cache.take(name) for name in (first, second, third)] == [None, None, None]
    cache.store(third, fresh_engine(tmp_path / "made", plan=b"other"))
    assert folder_content(theirs) == before
    assert (cache.folder / third).is_symlink()
    cache.store(first, fresh_engine(tmp_path / "again"))
    taken(cache, first)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_cache_works_under_every_umask(umask: int, tmp_path: Path) -> None:
    """It gives its own folders their modes."""
    before = os.umask(umask)
    try:
        cache = EngineCache(tmp_path / "a" / "b")
        cache.store(key(0), fresh_engine(tmp_path / "made"))
        cache.write_record(key(1), RequestRecord(key(0), {}))
        taken(cache, key(0))
        assert cache.read_record(key(1)) is not None
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM, errno.EIO])
def test_lack_of_descriptors_or_rights_is_no_damage(
    number: int, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry stays for when they are there again."""
    (name,) = filled(cache, tmp_path, 1)
    real = os.open

    def lacking(path: object, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith("model.plan"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)  # type: ignore[arg-type]  # as it came

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lacking)
        assert cache.take(name) is None
    assert "can't be read and is built anew" in caplog.text
    taken(cache, name)


def test_records_of_the_future_are_pruned(cache: EngineCache, tmp_path: Path) -> None:
    """They would stay until then."""
    (name,) = filled(cache, tmp_path, 1)
    for number, age in ((5, -3600.0), (6, 0.0)):
        cache.write_record(key(number), RequestRecord(name, {}))
        os.utime(cache.folder / "requests" / key(number), (time.time() - age,) * 2)
    cache.prune()
    assert cache.read_record(key(5)) is None
    assert cache.read_record(key(6)) is not None


def test_record_holds_numbers_that_are_not_finite(cache: EngineCache) -> None:
    """A search of precisions meets overflows; what can't be noted at all costs a note, not the deploy."""
    facts = {"errors": {"a": float("inf"), "b": [float("-inf"), 1.5]}}
    cache.write_record(key(0), RequestRecord(key(1), facts))
    assert cache.read_record(key(0)) == RequestRecord(key(1), facts)
    cache.write_record(key(2), RequestRecord(key(1), {"odd": object()}))
    assert cache.read_record(key(2)) is None


def test_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No cache rather than no deploy; who asks for the user's folder by name gets an error with a cure."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert resolve_cache(True) is None
    assert "no engine cache is used: EngineCache.folder: got a user without a home folder" in caplog.text
    with pytest.raises(InputError, match=r"got a user without a home folder; expected a folder; pass a folder that"):
        EngineCache("~/engines")


def test_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG variable says; and ~ is the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = resolve_cache(True)
    assert found is not None
    assert found.folder == tmp_path / "torch2engine" / f"engines-{cache_room._VERSION}"
    assert resolve_cache(False) is resolve_cache(None) is None
    assert resolve_cache(found) is found
    assert resolve_cache(str(tmp_path)) is not None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EngineCache("~/engines").folder.parent == tmp_path / "engines"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: resolve_cache(3),
            (
                "cache: got 3; expected True, False, a folder or an EngineCache; pass cache=True for the "
                "user's cache folder"
            ),
        ),
        (
            lambda: EngineCache(""),
            "EngineCache.folder: got ''; expected a folder; pass None for the user's cache folder",
        ),
        (
            lambda: EngineCache(max_bytes=0),
            "EngineCache.max_bytes: got 0; expected a positive int, in bytes; e.g. max_bytes=10 * 2**30",
        ),
        (
            lambda: EngineCache(max_bytes=True),
            ("EngineCache.max_bytes: got True; expected a positive int, in bytes; e.g. max_bytes=10 * 2**30"),
        ),
        (
            lambda: EngineCache("x").take("../y"),
            "cache key: got '../y'; expected 64 hex digits; take a key from entries()",
        ),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], text: str) -> None:
    """In words, before anything is touched."""
    with pytest.raises(t2e.InputError) as caught:
        make()
    assert str(caught.value) == text


def test_prune_leaves_files_behind_a_link(cache: EngineCache, tmp_path: Path) -> None:
    """A link in the place of the records' folder leads to files that are somebody else's, however old."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work", encoding="utf-8")
    os.utime(theirs / "thesis.tex", (0, 0))
    cache.folder.mkdir(parents=True, exist_ok=True)
    records = cache.folder / "requests"
    if records.exists():
        shutil.rmtree(records)
    records.symlink_to(theirs)
    cache.prune()
    assert (theirs / "thesis.tex").read_text(encoding="utf-8") == "years of work"

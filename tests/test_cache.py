"""`torch2engine.cache`: engines that were built before, shared by processes that may die.

Enters: engines built by the real TensorRT-RTX, which needs no GPU, and small artifacts where only the store matters.
Leaves: proof that nothing but the same build is ever found, once, whole, and that the store keeps its bounds.
"""

from __future__ import annotations

import importlib
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

import numpy as np
import onnx
import onnx_models
import pytest
from sample_artifacts import fresh_engine as sample

import torch2engine as t2e
from torch2engine import cache as cache_room
from torch2engine._manifest import NAME
from torch2engine.artifact import EngineArtifact
from torch2engine.cache import EngineCache, cache_of, key_of

BUILD = importlib.import_module("torch2engine.build")  # which the function of that name hides
RANGES = {"batch": (1, 8, 32)}


TAIL = b" of an ONNX model"  # which the sample's plan ends with


def fresh_engine(folder: Path, plan: bytes = b"a plan") -> EngineArtifact:
    """A small engine without kernels."""
    return sample(folder, plan=plan).with_runtime_cache(b"")


def key(number: int) -> str:
    """A key like another."""
    return key_of({"number": number})


def never() -> EngineArtifact:
    """A build that must not happen."""
    raise AssertionError("built")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def filled(cache: EngineCache, tmp_path: Path, count: int) -> list[str]:
    """Entries of 10 kB and more, stored one after the other; their keys."""
    keys = [key(number) for number in range(count)]
    for number, name in enumerate(keys):
        made = fresh_engine(tmp_path / f"made{number}", plan=bytes([number]) * 10_000)
        assert cache.engine(name, lambda made=made: made)[1] is False
        time.sleep(0.01)
    return keys


# What is found


def test_same_build_is_found_and_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build takes the very bytes of the first, the plan's, the ONNX's and every fact."""
    path = onnx_models.matmul(tmp_path)
    first = t2e.build(path, RANGES, cache=tmp_path / "cache")
    monkeypatch.setattr(BUILD, "compile_in_child", lambda *args: never())
    second = t2e.build(path, RANGES, cache=tmp_path / "cache")
    assert second.read_plan() == first.read_plan()
    assert second.manifest() == first.manifest()
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


def gpu(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another GPU than the one of the first build."""
    from torch2engine.device import Gpu

    here = Gpu(index=0, name="NVIDIA H200", compute_capability=(9, 0), driver="580.1", memory_bytes=1)
    return lambda monkeypatch: monkeypatch.setattr(BUILD.device, "gpus", lambda: [replace(here, **changes)])


def flavour(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another TensorRT."""
    from torch2engine import trt

    here = trt.find()
    return lambda monkeypatch: monkeypatch.setattr(BUILD.trt, "find", lambda name=None: replace(here, **changes))


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
    "flavour": {"config": t2e.BuildConfig(flavour="tensorrt_rtx")},
    "TensorRT's version": {"world": flavour(version="1.6.2.1")},
    "TF32 of the process": {"environment": "1"},
    "GPU": {"world": gpu()},
    "GPU's name": {"world": gpu(name="NVIDIA H100"), "before": gpu()},
    "compute capability": {"world": gpu(compute_capability=(9, 1)), "before": gpu()},
    "torch2engine": {"world": lambda monkeypatch: monkeypatch.setattr(BUILD, "__version__", "0.0.0")},
}


def found_key(path: Path, ranges: Any = RANGES, precision: str = "fp32", config: Any = None) -> str:
    """The key of a build that is not carried out."""
    source = BUILD.resolve(path, ranges, precision)
    return key_of(BUILD._facts(source, config or t2e.BuildConfig()))


@pytest.mark.parametrize("name", CHANGES)
def test_every_single_change_misses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decides what TensorRT makes is in the key."""
    change = CHANGES[name]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    change.get("before", lambda monkeypatch: None)(monkeypatch)
    path = gemm(tmp_path)
    before = found_key(path)
    assert found_key(path) == before
    change.get("file", lambda path: None)(path)
    change.get("world", lambda monkeypatch: None)(monkeypatch)
    if "environment" in change:
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", change["environment"])
    options = {option: change[option] for option in ("ranges", "precision", "config") if option in change}
    assert found_key(path, **options) != before


def test_driver_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan runs under every driver."""
    path = onnx_models.matmul(tmp_path)
    gpu()(monkeypatch)
    before = found_key(path)
    gpu(driver="600.1")(monkeypatch)
    assert found_key(path) == before


def test_export_in_another_process_is_the_same_build(run_python: Callable[[str], Any]) -> None:
    """Exports are equal byte for byte, or no process would find another's engine."""
    code = (
        "import json, torch, torch2engine as t2e\n"
        "torch.manual_seed(0)\n"
        "m = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU()).eval()\n"
        "a = t2e.export(m, torch.randn(4, 1, 8, 8), {'input': {0: t2e.Axis('batch', 1, 4, 8)}})\n"
        "print(json.dumps(a.manifest()['files']))"
    )
    assert run_python(code) == run_python(code)


def test_failed_build_stores_nothing(cache: EngineCache) -> None:
    """The error comes out as it is, and the next one tries again."""
    with pytest.raises(AssertionError, match="built"):
        cache.engine(key(0), never)
    assert cache.entries() == ()


# Wrong engines


def test_engine_that_is_found_wrong_is_forgotten(cache: EngineCache, tmp_path: Path) -> None:
    """If parity fails, the same wrong engine is not handed out again."""
    (name,) = filled(cache, tmp_path, 1)
    built = BUILD.Built(cache.engine(name, never)[0], cache, name, True)
    with built.proving():
        pass
    assert len(cache.entries()) == 1
    with pytest.raises(t2e.BuildError), built.proving():
        raise t2e.BuildError("parity")
    assert cache.entries() == ()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda entry: (entry / "model.plan").write_bytes(b"\x01" + bytes(9_999)),
    "truncated": lambda entry: (entry / "model.plan").write_bytes(b""),
    "plan is gone": lambda entry: (entry / "model.plan").unlink(),
    "manifest is gone": lambda entry: (entry / NAME).unlink(),
    "manifest is no JSON": lambda entry: (entry / NAME).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entry_is_built_anew(damage: Callable[[Path], object], cache: EngineCache, tmp_path: Path) -> None:
    """With a warning, and stored again."""
    (name,) = filled(cache, tmp_path, 1)
    damage(cache.folder / name)
    made = fresh_engine(tmp_path / "anew", plan=b"anew")
    with pytest.warns(UserWarning, match="an engine in the cache is damaged and is built anew"):
        found, there = cache.engine(name, lambda: made)
    assert (found.read_plan(), there) == (b"anew" + TAIL, False)
    assert cache.engine(name, never)[0].read_plan() == b"anew" + TAIL


# Several processes


def test_threads_that_want_the_same_engine_build_it_once(cache: EngineCache, tmp_path: Path) -> None:
    """The others wait and take it."""
    calls: list[int] = []

    def build() -> EngineArtifact:
        calls.append(1)
        time.sleep(0.2)
        return fresh_engine(tmp_path / f"made{len(calls)}", plan=b"one")

    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.engine(key(0), build)[0].read_plan())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found == [b"one" + TAIL] * 8


RACER = """
import sys, pathlib
sys.path.insert(0, "tests")
import torch2engine as t2e
from torch2engine import build
room = sys.modules["torch2engine.build"]
real, folder = room.compile_in_child, pathlib.Path(sys.argv[1])
def counted(*args):
    with (folder / "builds").open("a") as file:
        file.write("built\\n")
    return real(*args)
room.compile_in_child = counted
print(t2e.build(folder / "matmul.onnx", {"batch": (1, 8, 32)}, cache=folder / "cache").plan_sha256)
"""


def test_processes_that_want_the_same_engine_build_it_once(tmp_path: Path, repository: Path) -> None:
    """Four at once: one builds, all have the same plan."""
    onnx_models.matmul(tmp_path)
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    plans = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert len(set(plans)) == 1
    assert len(plans[0].strip()) == 64
    assert (tmp_path / "builds").read_text() == "built\n"


WRITER = """
import sys, pathlib, random
sys.path.insert(0, "tests")
from sample_artifacts import fresh_engine
from torch2engine.cache import EngineCache, key_of
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
cache = EngineCache(folder / "cache", max_bytes=1_500_000)
made = [fresh_engine(folder / f"made{seed}-{n}", plan=bytes([n]) * 300_000) for n in range(8)]
print("ready", flush=True)
draw = random.Random(seed)
while True:
    n = draw.randrange(8)
    cache.engine(key_of({"number": n}), lambda: made[n])
    cache.update(key_of({"number": n}), made[n].with_runtime_cache(bytes(1000)))
"""


def test_killed_processes_leave_a_good_cache(tmp_path: Path, repository: Path) -> None:
    """100 SIGKILLs at random moments amid storing, replacing and removing: every entry is whole, nothing is left."""
    draw = random.Random(0)
    for seed in range(100):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(seed)]
        with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(draw.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
    cache = EngineCache(tmp_path / "cache")
    entries = cache.entries()
    assert entries
    for entry in entries:
        number = next(number for number in range(8) if key(number) == entry.key)
        assert cache.engine(entry.key, never)[0].read_plan() == bytes([number]) * 300_000 + TAIL
    cache.prune()
    assert {path.name.removesuffix(".lock") for path in cache.folder.iterdir()} <= {key(n) for n in range(8)}
    assert cache.clear() > 0


# Bounds


def test_least_recently_used_goes_first(cache: EngineCache, tmp_path: Path) -> None:
    """What was just taken counts as used; the one that was just stored stays whatever the bound."""
    first, second, third = filled(cache, tmp_path, 3)
    size = cache.entries()[0].size_bytes
    time.sleep(0.01)
    cache.engine(first, never)
    assert [entry.key for entry in cache.entries()] == [second, third, first]
    assert cache.prune(2 * size) == size
    assert [entry.key for entry in cache.entries()] == [third, first]
    small = EngineCache(cache.folder.parent, max_bytes=1)
    small.engine(key(9), lambda: fresh_engine(tmp_path / "large", plan=bytes(20_000)))
    assert [entry.key for entry in cache.entries()] == [key(9)]
    assert cache.clear() > 20_000
    assert cache.entries() == ()
    assert cache.prune() == 0


def test_engine_outlives_its_entry(cache: EngineCache, tmp_path: Path) -> None:
    """What was taken can be run, saved and loaded after the entry has gone."""
    (name,) = filled(cache, tmp_path, 1)
    taken, _ = cache.engine(name, never)
    cache.clear()
    assert taken.read_plan() == bytes(10_000) + TAIL
    assert EngineArtifact.load(taken.save(tmp_path / "saved.t2e")).read_plan() == bytes(10_000) + TAIL


def test_entry_in_use_is_not_removed(cache: EngineCache, tmp_path: Path) -> None:
    """As long as another one builds or reads it."""
    (name,) = filled(cache, tmp_path, 1)
    with cache._locked(name) as usable:
        assert usable
        assert cache.clear() == 0
        assert cache.remove(name) is False
    assert cache.remove(name) is True


def test_compiled_kernels_are_kept(cache: EngineCache, tmp_path: Path) -> None:
    """Once: the first deploy's kernels join the entry, and who finds some writes none."""
    (name,) = filled(cache, tmp_path, 1)
    plain, _ = cache.engine(name, never)
    BUILD.Built(plain, cache, name, True).keep(plain)
    assert cache.engine(name, never)[0].read_runtime_cache() == b""
    BUILD.Built(plain, cache, name, True).keep(plain.with_runtime_cache(b"kernels"))
    found, _ = cache.engine(name, never)
    assert found.read_runtime_cache() == b"kernels"
    assert found.read_plan() == plain.read_plan()
    BUILD.Built(found, cache, name, True).keep(found.with_runtime_cache(b"others"))
    assert cache.engine(name, never)[0].read_runtime_cache() == b"kernels"
    cache.remove(name)
    BUILD.Built(plain, cache, name, True).keep(plain.with_runtime_cache(b"kernels"))
    assert cache.entries() == ()


# Options


def test_folder_that_can_not_be_used_is_a_warning(tmp_path: Path) -> None:
    """The engine is built all the same."""
    (tmp_path / "file").write_text("in the way")
    made = fresh_engine(tmp_path / "made")
    with pytest.warns(UserWarning, match="can't be used, engines are built anew"):
        assert EngineCache(tmp_path / "file").engine(key(0), lambda: made) == (made, False)


def test_disk_that_refuses_an_entry_is_a_warning(cache: EngineCache, tmp_path: Path) -> None:
    """What was built is handed out."""
    cache.folder.mkdir(parents=True)
    (cache.folder / key(0)).write_text("in the way")
    made = fresh_engine(tmp_path / "made")
    with pytest.warns(UserWarning, match="a file is there already"):
        assert cache.engine(key(0), lambda: made) == (made, False)


def test_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG variable says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = cache_of(True)
    assert found is not None
    assert found.folder == tmp_path / "torch2engine" / f"engines-{cache_room._VERSION}"
    assert cache_of(False) is cache_of(None) is None
    assert cache_of(found) is found
    assert cache_of(str(tmp_path)) is not None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: cache_of(3), "cache: 3, True, False, a folder or an EngineCache"),
        (lambda: EngineCache(max_bytes=0), "EngineCache.max_bytes: 0, a positive int, in bytes"),
        (lambda: EngineCache(max_bytes=True), "EngineCache.max_bytes: True, a positive int, in bytes"),
        (lambda: EngineCache("x").engine("../y", never), "cache key: '../y', 64 hex digits, as key_of gives them"),
    ],
)
def test_wrong_options_are_refused(make: Callable[[], object], text: str) -> None:
    """In words, before anything is touched."""
    with pytest.raises(t2e.InputError) as caught:
        make()
    assert str(caught.value) == text

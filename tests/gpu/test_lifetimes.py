"""Engines across processes, files and time: saved, pickled, forked, rebuilt.

Enters: deployed modules. Leaves: proof that they travel, and that nothing leaks. Apart because it starts processes.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import warnings
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Scale, Tiny, tiny_inputs
from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def module() -> t2e.TRTModule:
    torch.manual_seed(0)
    deployed = t2e.deploy(Tiny().cuda(), tiny_inputs(), TINY_AXES)
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


def _python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, which must say nothing on stderr about destructors; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.stdout


def test_module_that_outlives_everything_ends_without_a_word(module: t2e.TRTModule, tmp_path: Path) -> None:
    """Python clears the globals of every file before it lets go of what `builtins` holds."""
    module.save(tmp_path / "tiny.t2e")
    _python(
        "import builtins, torch2engine as t2e\n"
        "from tests.gpu.models import tiny_inputs\n"
        "config = t2e.RuntimeConfig(cuda_graphs=True)\n"
        f"builtins.held = t2e.load({str(tmp_path / 'tiny.t2e')!r}, runtime_config=config)\n"
        "for _ in range(4): builtins.held(*tiny_inputs(3))\n"
    )


def test_saved_engine_answers_the_same_in_a_fresh_process(module: t2e.TRTModule, tmp_path: Path) -> None:
    """save and load give the same bits, in this process and in one that never saw the model."""
    inputs = tiny_inputs(3)
    wanted = module(*inputs)["logits"]
    module.save(tmp_path / "tiny.t2e")
    assert torch.equal(t2e.load(tmp_path / "tiny.t2e")(*inputs)["logits"], wanted)
    torch.save({"inputs": inputs, "wanted": wanted}, tmp_path / "case.pt")
    code = f"""
import torch, torch2engine as t2e
case = torch.load({str(tmp_path / "case.pt")!r}, weights_only=True)
module = t2e.load({str(tmp_path / "tiny.t2e")!r}, device="cuda:0")
print(torch.equal(module(*case["inputs"])["logits"], case["wanted"]))
"""
    assert _python(code).strip() == "True"


def test_pickle_copy_and_state_dict(module: t2e.TRTModule) -> None:
    """pickle, deepcopy and a state_dict loaded with weights_only=True each give the same answers."""
    inputs = tiny_inputs(3)
    wanted = module(*inputs)["logits"]
    torch.manual_seed(1)
    stream = io.BytesIO()
    torch.save(nn.ModuleDict({"engine": module}).state_dict(), stream)
    stream.seek(0)
    other = nn.ModuleDict({"engine": t2e.deploy(Tiny().cuda(), tiny_inputs(), TINY_AXES)})
    assert not torch.equal(other["engine"](*inputs)["logits"], wanted)
    other.load_state_dict(torch.load(stream, weights_only=True))
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), other["engine"]):
        assert torch.equal(twin(*inputs)["logits"], wanted)


def _answer(module: t2e.TRTModule, inputs: Any, queue: Any) -> None:
    try:
        queue.put(module(*(value.cuda() for value in inputs))["logits"].cpu().numpy())
    except t2e.Torch2EngineError as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_pitfall_37_spawned_processes_answer(module: t2e.TRTModule) -> None:
    """A module sent to a spawned process binds there and answers."""
    inputs = tuple(value.cpu() for value in tiny_inputs(3))
    wanted = module(*(value.cuda() for value in inputs))["logits"].cpu().numpy()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(module, inputs, queue))
    process.start()
    assert (queue.get(timeout=120) == wanted).all()
    process.join(timeout=60)
    assert process.exitcode == 0


def test_pitfall_37_forked_processes_are_refused(module: t2e.TRTModule) -> None:
    """A module used in a fork of its process says so, instead of failing inside CUDA."""
    inputs = tiny_inputs(3)
    module(*inputs)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of exactly what this test does
        child = os.fork()
    if child == 0:
        try:
            module(*inputs)
            text = "no error"
        except t2e.DeviceError as error:
            text = str(error)
        except BaseException as error:
            text = repr(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"CUDA does not survive a fork; start workers with the 'spawn' method" in os.read(reading, 10_000)


def _changed(module: t2e.TRTModule, folder: Path, plan: bytes, **facts: Any) -> t2e.EngineArtifact:
    """The module's artifact with another plan or other facts, and hashes to match."""
    artifact = module._artifact
    (folder / "model.plan").write_bytes(plan)
    return t2e.EngineArtifact(
        folder,
        hardware=replace(artifact.hardware, **facts),
        signature=artifact.signature,
        profiles=artifact.profiles,
        precision=artifact.precision,
        versions=artifact.versions,
    )


def test_pitfall_09_refused_plan_carries_tensorrts_lines(module: t2e.TRTModule, tmp_path: Path) -> None:
    """A plan that TensorRT refuses is an ArtifactError with TensorRT's own words, not a None that fails later."""
    plan = bytearray(module._artifact.read_plan())
    plan[:64] = bytes(64)
    with pytest.raises(
        t2e.ArtifactError, match=r"got None from .*Error Code.*; expected success; build it again on this machine"
    ):
        t2e.TRTModule(_changed(module, tmp_path, bytes(plan))).bind()


def test_pitfall_14_other_version_is_refused(module: t2e.TRTModule, tmp_path: Path) -> None:
    """An engine of another TensorRT version is refused before TensorRT sees its bytes, with both versions named."""
    changed = _changed(module, tmp_path, module._artifact.read_plan(), flavour_version="0.0.1")
    with pytest.raises(t2e.ArtifactError, match=r"0\.0\.1"):
        t2e.TRTModule(changed).bind()


def _resident_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler has freed and the C library keeps
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_pitfall_36_dropped_modules_free_their_engine_at_once() -> None:
    """Without a module its engine is gone, not only after a run of the cyclic garbage collector."""
    module = t2e.deploy(Scale(), torch.randn(4, 64, device="cuda"), {"x": {0: t2e.Axis("n", 1, 64, 1024)}})
    assert isinstance(module, t2e.TRTModule)
    assert module._backend.session is not None
    engine = weakref.ref(module._backend.session.engine)
    gc.collect()
    gc.disable()
    try:
        del module
        assert engine() is None
    finally:
        gc.enable()


def test_pitfall_36_calls_and_rebuilds_leave_memory_flat() -> None:
    """2000 calls over many shapes and five rebuilds grow neither PyTorch's device memory nor the host's."""
    model = nn.Linear(4096, 4096).cuda()

    def once(calls: int) -> None:
        module = t2e.deploy(model, torch.randn(4, 4096, device="cuda"), {"input": {0: t2e.Axis("n", 1, 4, 128)}})
        for index in range(calls):
            module(torch.randn(1 + index % 97, 4096, device="cuda"))
        torch.cuda.synchronize()

    for _ in range(2):
        once(200)
    gc.collect()
    device, host = torch.cuda.memory_allocated(), _resident_bytes()
    for _ in range(5):
        once(400)
    gc.collect()
    assert torch.cuda.memory_allocated() == device
    assert _resident_bytes() - host < 160 << 20  # one kept engine has 64 MiB of weights


def test_quickstart_goes_through_tensorrt() -> None:
    """The quickstart trains, deploys through TensorRT and ends with equal accuracy."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "quickstart.py")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TensorRT" in done.stdout and "accuracy" in done.stdout


def test_torchrun_evaluates_through_tensorrt(tmp_path: Path) -> None:
    """A rank on the GPU, by NCCL: the engine answers every image as the model does, which the example compares."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*torchrun, str(REPOSITORY / "examples" / "evaluate_ranks.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1: 1797 of 1797 images" in done.stdout.splitlines()
    assert (tmp_path / "model.t2e" / "model.plan").is_file()

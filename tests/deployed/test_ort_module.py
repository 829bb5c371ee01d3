"""ORTModule: one session, any number of threads, processes and torch.compile; saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import Scores, mlp, nested, nested_inputs, sample
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import ArtifactError, DeviceError, InputError, ShapeError
from torch2engine.deployed.onnxruntime.ort_backend import OnnxRuntimeBackend
from torch2engine.deployed.onnxruntime.ort_module import ORTModule

Run = Callable[[str], Any]


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


# Threads and processes


def test_pitfall_25_eight_threads_share_a_module() -> None:
    """Every thread gets its own answers, at sizes of its own."""
    model, module = mlp()
    inputs = {(thread, call): sample(1 + (thread + call) % 8, 6) + thread for thread in range(8) for call in range(40)}

    def work(thread: int) -> list[torch.Tensor]:
        return [module(inputs[thread, call]) for call in range(40)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    for thread, found in enumerate(answers):
        for call, y in enumerate(found):
            close(y, model(inputs[thread, call]))


def test_threads_that_call_first_open_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is read once, however many threads make the first call."""
    model, module = mlp()
    module = copy.deepcopy(module)
    opened: list[int] = []
    room = OnnxRuntimeBackend.run.__globals__
    real = room["OrtSession"]
    monkeypatch.setitem(room, "OrtSession", lambda path: opened.append(1) or real(path))
    together = threading.Barrier(8)

    def work(size: int) -> torch.Tensor:
        together.wait(600)
        return module(sample(size, 6))

    with ThreadPoolExecutor(8) as pool:
        for size, y in zip(range(1, 9), pool.map(work, range(1, 9)), strict=True):
            close(y, model(sample(size, 6)))
    assert len(opened) == 1


FORK = """
import copy, json, os
import torch
import torch2engine as t2e
called = t2e.load(folder)
fresh, x = copy.deepcopy(called), torch.ones(3, 6)
expected = called(x)

def in_fork(module):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = "right" if torch.allclose(module(x), expected) else "wrong"
        except Exception as error:
            answer = f"{type(error).__name__} {error}".replace(str(os.getpid()), "CHILD")
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer.replace(str(os.getpid()), "PARENT")

answers = [in_fork(fresh), in_fork(called), in_fork(copy.deepcopy(called))]
answers.append("right" if torch.equal(called(x), expected) else "wrong")
print(json.dumps(answers))
"""


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A line that names a saved module's folder: no code that deploys one need run in a test's process."""
    return f"folder = {str(mlp()[1].save(tmp_path / 'model.t2e'))!r}\n"


def test_fork_after_the_first_call_is_refused(run_fork: Run, saved: str) -> None:
    """A fork can't use its parent's session and says so; a module that was not called before, or a copy, works."""
    text = (
        "DeviceError ORTModule: got a call in the fork CHILD of process PARENT, which called it "
        "first; expected the process that first called it, since ONNX Runtime's threads do not "
        "survive a fork; start workers with the 'spawn' method, or fork before the first call"
    )
    assert run_fork(saved + FORK) == ["right", text, "right", "right"]


FORK_AMID_OPENING = """
import json, os, signal, threading
import torch
import torch2engine as t2e
from torch2engine.deployed.onnxruntime import ort_backend as backend

module = t2e.load(folder)
x, opening, go_on = torch.ones(3, 6), threading.Event(), threading.Event()
open_session = backend.OrtSession

def slow(path):
    opening.set()
    go_on.wait()
    return open_session(path)

backend.OrtSession = slow
thread = threading.Thread(target=module, args=(x,))
thread.start()
opening.wait()
read, write = os.pipe()
child = os.fork()
if not child:
    signal.alarm(600)  # ends a child that hangs
    try:
        module(x)
    except Exception as error:
        os.write(write, type(error).__name__.encode())
    os._exit(0)
os.close(write)
go_on.set()
thread.join()
with os.fdopen(read) as stream:
    print(json.dumps(stream.read()))
os.waitpid(child, 0)
"""


def test_fork_while_a_thread_opens_the_session_is_refused(run_fork: Run, saved: str) -> None:
    """A fork does not wait for a lock that a thread of its parent held: it is refused at once."""
    assert run_fork(saved + FORK_AMID_OPENING) == "DeviceError"


def test_spawned_process_answers() -> None:
    """A module goes to a spawned process by pickle, answers there, and its errors come back whole."""
    model, module = mlp()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        close(pool.submit(deploy_models.answer, module, sample(3, 6)).result(600), model(sample(3, 6)))
        failed = pool.submit(deploy_models.answer, module, sample(9, 6)).exception(600)
    assert type(failed) is ShapeError
    text = "input 'x': got batch = 9; expected 1..8; redeploy with Axis('batch', 1, 4, 9)"
    assert (str(failed), failed.name, failed.fix) == (text, "x", "redeploy with Axis('batch', 1, 4, 9)")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_carries_the_module(protocol: int) -> None:
    """Every protocol gives a module with the same answers and report."""
    model, module = mlp()
    twin = pickle.loads(pickle.dumps(module, protocol))
    close(twin(sample(3, 6)), model(sample(3, 6)))
    assert twin.report == module.report


def test_whole_module_goes_through_torch_save() -> None:
    """torch.save of the module itself, as of any module."""
    model, module = mlp()
    stream = io.BytesIO()
    torch.save(nn.Sequential(module), stream)
    stream.seek(0)
    twin = torch.load(stream, weights_only=False)
    close(twin(sample(3, 6)), model(sample(3, 6)))


# The rest of TRTModule's interface


def test_warmup_takes_the_axes_of_the_signature() -> None:
    """Sizes by axis name, all of a profile's by default; a name that is no axis is refused with those that are."""
    model, module = mlp()
    module = copy.deepcopy(module)
    seen: list[int] = []
    answer = module._backend.run
    module._backend.run = lambda inputs, profile: seen.append(len(inputs[0])) or answer(inputs, profile)
    module.warmup([{"batch": 3}, {}])
    module.warmup()
    assert seen == [3, 4, 1, 4, 8]
    with pytest.raises(InputError) as caught:
        module.warmup([{"rows": 3}])
    assert str(caught.value) == "warmup: got axis 'rows'; expected one of batch; name one of them"
    with pytest.raises(ShapeError, match=r"got batch = 9; expected 1\.\.8"):
        module.warmup([{"batch": 9}])
    close(module(sample(3, 6)), model(sample(3, 6)))


def test_warmup_reaches_every_profile() -> None:
    """Kernels for any size are prepared too where min, opt and max have profiles of their own."""
    axes = {name: {0: "batch"} for name in ("a", "b")}
    profiles = [{"batch": (1, 4, 8)}, *({"batch": (size, size, size)} for size in (1, 4, 8))]
    x = torch.randn(4, 3)
    module = ORTModule(t2e.export(deploy_models.Pair(), (x, x), axes, profiles=profiles))
    seen: set[int] = set()
    answer = module._backend.run
    module._backend.run = lambda inputs, profile: seen.add(profile) or answer(inputs, profile)
    module.warmup()
    assert seen == {0, 1, 2, 3}


def test_trimmed_module_answers_again() -> None:
    """After trim the session is gone, and a call opens another."""
    model, module = mlp()
    module = copy.deepcopy(module)
    close(module(sample(3, 6)), model(sample(3, 6)))
    module.trim()
    assert module._backend._opened is None
    close(module(sample(3, 6)), model(sample(3, 6)))


def test_benchmark_compares_and_times_both_sides() -> None:
    """module.benchmark is the bench room's, on this module."""
    model, module = mlp()
    report = module.benchmark(model, sizes=[{"batch": 2}], rounds=2, calls=3, warmup=1)
    assert {row.candidate for row in report.rows} == {"ONNX Runtime", "PyTorch eager"}
    assert report.parity is not None and report.parity.passed
    assert all(row.timing.host_us > 0 for row in report.rows)


# torch.compile


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_parent_answers(backend: str) -> None:
    """torch.compile leaves the module out of its graphs, without a warning, and its errors come through."""
    _, deployed = mlp()
    module = ORTModule(deployed._artifact)  # has no session yet, which the first call makes
    parent = nn.Sequential(nn.Linear(6, 6), module, nn.ReLU()).eval()
    torch._dynamo.reset()
    compiled = torch.compile(parent, backend=backend)
    with torch.no_grad():
        for size in (3, 5, 2):
            x = sample(size, 6)
            answer = compiled(x)
            torch.testing.assert_close(answer, parent[2](deployed(parent[0](x))))
        with pytest.raises(ShapeError) as caught:
            compiled(sample(9, 6))
    assert str(caught.value).startswith("input 'x': got batch = 9")
    torch._dynamo.reset()


# Options


def test_options_of_a_gpu_are_refused() -> None:
    """What means nothing to ONNX Runtime is not dropped silently."""
    artifact = mlp()[1]._artifact
    with pytest.raises(InputError) as caught:
        ORTModule(artifact, runtime_config=RuntimeConfig(cuda_graphs=False))
    assert str(caught.value) == (
        "ORTModule: got cuda_graphs=False; expected only out_of_range: the rest of RuntimeConfig is "
        "for engines on a GPU; leave it out, or deploy with runtime='tensorrt'"
    )


# Half, bfloat16, double


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_model_of_another_dtype_is_answered_in_it(dtype: torch.dtype) -> None:
    """A cast model's engine takes and gives that dtype, as right as the dtype allows."""
    model = deploy_models.seeded(deploy_models.Mlp).eval().to(dtype)
    module = deploy_models.deploy(model, sample(4, 6, dtype=dtype), deploy_models.BATCH)
    x = sample(7, 6, dtype=dtype)
    found = module(x)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, model(x).detach(), rtol=3 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps
    )


# Saved and loaded


def test_save_and_load_give_the_same_module(tmp_path: Path) -> None:
    """The folder that save wrote is a module with the same answers, on the CPU by name too."""
    model, module = mlp()
    path = module.save(tmp_path / "model.t2e")
    assert path == tmp_path / "model.t2e"
    for loaded in (t2e.load(path), t2e.load(str(path), device="cpu"), t2e.load(path, torch.device("cpu"))):
        assert isinstance(loaded, ORTModule)
        close(loaded(sample(5, 6)), model(sample(5, 6)))
        assert (repr(loaded), loaded.report) == (repr(module), module.report)


def test_saved_folder_may_go_while_the_module_lives(tmp_path: Path) -> None:
    """A module does not depend on what it was saved to."""
    model, module = mlp()
    module = copy.deepcopy(module)
    path = module.save(tmp_path / "model.t2e")
    for file in path.iterdir():
        file.unlink()
    close(module(sample(5, 6)), model(sample(5, 6)))


def test_save_over_an_artifact_replaces_it_and_over_anything_else_is_refused(tmp_path: Path) -> None:
    """Only what torch2engine wrote is ever replaced, and not even that if asked not to."""
    _, module = mlp()
    path = module.save(tmp_path / "model.t2e")
    assert module.save(path) == path
    with pytest.raises(ArtifactError) as caught:
        module.save(path, overwrite=False)
    assert str(caught.value).startswith(f"artifact '{path}': got something at that path; expected nothing there, since")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    with pytest.raises(ArtifactError) as caught:
        module.save(tmp_path / "photos")
    assert str(caught.value) == (
        f"artifact '{tmp_path / 'photos'}': got a folder without a torch2engine manifest at that "
        "path; expected a torch2engine artifact, which alone is replaced; save to another path, or "
        "move away what is there"
    )
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"


def test_load_refuses_a_gpu(tmp_path: Path) -> None:
    """What ONNX Runtime answers on the CPU is not taken elsewhere."""
    path = mlp()[1].save(tmp_path / "model.t2e")
    with pytest.raises(DeviceError) as caught:
        t2e.load(path, device="cuda")
    assert str(caught.value).startswith(
        f"exported model '{path}': got device cuda; expected the CPU, where ONNX Runtime runs it; "
    )
    assert str(caught.value).endswith(f"torch2engine.build(torch2engine.OnnxArtifact.load({str(path)!r}))")


BREAKAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (
        lambda path: path.rename(path.with_name("gone")),
        "got no such folder; expected a saved artifact's folder; give the folder",
    ),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    "no model": (lambda path: (path / "model.onnx").unlink(), "model.onnx"),
    "damaged model": (lambda path: (path / "model.onnx").write_bytes(b"x"), "got 1 bytes in 'model.onnx'"),
    "damaged manifest": (
        lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text().replace("fp32", "fp16")),
        "got a manifest that was changed after it was written; expected bytes that match its own digest",
    ),
    "empty manifest": (
        lambda path: (path / "manifest.json").write_text(""),
        "got a manifest that is not JSON in ASCII",
    ),
}


@pytest.mark.parametrize("how", BREAKAGES)
def test_load_of_a_broken_folder_is_an_artifact_error(tmp_path: Path, how: str) -> None:
    """Nothing of a damaged artifact is believed."""
    path = mlp()[1].save(tmp_path / "model.t2e")
    damage, text = BREAKAGES[how]
    damage(path)
    with pytest.raises(ArtifactError) as caught:
        t2e.load(path)
    assert str(caught.value).startswith(f"artifact '{path}': ")
    assert text in str(caught.value)


def test_graph_that_onnx_runtime_refuses_is_an_artifact_error(tmp_path: Path) -> None:
    """A file that is whole but no model is refused at the first call, by its name."""
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a")
    source = mlp()[1]._artifact
    artifact = OnnxArtifact(tmp_path, signature=source.signature, profiles=source.profiles, precision="fp32")
    with pytest.raises(ArtifactError) as caught:
        ORTModule(artifact)(sample(4, 6))
    assert str(caught.value).startswith("'model.onnx': got ONNX Runtime's ")


LOADED = """
import json, sys
{path}
import torch2engine as t2e
import torch
module = t2e.load({folder!r})
imported = sys.modules.get("tests.support.deploy_models") is not None
from torch2engine.core.pytree import is_tensor

class Batch:
    image, mask = torch.ones(3, 6), torch.ones(3)

try:
    found = module(Batch(), [torch.ones(3, 2), torch.ones(3)], extra={{"bias": torch.zeros(3, 3)}})
    answer = [type(found).__module__, type(found).__qualname__, sorted(found.hidden)]
except t2e.ArtifactError as error:
    answer = str(error)
print(json.dumps([imported, answer]))
"""


def test_result_classes_are_found_again_in_a_fresh_process(tmp_path: Path, run_fork: Run) -> None:
    """A loaded module finds the result types that the program has imported, and needs no other code of the model."""
    path = nested()[1].save(tmp_path / "model.t2e")
    fields = ["again", "kind", "nothing", "states", "sum", "table"]
    code = LOADED.format(path='sys.path.insert(0, "."); import tests.support.deploy_models', folder=str(path))
    assert run_fork(code) == [True, ["tests.support.deploy_models", "Scores", fields]]


def test_result_class_that_is_not_imported_is_named(tmp_path: Path, run_fork: Run) -> None:
    """Where the model's code is not imported, the error names the class and the import; a manifest imports nothing."""
    path = nested()[1].save(tmp_path / "model.t2e")
    assert run_fork(LOADED.format(path='sys.path.insert(0, ".")', folder=str(path))) == [
        False,
        "type 'tests.support.deploy_models:Scores': got no such class here (module 'tests.support.deploy_models' is "
        "not imported, and a manifest may not import it); expected the model's own types, in which results are "
        "rebuilt; import tests.support.deploy_models before the call, as a program of your own would",
    ]


def test_result_class_inside_a_function_works_until_it_is_saved(tmp_path: Path) -> None:
    """A local class is no hindrance in the process that deployed; a loaded module says what is wrong with it."""

    class Local(NamedTuple):
        y: Any

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Local:
            return Local(x.tanh())

    module = deploy_models.deploy(Model(), sample(4, 6))
    assert type(module(sample(4, 6))) is Local
    with pytest.raises(ArtifactError) as caught:
        t2e.load(module.save(tmp_path / "model.t2e"))(sample(4, 6))
    assert "test_result_class_inside_a_function_works_until_it_is_saved.<locals>.Local': got no such class here" in str(
        caught.value
    )


def test_loaded_module_answers_structures(tmp_path: Path) -> None:
    """Arguments and results keep their structure through a save."""
    model, module = nested()
    loaded = t2e.load(module.save(tmp_path / "model.t2e"))
    inputs = nested_inputs(6)
    found, expected = loaded(*inputs.args, **inputs.kwargs), model(*inputs.args, **inputs.kwargs)
    assert type(found) is Scores
    close(found.logits, expected.logits)
    close(found.hidden["states"][0], expected.hidden["states"][0])

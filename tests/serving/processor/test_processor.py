"""`torch2engine.Processor` where there is no GPU: what it refuses, in whose words, and what it imports."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import engine, mlp, nested, nested_inputs, pair, sample
from torch2engine.core.errors import Torch2EngineError
from torch2engine.core.spec import TensorSpec
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.serving.processor import arrays as _arrays
from torch2engine.serving.processor import cuda
from torch2engine.serving.processor import processor as _processor
from torch2engine.serving.processor.staging import Timings

X = np.zeros((4, 6), np.float32)
A = np.zeros((4, 3), np.float32)


def text(kind: type[Exception], call: Any, *args: Any, **kwargs: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def check(module: ORTModule, given: object) -> _arrays.CheckedCall:
    """The contract of a Processor of this model."""
    return _arrays.check_call(module.signature, module._artifact.profiles, given)


def tensors(value: Any) -> Any:
    """The same with tensors in the place of arrays."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, list):
        return [tensors(one) for one in value]
    return {key: tensors(one) for key, one in value.items()} if isinstance(value, dict) else value


# The contract

SHARED: list[tuple[str, type[Exception], tuple[Any, ...], dict[str, Any]]] = [
    ("mlp", t2e.ShapeError, (np.zeros((9, 6), np.float32),), {}),
    ("mlp", t2e.ShapeError, (np.zeros((0, 6), np.float32),), {}),
    ("mlp", t2e.ShapeError, (np.zeros((4, 7), np.float32),), {}),
    ("mlp", t2e.ShapeError, (np.zeros(6, np.float32),), {}),
    ("mlp", t2e.DtypeError, (np.zeros((4, 6)),), {}),
    ("mlp", t2e.DtypeError, (np.zeros((4, 6), np.int32),), {}),
    ("mlp", t2e.DtypeError, (np.zeros((4, 6), np.complex64),), {}),
    ("mlp", t2e.InputError, (), {}),
    ("mlp", t2e.InputError, (X, X), {}),
    ("mlp", t2e.InputError, (), {"y": X}),
    ("mlp", t2e.InputError, (), {"x": X, "y": X}),
    ("mlp", t2e.InputError, ([X],), {}),
    ("mlp", t2e.InputError, (1.0,), {}),
    ("pair", t2e.ShapeError, (A, np.zeros((8, 3), np.float32)), {}),
    ("pair", t2e.ShapeError, (np.zeros((6, 3), np.float32),) * 2, {}),
    ("pair", t2e.ShapeError, (np.zeros((12, 3), np.float32),) * 2, {}),
    ("pair", t2e.ShapeError, (np.zeros((4, 9), np.float32),) * 2, {}),
    ("pair", t2e.InputError, (A,), {}),
    ("pair", t2e.InputError, (), {"b": A}),
]


def in_common(message: str) -> str:
    """An error's text without what only PyTorch, or only numpy, has words for."""
    words = {r"\.to\((\w+)\)": r".astype('\1')", r"a torch\.Tensor": "a numpy.ndarray"}
    words |= {r"pass torch\.as_tensor\(\.\.\.\).*": "pass numpy.asarray(...) of it"}
    for torchs, numpys in words.items():
        message = re.sub(torchs, numpys, message)
    return message


@pytest.mark.parametrize(("name", "kind", "args", "kwargs"), SHARED)
def test_what_a_module_refuses_is_refused_in_the_same_words(
    name: str, kind: type[Exception], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Shape, dtype, missing and extra arguments: one text for tensors and arrays, but for what casts or makes them."""
    module = mlp()[1] if name == "mlp" else pair()
    theirs = text(kind, module, *tensors(list(args)), **tensors(kwargs))
    assert text(kind, check, module, kwargs or list(args)) == in_common(theirs)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            np.zeros((4, 6)),
            "input 'x': got dtype float64; expected float32 (or float16, bfloat16, cast without "
            "loss); cast it yourself with .astype('float32') if the loss is meant",
        ),
        (np.array([["a"] * 6]), "input 'x': got dtype str32; expected float32 (or float16, bfloat16, cast "),
        (np.empty((4, 6), object), "input 'x': got dtype object; expected float32 (or float16, bfloat16, cast "),
        (
            torch.zeros(4, 6),
            "input 'x': got a Tensor; expected a numpy.ndarray; pass numpy.asarray(...) of it",
        ),
        (
            np.ma.masked_array(X, X > 0),
            "input 'x': got a MaskedArray; expected a numpy.ndarray; pass numpy.asarray(...) of it",
        ),
        ({1: X}, "inputs: got the key 1; expected names: x; use these names"),
    ],
)
def test_what_only_numpy_can_hold_is_refused(given: Any, wanted: str) -> None:
    """Strings, objects, masks and tensors are no inputs; the text says what is."""
    with pytest.raises(Torch2EngineError) as caught:
        check(mlp()[1], given)
    assert str(caught.value).startswith(wanted)


@pytest.mark.parametrize("form", ["array", "list", "tuple", "dict"])
def test_one_array_comes_in_every_form(form: str) -> None:
    """An array, a list, a tuple and a dict of the only input are one call."""
    forms: Mapping[str, Any] = {"array": X, "list": [X], "tuple": (X,), "dict": {"x": X}}
    call = check(mlp()[1], forms[form])
    assert call.arrays[0] is X
    assert (call.shapes, call.profile) == (((4, 6),), 0)


def test_profile_that_fits_is_chosen() -> None:
    """A size that only the second profile holds gets the second."""
    big = np.zeros((20, 3), np.float32)
    assert check(pair(), {"b": big, "a": big}).profile == 1


def test_nested_inputs_come_by_structure_or_by_their_own_names() -> None:
    """What the model takes, or a flat dict of the signature's names: the same arrays in the same order."""
    module = nested()[1]
    inputs = nested_inputs(3)
    batch, states = inputs.args
    flat = {
        "batch.image": batch.image.numpy(),
        "batch.mask": batch.mask.numpy(),
        "states.0": states[0].numpy(),
        "states.1": states[1].numpy(),
        "extra.bias": inputs.kwargs["extra"]["bias"].numpy(),
    }
    structured = {
        "batch": deploy_models.Batch(flat["batch.image"], flat["batch.mask"]),
        "states": [flat["states.0"], flat["states.1"]],
        "extra": {"bias": flat["extra.bias"]},
    }
    found = [check(module, given) for given in (flat, dict(reversed(flat.items())), structured)]
    for call in found:
        assert [one is wanted for one, wanted in zip(call.arrays, flat.values(), strict=True)] == [True] * 5
    missing = {name: array for name, array in flat.items() if name != "states.1"}
    names = ", ".join(flat)
    message = f"argument 'states.1': got no value; expected the arguments {names}; pass states.1"
    assert text(t2e.InputError, check, module, missing) == message
    message = f"argument 'states.2': got an unknown name; expected one of {names}; leave it out"
    assert text(t2e.InputError, check, module, {**flat, "states.2": X}) == message
    message = "input 'states.1': got a list; expected a numpy.ndarray; pass numpy.asarray(...) of it"
    assert text(t2e.InputError, check, module, {**flat, "states.1": [1.0]}) == message


def test_odd_arrays_keep_their_values() -> None:
    """Any strides, byte order, read-only arrays, subclasses and scalars are taken as they are."""
    x = sample(4, 6).numpy()
    read_only = x.copy()
    read_only.flags.writeable = False
    for odd in (np.asfortranarray(x), x[::-1], x.astype(">f4"), read_only, x.view(np.recarray), x.astype(np.float16)):
        call = check(mlp()[1], odd)
        assert np.array_equal(call.arrays[0], odd)
    assert text(t2e.ShapeError, check, mlp()[1], np.float32(1)).startswith("input 'x': got shape [] of 0 dimensions")


# Outputs of the caller's own


def outputs(out: object) -> dict[str, Any]:
    """The caller's arrays for the outputs of a model with one of them."""
    return _arrays.match_out(mlp()[1].signature, out)


def test_own_outputs_come_in_every_form() -> None:
    """None, an array, a list and a dict."""
    y = np.empty((4, 3), np.float32)
    assert outputs(None) == {}
    assert [outputs(form)["output"] is y for form in (y, [y], (y,), {"output": y})] == [True] * 4


def test_own_outputs_that_take_no_result_are_refused() -> None:
    """Number, names, kinds and read-only arrays are checked before the call, dtype and shape before the enqueue."""
    y = np.empty((4, 3), np.float32)
    locked = y.copy()
    locked.flags.writeable = False
    cases = {
        "out: got 2 arrays; expected 1: output; pass these": [y, y],
        "out: got an output 'z'; expected one of output; use one of these names": {"z": y},
        "out['output']: got a list; expected a numpy.ndarray to write into; pass one, e.g. of numpy.empty": {
            "output": [1.0]
        },
        "out['output']: got a read-only array; expected an array to write into; pass a copy of it": locked,
    }
    for message, out in cases.items():
        assert text(t2e.InputError, outputs, out) == message
    message = "out['y']: got dtype float64; expected float32, that of the output; make it with dtype='float32'"
    assert text(t2e.DtypeError, _arrays.check_out_array, "y", y.astype("f8"), y.dtype, (4, 3)) == message
    message = "out['y']: got shape [4, 3]; expected [5, 3], that of the output; pass an array of that shape"
    assert text(t2e.ShapeError, _arrays.check_out_array, "y", y, y.dtype, (5, 3)) == message


# Construction

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"device": -1}, "Processor, device: got -1; expected an int of at least 0; pass such a number"),
    ({"device": True}, "Processor, device: got True; expected an int of at least 0; pass such a number"),
    ({"streams": 0}, "Processor, streams: got 0; expected an int of at least 1; pass such a number"),
    (
        {"allocation": "all"},
        ("Processor(allocation=...): got 'all'; expected one of 'max', 'reuse', 'exact'; pass one of these"),
    ),
    (
        {"runtime_config": t2e.RuntimeConfig(streams=3)},
        "RuntimeConfig.streams: got 3 for a Processor; expected contexts, max_shapes, cuda_graphs "
        "and kernel_specialization; pass streams= to the Processor itself",
    ),
    (
        {"runtime_config": t2e.RuntimeConfig(output="static")},
        "RuntimeConfig.output: got 'static' for a Processor; expected contexts, max_shapes, "
        "cuda_graphs and kernel_specialization; leave it out",
    ),
    (
        {"runtime_config": t2e.RuntimeConfig(shared_memory=t2e.SharedMemory())},
        "RuntimeConfig.shared_memory: got SharedMemory(0 bytes) for a Processor; expected contexts, max_shapes, "
        "cuda_graphs and kernel_specialization; leave it out",
    ),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_option_that_is_none_is_refused(options: dict[str, Any], message: str) -> None:
    """An option that a Processor does not have is never ignored."""
    assert text(t2e.InputError, t2e.Processor, engine(), **options) == message


def test_exported_model_is_no_engine(tmp_path: Path) -> None:
    """What has no plan is refused, with the two ways on."""
    message = (
        ": got an exported model; expected an engine, which a Processor runs; build it with "
        "torch2engine.build(artifact), or serve it "
    )
    artifact = mlp()[1]._artifact
    folder = artifact.save(tmp_path / "model.t2e")
    assert text(t2e.ArtifactError, t2e.Processor, folder).startswith(f"artifact '{folder}'{message}")
    assert text(t2e.ArtifactError, t2e.Processor, artifact).startswith(f"artifact{message}")
    assert text(t2e.InputError, t2e.Processor, 3).startswith("Processor(source=...): got 3; expected an EngineArtifact")
    assert text(t2e.ArtifactError, t2e.Processor, tmp_path / "none.t2e").startswith(
        f"artifact '{tmp_path / 'none.t2e'}'"
    )


def test_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the text says what is missing, before pycuda is asked for."""
    deploy_models.hide_gpu(monkeypatch)
    assert text(t2e.InstallationError, t2e.Processor, engine()).startswith("NVIDIA driver: ")


def test_missing_pycuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pycuda the text has the lines that install it."""
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(t2e.InstallationError) as caught:
        cuda._import_pycuda()
    assert str(caught.value) == (
        "pycuda: got no such package; expected an installed pycuda; `pip install "
        "'torch2engine[processor]'`, or on a host that only serves `pip install -r "
        "requirements/serving.txt`"
    )


def test_dtype_that_numpy_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 and float8 need ml_dtypes; the text says so, and with it they are arrays as any."""
    spec = TensorSpec("x", "bfloat16", ("n",))
    assert _arrays.numpy_dtype(spec).name == "bfloat16"
    assert _arrays.numpy_dtype(TensorSpec("x", "float8_e4m3fn", ("n",))).itemsize == 1
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert text(t2e.InstallationError, _arrays.numpy_dtype, spec) == (
        "tensor 'x': got dtype bfloat16, which numpy has not; expected ml_dtypes, which has it; `pip "
        "install ml_dtypes`, or deploy a model with float32 inputs and outputs"
    )


# Copies and pickles


def not_started() -> t2e.Processor:
    """A Processor as a pickle leaves it in a process that has not used it."""
    return _processor._from_pickle(_processor._Options(engine(), 3, "reuse", t2e.RuntimeConfig(cuda_graphs=False)))


def test_pickle_has_the_engine_out_of_band_and_no_gpu() -> None:
    """The plan travels beside the pickle, without a copy; options come along, the device's number does not."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(_processor._not_started(not_started()._options, 7), 5, buffer_callback=buffers.append)
    plan = engine().read_plan()
    assert plan in [bytes(one.raw()) for one in buffers]
    assert len(data) < 8_000 < len(plan)
    twin = pickle.loads(data, buffers=buffers)
    assert (twin.device, twin.signature, twin.precision) == (None, engine().signature, "fp32")
    options = twin._options
    assert (options.streams, options.allocation) == (3, "reuse")
    assert options.runtime_config == t2e.RuntimeConfig(cuda_graphs=False)
    assert options.artifact.plan_sha256 == engine().plan_sha256


@pytest.mark.parametrize("protocol", range(2, 6))
def test_processor_from_a_pickle_starts_at_its_first_use(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks for a GPU before; then the constructor's errors come. A closed one stays closed."""
    deploy_models.hide_gpu(monkeypatch)
    twin = pickle.loads(pickle.dumps(not_started(), protocol))
    assert repr(twin).endswith("device=None)")
    assert twin.timings() is None
    assert text(t2e.InstallationError, twin.infer, X).startswith("NVIDIA driver: ")
    with twin:
        assert twin.last_inference_ms is None
    assert text(t2e.InputError, twin.infer, X).startswith("Processor: got a call after close()")


def test_copy_keeps_the_gpu() -> None:
    """A copy in the same process works on the same device, with the same engine."""
    first = _processor._not_started(not_started()._options, 1)
    for twin in (copy.copy(first), copy.deepcopy({"kept": first})["kept"]):
        assert (twin.device, twin._artifact is first._artifact) == (1, True)
        assert twin is not first


# The order of calls, with a session that answers on the host


class HostSession:
    """Answers with the first three columns, doubled, and counts calls under way."""

    def __init__(self, *_: Any) -> None:
        self.last: Timings | None = None
        self.under_way = 0
        self.most_under_way = 0
        self.is_closed = False

    def start(self, call: _arrays.CheckedCall, out: Mapping[str, Any], blocking: bool) -> Any:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return call.arrays[0][:, :3] * 2

    def finish(self, pending: Any) -> OrderedDict[str, Any]:
        self.under_way -= 1
        self.last = Timings(0.5, 1.0, float(pending.sum()), 2.0)
        return OrderedDict(output=pending)

    def abandon(self, pending: Any) -> None:
        self.under_way -= 1

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[t2e.Processor, HostSession]]:
    """A Processor with such a session; its engine takes 1 to 8 rows."""
    monkeypatch.setattr(_processor, "ProcessorSession", HostSession)
    with t2e.Processor(engine()) as processor:
        session: Any = processor._live
        yield processor, session
    assert session.is_closed
    assert session.under_way == 0


def constant(value: float, rows: int = 2) -> Any:
    """Rows of one value."""
    return np.full((rows, 6), value, np.float32)


def test_timings_are_those_of_the_inference_that_ended_last(on_host: tuple[t2e.Processor, HostSession]) -> None:
    """None before the first."""
    processor, _ = on_host
    assert (processor.timings(), processor.last_inference_ms) == (None, None)
    for value in (1.0, 3.0):
        processor.infer(constant(value))
        assert processor.last_inference_ms == 12 * value
    assert processor.timings() == Timings(0.5, 1.0, 36.0, 2.0)


@pytest.mark.parametrize("depth", [1, 3, 9])
def test_stream_answers_in_order_with_as_many_calls_under_way_as_are_allowed(
    depth: int, on_host: tuple[t2e.Processor, HostSession]
) -> None:
    """Calls of other shapes may follow each other."""
    processor, session = on_host
    answers = list(processor.infer_stream((constant(value, 1 + value % 3) for value in range(5)), depth))
    assert [answer["output"].tolist() for answer in answers] == [[[2.0 * v] * 3] * (1 + v % 3) for v in range(5)]
    assert session.most_under_way == min(depth, 5)


@pytest.mark.parametrize(("streams", "depth"), [(1, 4), (2, 4), (3, 6), (5, 10)])
def test_stream_has_two_calls_under_way_for_each_stream(
    streams: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a depth: one computes and one waits for it; `map` does the same with batches."""
    monkeypatch.setattr(_processor, "ProcessorSession", HostSession)
    with t2e.Processor(engine(), streams=streams) as processor:
        session: Any = processor._live
        assert len(list(processor.infer_stream([constant(1)] * 20))) == 20
        assert session.most_under_way == depth
        session.most_under_way = 0
        assert len(list(processor.map(np.ones((40, 6), np.float32), batch_size=2))) == 40
        assert session.most_under_way == depth


def test_item_without_an_answer_raises_behind_the_results_before_it(
    on_host: tuple[t2e.Processor, HostSession],
) -> None:
    """What was under way is answered, nothing later is fetched, and the error is the item's own."""
    processor, _ = on_host
    fetched: list[int] = []

    def items() -> Iterator[Any]:
        for number, item in enumerate((constant(1), constant(2), constant(3, 9), constant(4))):
            fetched.append(number)
            yield item

    stream = processor.infer_stream(items(), depth=4)
    assert [next(stream)["output"][0, 0] for _ in range(2)] == [2.0, 4.0]
    with pytest.raises(t2e.ShapeError, match="got batch = 9"):
        next(stream)
    assert fetched == [0, 1, 2]


def test_stream_that_is_closed_leaves_no_call_under_way(on_host: tuple[t2e.Processor, HostSession]) -> None:
    """The caller may stop after any result."""
    processor, session = on_host
    stream = processor.infer_stream([constant(value) for value in range(6)], depth=3)
    next(stream)
    assert session.under_way == 2
    stream.close()
    assert session.under_way == 0


def test_map_answers_every_sample_alone(on_host: tuple[t2e.Processor, HostSession]) -> None:
    """Batches are filled up with copies, whose answers nobody sees."""
    processor, _ = on_host
    answers = list(processor.map([constant(value)[0] for value in range(7)], batch_size=4))
    assert [answer["output"].tolist() for answer in answers] == [[2.0 * value] * 3 for value in range(7)]


# A host that only serves

SERVING = """
import json, sys
import torch2engine
kind = torch2engine.Processor.__name__
try:
    torch2engine.Processor(sys.argv[1])
except torch2engine.InstallationError as error:
    told = str(error)
names = sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2].split(",")))
print(json.dumps([kind, told, names]))
"""


def serving_names(repository: Path) -> list[str]:
    """What requirements/serving.txt asks for."""
    lines = (repository / "requirements" / "serving.txt").read_text(encoding="utf-8").splitlines()
    return [name[0] for line in lines if (name := re.match(r"[\w-]+", line))]


def bare_environment(folder: Path, names: list[str]) -> Path:
    """A virtual environment with these distributions, linked from this one; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in names:
        for file in importlib.metadata.files(name) or []:
            target = site / file.parts[0]
            if file.parts[0] != ".." and not target.exists():
                here = Path(str(file.locate()))
                target.symlink_to(here.parents[len(file.parts) - 2] if len(file.parts) > 1 else here)
    return folder / "bin" / "python"


def test_requirements_for_serving_are_few(repository: Path) -> None:
    """numpy, pycuda and a TensorRT; nothing of training."""
    assert serving_names(repository) == ["numpy", "pycuda", "tensorrt-rtx"]


def test_processor_needs_no_torch_and_no_onnx(repository: Path, tmp_path: Path) -> None:
    """In an environment with numpy and TensorRT alone it imports, loads and says that there is no GPU."""
    artifact = engine().save(tmp_path / "model.t2e")
    rtx = [name for one in importlib.metadata.distributions() if (name := one.name).startswith("tensorrt_rtx")]
    python = bare_environment(tmp_path / "venv", ["numpy", *rtx])
    heavy = "torch,onnx,onnxruntime,onnxscript,rich,platformdirs,ml_dtypes,pycuda"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [str(python), "-c", SERVING, str(artifact), heavy],
        cwd=tempfile.gettempdir(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    kind, told, names = json.loads(done.stdout)
    assert (kind, names) == ("Processor", [])
    assert told.startswith("NVIDIA driver: ")

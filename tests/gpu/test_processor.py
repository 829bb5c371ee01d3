"""Processor on a real engine: numpy in, numpy out, beside PyTorch and without it.

Enters: arrays as users have them. Leaves: proof. Apart from the CPU tests because copies and streams are real here.
"""

from __future__ import annotations

import copy
import doctest
import gc
import itertools
import json
import os
import pickle
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Scale, Tiny, tiny_inputs
from tests.gpu.scenarios import run_together
from torch2engine.serving.batch_runner import BatchRunner
from torch2engine.serving.processor.arrays import check_call
from torch2engine.serving.processor.cuda import Cuda
from torch2engine.serving.processor.staging import PendingCall, Timings
from torch2engine.trt.context import Context
from torch2engine.trt.gpu import current_gpu_index

AXIS = t2e.Axis("n", 1, 64, 4096)
ALLOCATIONS = ("max", "reuse", "exact")


@pytest.fixture(scope="module")
def artifact() -> t2e.EngineArtifact:
    """x * 2 on [n, 64], exact."""
    return t2e.build(t2e.export(Scale(), torch.randn(4, 64, device="cuda"), {"x": {0: AXIS}}))


@pytest.fixture
def double(artifact: t2e.EngineArtifact) -> Iterator[t2e.Processor]:
    """A Processor of its own for each test."""
    with t2e.Processor(artifact) as processor:
        yield processor


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, t2e.TRTModule]:
    """A model with every kind of output, deployed."""
    torch.manual_seed(0)
    model = Tiny().cuda().eval()
    module = t2e.deploy(model, tiny_inputs(), TINY_AXES)
    assert isinstance(module, t2e.TRTModule)
    return model, module


def rows(count: int, seed: int = 0) -> Any:
    """(count, 64) float32, other values for each seed."""
    return np.random.default_rng(seed + count).normal(size=(count, 64)).astype(np.float32)


def only(results: Any) -> Any:
    """The value of the only output."""
    (value,) = results.values()
    return value


def test_outputs_have_the_signatures_names_and_the_models_values(tiny: tuple[nn.Module, t2e.TRTModule]) -> None:
    """Computed, passed-through and repeated outputs come by name, in order, at every batch size and in every form."""
    model, module = tiny
    names = [spec.name for spec in module.signature.outputs]
    with t2e.Processor(module._artifact) as processor, torch.no_grad():
        for batch in (1, 5, 32, 5):
            x, scale = tiny_inputs(batch)
            arrays = {"x": x.cpu().numpy(), "scale": scale.cpu().numpy()}
            wanted = {key: value for key, value in model(x, scale).items() if isinstance(value, torch.Tensor)}
            for form in (arrays, list(arrays.values()), tuple(arrays.values()), dict(reversed(arrays.items()))):
                found = processor.infer(form)
                assert list(found) == names
                for name, array in found.items():
                    like = wanted[name.removeprefix("output.")].cpu()
                    torch.testing.assert_close(torch.from_numpy(array), like, rtol=1e-3, atol=1e-4)


def test_example_in_the_docstring_answers_on_a_gpu(artifact: t2e.EngineArtifact, tmp_path: Path) -> None:
    """The function that Processor's docstring shows, and that no machine without a GPU can call, does what it says."""
    names: dict[str, Any] = {"t2e": t2e}
    exec(doctest.DocTestParser().get_examples(t2e.Processor.__doc__ or "")[0].source, names)
    images = rows(5)
    classes = names["classify"](artifact.save(tmp_path / "model.t2e"), images)
    assert np.array_equal(classes, images.argmax(1))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "int32", "uint8", "bool"])
def test_every_dtype_comes_through(dtype: str) -> None:
    """Values and dtypes of what the engine takes and gives are those of the arrays."""

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype == torch.bool:
                return x.logical_not()
            return x.float() * 2 if x.dtype == torch.uint8 else x * 2

    x = np.random.default_rng(0).integers(0, 100, (3, 40)).astype(dtype)
    built = t2e.build(t2e.export(Double(), torch.from_numpy(x).cuda(), {"x": {0: t2e.Axis("n", 1, 3, 8)}}))
    with t2e.Processor(built) as processor:
        for form in (x, x[:, ::-1], np.asfortranarray(x), x.astype(x.dtype.newbyteorder(">"))):
            found = only(processor.infer(form))
            assert found.dtype == ("float32" if dtype == "uint8" else dtype)
            assert np.array_equal(found, ~form if dtype == "bool" else form.astype(found.dtype) * 2)


def test_rows_of_every_count_are_few_sizes_of_calls(
    artifact: t2e.EngineArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A size that was never called compiles kernels, so batches of requests are filled up to sizes that are warm."""
    called: list[int] = []
    batches = BatchRunner._padded_batches

    def noted(self: BatchRunner, columns: Any, count: int) -> Iterator[Any]:
        for part in batches(self, columns, count):
            called.append(len(part["x"]))
            yield part

    monkeypatch.setattr(BatchRunner, "_padded_batches", noted)
    runner = BatchRunner(artifact, batch_size=16)
    runner.warm_up()
    rows = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    for count in range(1, 41):
        (answer,) = runner({"x": rows[:count]}).values()
        np.testing.assert_array_equal(answer, 2 * rows[:count])
    assert set(called) == {1, 2, 4, 8, 16}
    runner.close()


def test_what_a_module_refuses_is_refused_in_the_same_words(tiny: tuple[nn.Module, t2e.TRTModule]) -> None:
    """One text for tensors and arrays, but for the words that cast or make them."""
    module = tiny[1]
    x, scale = (tensor.cpu().numpy() for tensor in tiny_inputs(4))
    big = [tensor.cpu().numpy() for tensor in tiny_inputs(33)]
    cases: list[list[Any]] = [big, [x, scale[:3]], [x[..., 0], scale], [x[:, :, :4], scale], [x[:0], scale[:0]]]
    cases += [[x.astype(np.float64), scale], [x], [x, scale, 3.0], [x, scale, 2.0, 1], [x, 1.0]]
    with t2e.Processor(module._artifact) as processor:
        for case in cases:
            tensors = [torch.from_numpy(one).cuda() if isinstance(one, np.ndarray) else one for one in case]
            with pytest.raises(t2e.InputError) as theirs:
                module(*tensors)
            with pytest.raises(t2e.InputError) as ours:
                processor.infer(case)
            text = re.sub(r"\.to\((\w+)\)", r".astype('\1')", str(theirs.value)).replace(
                "torch.Tensor", "numpy.ndarray"
            )
            text = text.replace("torch.as_tensor(...) on the engine's device", "numpy.asarray(...) of it")
            assert (type(ours.value), str(ours.value)) == (type(theirs.value), text)
        assert len(processor.infer([x, scale])) == len(module.signature.outputs)


def test_pitfall_03_any_layout_is_right(double: t2e.Processor) -> None:
    """Strides, order, byte order, read-only and lossless casts are part of an array's value."""
    x = rows(100)
    locked = x.copy()
    locked.flags.writeable = False
    odd = [np.asfortranarray(x), rows(200)[::2], x[::-1], x[:, ::-1], x.astype(">f4"), locked, x.astype(np.float16)]
    odd += [np.broadcast_to(x[:1], (100, 64)), np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(-1, 64)]
    for array in odd:
        for _ in range(4):
            assert np.array_equal(only(double.infer(array)), array.astype(np.float32) * 2)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("graphs", [True, False])
def test_pitfall_02_results_are_the_callers_own(artifact: t2e.EngineArtifact, allocation: str, graphs: bool) -> None:
    """No later call changes a result, whatever the shapes, the allocation and whether graphs are launched."""
    config = t2e.RuntimeConfig(cuda_graphs=graphs, contexts=4)
    with t2e.Processor(artifact, allocation=allocation, runtime_config=config) as processor:
        kept: list[tuple[Any, Any]] = []
        for number, count in enumerate([7, 7, 7, 7, 900, 7, 4096, 7, 900, 1, 2, 3, 4, 5, 6, 7, 7, 7, 4096]):
            x = rows(count, number)
            kept.append((only(processor.infer(x)), x * 2))
        assert all(np.array_equal(found, wanted) for found, wanted in kept)
        graphed = [
            len(one.graphs) > 0 for executor in processor._session._executors for one in executor.pool.prepared.values()
        ]
        assert any(graphed) is (graphs and allocation != "exact")


def test_allocations_hold_what_they_say(artifact: t2e.EngineArtifact) -> None:
    """ "max" has room for the largest shapes from the start, "reuse" for those that came, "exact" for none."""
    sizes: dict[str, list[int]] = {}
    for allocation in ALLOCATIONS:
        with t2e.Processor(artifact, streams=1, allocation=allocation) as processor:
            executor = processor._session._executors[0]
            sizes[allocation] = [executor._outputs.size_bytes]
            for count in (3, 1000, 3):
                processor.infer(rows(count))
                sizes[allocation].append(executor._outputs.size_bytes)
    assert sizes == {"max": [1 << 20] * 4, "reuse": [0, 768, 256_000, 256_000], "exact": [0] * 4}


def test_own_outputs_are_filled(double: t2e.Processor) -> None:
    """Arrays in `out` are what comes back: contiguous or not, page-locked or not; others are refused untouched."""
    x = rows(500)
    pinned = double.empty(n=500)["x"]
    for out in (np.empty_like(x), np.empty((500, 64), np.float32, order="F"), np.empty((1000, 64), "f4")[::2], pinned):
        for _ in range(4):
            out.fill(0)
            assert only(double.infer(x, out=out)) is out
            assert np.array_equal(out, x * 2)
    small = np.zeros((499, 64), np.float32)
    with pytest.raises(t2e.ShapeError, match=r"got shape \[499, 64\]; expected \[500, 64\]"):
        double.infer(x, out=small)
    with pytest.raises(t2e.DtypeError, match="got dtype float64; expected float32"):
        double.infer(x, out=np.zeros((500, 64)))
    assert not small.any()
    own = double.empty(n=500)["x"]
    own[:] = x
    assert only(double.infer(own, out=own)) is own
    assert np.array_equal(own, x * 2)


def test_page_locked_arrays_are_not_staged(double: t2e.Processor) -> None:
    """Ours and PyTorch's are read where they lie, pageable ones are not; the answers are the same."""

    def direct(array: Any) -> bool:
        profiles = double._artifact.profiles
        pending: PendingCall = double._session.start(check_call(double.signature, profiles, array), {}, blocking=False)
        assert np.array_equal(only(double._session.finish(pending)), array.astype(np.float32) * 2)
        return bool(pending.direct)

    ours = double.empty(n=4096)["x"]
    ours[:] = rows(4096)
    theirs = torch.empty(4096, 64, pin_memory=True).numpy()
    theirs[:] = ours
    assert [direct(ours), direct(theirs), direct(ours[512:])] == [True] * 3
    assert not any(direct(array) for array in (ours.copy(), ours[:8], ours[::2], ours.astype(np.float16)))
    double.close()
    assert np.array_equal(ours, theirs)


# Streams


def reused(count: int, size: int) -> Iterator[Any]:
    """One array, filled anew for every item."""
    x = np.empty((size, 64), np.float32)
    for number in range(count):
        x.fill(number)
        yield x


def test_one_call_at_a_time_keeps_to_one_stream(artifact: t2e.EngineArtifact) -> None:
    """The next stream, with contexts and memory of its own, is for calls that come meanwhile."""
    with t2e.Processor(artifact, streams=3) as processor:
        executors = processor._session._executors
        for count in (7, 900, 7):
            processor.infer(rows(count))
        assert [len(executor.pool.prepared) for executor in executors] == [2, 0, 0]
        assert all(len(only(results)) == 7 for results in processor.infer_stream([rows(7)] * 12, depth=3))
        assert [len(executor.pool.prepared) for executor in executors] == [2, 1, 1]


@pytest.mark.parametrize("depth", [1, 3, 4, 9])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_stream_keeps_the_order(artifact: t2e.EngineArtifact, streams: int, depth: int) -> None:
    """Every result is its item's, in order, though the source fills one array again and again."""
    with t2e.Processor(artifact, streams=streams) as processor:
        found = [only(results) for results in processor.infer_stream(reused(40, 4096), depth)]
        assert len(found) == 40
        for number, result in enumerate(found):
            assert np.array_equal(result, np.full((4096, 64), 2 * number, np.float32))
        mixed = [rows(count, count) for count in (1, 4096, 7, 2000, 7, 7, 4096, 1)]
        assert all(
            np.array_equal(only(results), x * 2)
            for results, x in zip(processor.infer_stream(mixed, depth), mixed, strict=True)
        )


def test_stream_asks_no_further_ahead_than_its_depth(double: t2e.Processor) -> None:
    """With a result taken, at most `depth` more items have been asked for."""
    asked: list[int] = []

    def items() -> Iterator[Any]:
        for number in range(30):
            asked.append(number)
            yield rows(8, number)

    for number, _ in enumerate(double.infer_stream(items(), depth=3)):
        assert len(asked) <= number + 3


@pytest.mark.parametrize("fault", ["source", "shape"])
def test_error_comes_at_its_item(double: t2e.Processor, fault: str) -> None:
    """All results before the item that fails are given, then its error; the next call is right."""

    def items() -> Iterator[Any]:
        yield from (rows(64, number) for number in range(6))
        if fault == "source":
            raise OSError("disk")
        yield rows(64)[:, :3]
        raise AssertionError("asked for more after an error")

    found: list[Any] = []
    with pytest.raises(OSError if fault == "source" else t2e.ShapeError):
        found.extend(map(only, double.infer_stream(items())))
    assert len(found) == 6
    assert all(np.array_equal(result, rows(64, number) * 2) for number, result in enumerate(found))
    assert np.array_equal(only(double.infer(rows(5))), rows(5) * 2)


def test_stream_that_is_left_gives_everything_back(double: t2e.Processor) -> None:
    """Closed, dropped or outlived by its Processor, a generator holds nothing; calls in between are answered."""
    for _ in range(20):
        stream = double.infer_stream(reused(10, 4096))
        next(stream)
        assert np.array_equal(only(double.infer(rows(9))), rows(9) * 2)
        stream.close()
        next(double.infer_stream(reused(10, 4096)))
    gc.collect()
    assert [executor.waiting for executor in double._session._executors] == [0, 0]
    assert len(double._session._spare_staging) <= sum(double._session._max_spare.values())
    stream = double.infer_stream(reused(10, 4096), depth=3)
    first = only(next(stream))
    double.close()
    assert [float(only(results)[0, 0]) for results in itertools.islice(stream, 2)] == [2.0, 4.0]
    assert not first.any()
    with pytest.raises(t2e.InputError, match="a call after close"):
        next(stream)


def test_map_pads_and_splits(tiny: tuple[nn.Module, t2e.TRTModule], double: t2e.Processor) -> None:
    """Samples come back one by one, whatever the batches, without what they were filled up with."""
    x = rows(70)
    for asked in (1, 16, 64, 9999):
        found = [only(results) for results in double.map(x, asked)]
        assert len(found) == 70
        assert np.array_equal(np.stack(found), x * 2)
    model, module = tiny
    images, scale = tiny_inputs(50)
    samples = [{"x": one, "scale": two} for one, two in zip(images.cpu().numpy(), scale.cpu().numpy(), strict=True)]
    with t2e.Processor(module._artifact) as processor, torch.no_grad():
        logits = np.stack([results["logits"] for results in processor.map(samples, 48)])
        wanted = model(images, scale)["logits"].cpu()
    torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-4)


def test_timings_tell_where_the_time_goes(double: t2e.Processor) -> None:
    """None before the first call; then parts of the GPU's clock, and of a large call the copies count."""
    assert (double.timings(), double.last_inference_ms) == (None, None)
    seen: list[Timings] = []
    for _ in range(10):
        double.infer(rows(4096))
        found = double.timings()
        assert found is not None
        assert min(found) >= 0
        assert found.compute_ms == double.last_inference_ms
        seen.append(found)
    # The best, since other processes may use the GPU.
    assert 0 < min(found.compute_ms for found in seen) < 100
    assert 0.01 < min(found.copy_in_ms for found in seen) < 100


# Outputs whose shapes TensorRT finds out while it runs (TensorRT-RTX builds no such engine, but asks for memory alike)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_pitfall_34_memory_is_given_when_tensorrt_asks(
    artifact: t2e.EngineArtifact, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shape is unknown beforehand, TensorRT's own word decides about it, under every allocation."""
    known = Context.set_shapes
    monkeypatch.setattr(Context, "set_shapes", lambda *args: [(-1, 64) for _ in known(*args)])
    with t2e.Processor(artifact, allocation=allocation) as processor:
        kept: list[tuple[Any, Any]] = []
        for number, count in enumerate((7, 300, 7, 4096, 1, 300)):
            x = rows(count, number)
            kept.append((only(processor.infer(x)), x * 2))
        out = np.empty((9, 64), np.float32)
        assert only(processor.infer(rows(9), out=out)) is out
        with pytest.raises(t2e.ShapeError, match=r"expected \[8, 64\]"):
            processor.infer(rows(8), out=out)
        assert np.array_equal(out, rows(9) * 2)
        kept += [(only(found), rows(64, n) * 2) for n, found in enumerate(processor.infer_stream([rows(64)] * 1))]
        assert all(np.array_equal(found, wanted) for found, wanted in kept)


def test_memory_that_cannot_be_had_is_told(artifact: t2e.EngineArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that fails while TensorRT asks for it is the call's error, and the next call is right."""
    known = Context.set_shapes
    monkeypatch.setattr(Context, "set_shapes", lambda *args: [(-1, 64) for _ in known(*args)])
    with t2e.Processor(artifact, streams=1, allocation="reuse") as processor:
        executor = processor._session._executors[0]
        processor.infer(rows(2))
        make_output_allocator = executor._make_output_allocator

        def refuse(size_bytes: int) -> Any:
            raise MemoryError("planted")

        monkeypatch.setattr(executor, "_make_output_allocator", lambda: refuse)
        with pytest.raises(MemoryError, match="planted"):
            processor.infer(rows(2))
        monkeypatch.setattr(executor, "_make_output_allocator", make_output_allocator)
        assert np.array_equal(only(processor.infer(rows(2))), rows(2) * 2)


# Threads, PyTorch, processes


def test_pitfall_25_threads_share_a_processor(double: t2e.Processor) -> None:
    """Eight threads, calls and streams of many shapes: every result is its own."""
    wrong: list[int] = []

    def calls(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in range(60):
            x = rows(int(random.integers(1, 33)) * 7, seed * 1000 + number)
            if not np.array_equal(only(double.infer(x)), x * 2):
                wrong.append(number)

    def stream(seed: int) -> None:
        items = [rows(number * 5 + 1, seed) for number in range(60)]
        for results, x in zip(double.infer_stream(items), items, strict=True):
            if not np.array_equal(only(results), x * 2):
                wrong.append(seed)

    run_together([lambda seed=seed: (calls if seed % 2 else stream)(seed) for seed in range(8)])
    assert wrong == []
    assert [executor.waiting for executor in double._session._executors] == [0, 0]


def test_current_context_is_left_as_it_was(double: t2e.Processor) -> None:
    """A thread that has used CUDA keeps its device and stream, one that has not is not drawn into it."""
    seen: list[object] = []

    def fresh() -> None:
        seen.append(current_gpu_index())
        double.infer(rows(3))
        seen.append(current_gpu_index())

    run_together([fresh])
    assert seen == [None, None]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        double.infer(rows(3))
        next(double.infer_stream([rows(3)] * 5))
        assert torch.cuda.current_stream() == side
    assert current_gpu_index() == torch.cuda.current_device() == 0


def test_pitfall_38_processor_and_module_take_turns(artifact: t2e.EngineArtifact, double: t2e.Processor) -> None:
    """Interleaved in one thread, and in several, with PyTorch's own kernels between them: nothing is wrong."""
    module = t2e.TRTModule(artifact)
    wrong: list[int] = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for number in range(100):
                x = rows(number % 32 + 1, seed)
                tensor = torch.from_numpy(x).cuda()
                first, ours, second = module(tensor), only(double.infer(x)), module(tensor + 1)
                if not (np.array_equal(ours, x * 2) and torch.equal(first, tensor * 2)):
                    wrong.append(number)
                if not torch.equal(second, (tensor + 1) * 2):
                    wrong.append(number)

    work(0)
    run_together([lambda seed=seed: work(seed) for seed in range(4)])
    assert wrong == []


def test_capture_of_pytorchs_is_left_alone(double: t2e.Processor) -> None:
    """While another thread captures a CUDA graph, calls of new shapes are answered, and the capture is whole."""
    x = torch.ones(64, device="cuda")
    torch.cuda.synchronize()
    graph, captured, go, done = torch.cuda.CUDAGraph(), [], threading.Event(), threading.Event()

    def serve() -> None:
        go.wait(30)
        try:
            captured.extend(np.array_equal(only(double.infer(rows(n))), rows(n) * 2) for n in (11, 12, 4096, 11, 11))
        finally:
            done.set()

    for _ in range(2):
        double.infer(rows(4096))
    thread = threading.Thread(target=serve)
    thread.start()
    gc.collect()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        y = x + 1
        go.set()
        assert done.wait(60)
    thread.join()
    graph.replay()
    torch.cuda.synchronize()
    assert captured == [True] * 5
    assert torch.equal(y, x + 1)


def test_pitfall_36_memory_is_flat_and_is_given_back(
    artifact: t2e.EngineArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls take no more device memory, and a Processor that is dropped leaves none."""
    made: weakref.WeakSet[Any] = weakref.WeakSet()  # not the device's figure, of which other processes take part
    memory = Cuda.memory

    def noted(cuda: Cuda, size_bytes: int) -> Any:
        one = memory(cuda, size_bytes)
        made.add(one)
        return one

    monkeypatch.setattr(Cuda, "memory", noted)
    for allocation in ALLOCATIONS:
        processor = t2e.Processor(artifact, allocation=allocation)
        looks: list[int] = []
        for _ in range(2):
            for number in range(400):
                processor.infer(rows(number % 16 * 200 + 1))
            gc.collect()
            looks.append(sum(one.size_bytes for one in made))
        assert looks[1] == looks[0] > 0
        del processor
        gc.collect()
        assert not made


def test_pitfall_37_forked_processes_are_refused(double: t2e.Processor) -> None:
    """A Processor used in a fork of its process says so, and the fork ends in order."""
    double.infer(rows(3))
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of exactly what this test does
        child = os.fork()
    if child == 0:
        try:
            double.infer(rows(3))
            text = "answered"
        except t2e.DeviceError as error:
            text = str(error)
        except BaseException as error:
            text = repr(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    text = os.read(reading, 10_000).decode()
    os.close(reading)
    assert "CUDA does not survive a fork; start workers with the 'spawn' method" in text


def _answer_in_process(processor: t2e.Processor, x: Any, queue: Any) -> None:
    queue.put((processor.device, only(processor.infer(x)), processor.device))


def test_pitfall_37_spawned_processes_answer(double: t2e.Processor) -> None:
    """A Processor sent to a spawned process by PyTorch's multiprocessing starts there and answers the same bits."""
    x = rows(5)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer_in_process, args=(double, x, queue))
    process.start()
    before, answer, after = queue.get(timeout=120)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert (before, after) == (None, 0)
    assert np.array_equal(answer, only(double.infer(x)))


def test_equal_engines_are_one_in_memory(artifact: t2e.EngineArtifact, tmp_path: Path) -> None:
    """Copies, pickles and loads of one plan share one live engine with a TRTModule; a refittable one is its own."""
    processors = [t2e.Processor(artifact), t2e.Processor(artifact.save(tmp_path / "model.t2e"))]
    processors += [copy.deepcopy(processors[0]), pickle.loads(pickle.dumps(processors[0]))]
    module = t2e.TRTModule(artifact).bind()
    session = module._backend.session
    assert session is not None
    x = rows(7)
    assert all(np.array_equal(only(one.infer(x)), x * 2) for one in processors)
    assert {id(one._session.engine()) for one in processors} == {id(session.engine)}
    for one in processors[:3]:
        one.close()
    del module, session
    assert np.array_equal(only(processors[3].infer(x)), x * 2)
    processors[3].close()
    config = t2e.BuildConfig(refittable=True)
    sample = torch.randn(4, 64, device="cuda")
    linear = t2e.build(t2e.export(nn.Linear(64, 4).cuda(), sample, refittable=True), config=config)
    with t2e.Processor(linear) as first, t2e.Processor(linear) as second:
        assert first._session.engine() is not second._session.engine()


SCRIPT = """
import json, sys
import numpy as np
{first}
import torch2engine as t2e
x = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
processor = t2e.Processor({folder!r})
good = [bool((next(iter(processor.infer(x).values())) == x * 2).all()) for _ in range(5)]
{then}
good += [bool((next(iter(found.values())) == x * 2).all()) for found in processor.infer_stream([x] * 9)]
left = processor.infer_stream([x] * 9)
next(left)
print(json.dumps([good, sorted(name for name in sys.modules if name in {heavy!r})]))
"""
TORCH = """
import torch
y = torch.randn(512, 512, device="cuda")
assert torch.allclose((y @ y).sum(), (y.double() @ y.double()).sum().float(), rtol=1e-1, atol=10)
torch.cuda.synchronize()
"""
BLOCKED = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy!r}:
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Block())
"""
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "rich")


@pytest.mark.parametrize("order", ["without", "torch first", "torch last"])
def test_process_serves_with_and_without_torch(
    artifact: t2e.EngineArtifact, order: str, tmp_path: Path, run_python: Callable[[str], Any]
) -> None:
    """A process answers without PyTorch and ONNX, or beside a PyTorch that came before or after, and ends in order."""
    folder = str(artifact.save(tmp_path / "model.t2e"))
    first = {"without": BLOCKED.format(heavy=HEAVY), "torch first": TORCH, "torch last": ""}[order]
    then = TORCH if order == "torch last" else ""
    good, loaded = run_python(SCRIPT.format(first=first, then=then, folder=folder, heavy=HEAVY))
    assert good == [True] * 14
    assert ("torch" in loaded) is (order != "without")
    assert "onnx" not in loaded


def test_compiled_kernels_are_kept(artifact: t2e.EngineArtifact, tmp_path: Path) -> None:
    """The engine that `compiled` gives is the same one with TensorRT-RTX's kernels, and loads again."""
    with t2e.Processor(artifact) as processor:
        processor.infer(rows(5))
        compiled = processor.compiled()
    assert compiled.plan_sha256 == artifact.plan_sha256
    if artifact.hardware.flavour == "tensorrt_rtx":
        assert len(compiled.read_runtime_cache()) > 0
    with t2e.Processor(compiled.save(tmp_path / "model.t2e")) as processor:
        assert np.array_equal(only(processor.infer(rows(5))), rows(5) * 2)
    with pytest.raises(t2e.InputError, match="a call after close"):
        processor.infer(rows(5))
    assert json.loads((tmp_path / "model.t2e" / "manifest.json").read_text())["kind"] == "engine"

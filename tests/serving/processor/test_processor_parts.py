"""The parts of a Processor that need no GPU: batches from samples, copies by several threads, places in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import torch2engine as t2e
from tests.support.deploy_models import mlp, nested, pair
from torch2engine.core.spec import Axis, Profile, Signature, TensorSpec
from torch2engine.serving.processor import host_copy as _copying
from torch2engine.serving.processor.arrays import input_layout
from torch2engine.serving.processor.batches import Batches, group_samples, plan_batches, stack_samples
from torch2engine.serving.processor.host_copy import HostCopier, split_copy
from torch2engine.serving.processor.staging import as_bytes, make_layout
from torch2engine.trt.cuda_graph_policy import is_harmless

BATCH = Axis("batch", 1, 4, 64)


def signature(axis: Axis | int, *inner: int | str) -> Signature:
    """x -> y, both with that first axis."""
    first = axis if isinstance(axis, int) else axis.name
    axes = () if isinstance(axis, int) else (axis,)
    return Signature((TensorSpec("x", "float32", (first, *inner)),), (TensorSpec("y", "float32", (first,)),), axes)


def profiles(*ranges: tuple[int, int]) -> list[Profile]:
    """Profiles of the batch."""
    return [Profile({"batch": (low, low, high)}) for low, high in ranges]


# Batches


@pytest.mark.parametrize(
    ("ranges", "multiple", "asked", "size", "padded"),
    [
        ([(1, 32)], 1, 8, 8, {1: 1, 3: 3, 8: 8}),
        ([(1, 32)], 1, 100, 32, {32: 32, 5: 5}),
        ([(4, 32)], 1, 2, 4, {1: 4, 4: 4}),
        ([(4, 32)], 4, 30, 28, {1: 4, 9: 12, 28: 28}),
        ([(1, 1), (8, 16)], 1, 16, 16, {1: 1, 2: 8, 9: 9}),
        ([(1, 1), (8, 16)], 1, 5, 1, {1: 1}),
        ([(8, 16), (1, 2)], 1, 32, 16, {1: 1, 2: 2, 3: 8}),
        ([(6, 32)], 4, 3, 8, {1: 8}),
    ],
)
def test_batches_fit_the_profiles(
    ranges: list[tuple[int, int]], multiple: int, asked: int, size: int, padded: dict[int, int]
) -> None:
    """At most as many as asked, rather less than more; a rest is filled up to the smallest batch that holds it."""
    axis = Axis("batch", multiple, multiple, 64, multiple_of=multiple)
    found = plan_batches(signature(axis, 3), profiles(*ranges), asked)
    assert found == Batches(tuple(ranges), multiple, size)
    assert {count: found.padded_size(count) for count in padded} == padded


def test_fixed_batch_is_the_only_one() -> None:
    """An engine without a dynamic batch is always given a whole one."""
    found = plan_batches(signature(8, 3), [Profile({})], 3)
    assert (found.size, found.padded_size(3)) == (8, 8)


@pytest.mark.parametrize(
    ("ranges", "multiple", "size", "sizes"),
    [
        ([(1, 32)], 1, 32, (1, 2, 4, 8, 16, 32)),
        ([(1, 24)], 1, 24, (1, 2, 4, 8, 16, 24)),
        ([(4, 40)], 4, 40, (4, 8, 16, 32, 40)),
        ([(1, 1), (8, 32)], 1, 32, (1, 8, 16, 32)),
        ([(8, 8)], 1, 8, (8,)),
    ],
)
def test_few_sizes_hold_every_count(
    ranges: list[tuple[int, int]], multiple: int, size: int, sizes: tuple[int, ...]
) -> None:
    """Each is allowed, and none is more than twice what a count needs, but where profiles leave a gap."""
    batches = Batches(tuple(ranges), multiple, size)
    assert batches.doubling_sizes() == sizes
    assert all(batches.padded_size(one) == one for one in sizes)


@pytest.mark.parametrize("name", ["states.1", "hidden.sum"])
def test_engine_without_a_batch_is_refused(name: str) -> None:
    """Where dimension 0 is not the batch everywhere, the first such tensor is named."""
    full = nested()[1].signature
    wanted = next(spec for spec in (*full.inputs, *full.outputs) if spec.name == name)
    inputs = full.inputs if name.startswith("states") else full.inputs[:1]
    outputs = () if name.startswith("states") else (wanted,)
    with pytest.raises(t2e.InputError) as caught:
        plan_batches(Signature(inputs, outputs, full.axes), profiles((1, 8)), 4)
    assert caught.value.name == name
    assert "does not begin with the batch (batch); expected engines in which dimension 0" in str(caught.value)


def test_samples_are_stacked_and_filled_up() -> None:
    """Each input gets its samples in order, and copies of the last one."""
    rows = np.arange(18, dtype=np.float32).reshape(3, 6)
    batch = stack_samples(mlp()[1].signature, list(rows), 0, 5)
    assert np.array_equal(batch["x"], rows[[0, 1, 2, 2, 2]])
    columns = np.arange(12, dtype=np.float32).reshape(4, 3)
    both = stack_samples(pair().signature, [{"b": row, "a": -row} for row in columns], 0, 4)
    assert np.array_equal(both["a"], -columns)
    assert np.array_equal(both["b"], columns)


def test_sample_that_does_not_fit_is_named() -> None:
    """Another shape or dtype is refused with the sample's number."""
    rows: list[Any] = [np.zeros(6, np.float32), np.zeros(5, np.float32)]
    with pytest.raises(t2e.ShapeError) as caught:
        stack_samples(mlp()[1].signature, rows, 40, 2)
    assert str(caught.value) == (
        "sample 41 of the data set: got [5] for input 'x' ([6] in sample 40); expected samples of "
        "one shape in a batch; sort them by shape, or make the batches yourself and pass them to "
        "infer_stream"
    )
    with pytest.raises(t2e.DtypeError, match="input 'x': got dtype float64; expected float32"):
        stack_samples(mlp()[1].signature, [np.zeros(6)], 0, 1)


def test_samples_before_one_that_fails_come_first() -> None:
    """A data set that raises in the midst of a group has its samples answered up to there."""

    def samples() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk")

    groups = group_samples(samples(), 3)
    assert [next(groups), next(groups)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(OSError, match="disk"):
        next(groups)
    assert list(group_samples(range(6), 3)) == [[0, 1, 2], [3, 4, 5]]
    assert list(group_samples([], 3)) == []


def test_layout_of_inputs_follows_the_axes() -> None:
    """Sizes by axis name, the first profile's opt for the rest; others are refused."""
    found = input_layout(pair().signature, pair()._artifact.profiles, {"batch": 8})
    assert found == {name: (np.dtype("float32"), (8, 3)) for name in ("a", "b")}
    cases: list[tuple[dict[str, int], str]] = [
        ({"n": 3}, "empty: got axis 'n'; expected one of batch, width; name one of them"),
        ({"batch": 6}, "input 'a': got batch = 6; expected a multiple of 4; pad axis 'batch' to"),
        ({"batch": 64}, "input 'a': got batch = 64; expected 4..8 or 16..32; redeploy with"),
    ]
    for sizes, message in cases:
        with pytest.raises(t2e.InputError) as caught:
            input_layout(pair().signature, pair()._artifact.profiles, sizes)
        assert str(caught.value).startswith(message)


# Memory


def test_places_are_aligned_and_apart() -> None:
    """Every tensor starts at a multiple of 256, an empty one too, and none overlap."""
    found = make_layout([1, 256, 0, 257, 4])
    assert found.offsets == (0, 256, 512, 768, 1280)
    assert found.total == 1536
    assert make_layout([]).total == 0


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "uint8"])
def test_bytes_of_an_array_are_its_own(shape: tuple[int, ...], dtype: str) -> None:
    """The flat view has all bytes of any dtype and rank, and writes through."""
    array = np.zeros(shape, dtype)
    view = as_bytes(array)
    assert (view.dtype, view.nbytes) == (np.uint8, array.nbytes)
    assert np.shares_memory(view, array) or not array.nbytes


# Copies

ARRAYS = {
    "contiguous": lambda: np.random.default_rng(0).normal(size=(64, 3, 90, 91)).astype(np.float32),
    "transposed": lambda: np.random.default_rng(0).normal(size=(2000, 1500)).T,
    "step": lambda: np.random.default_rng(0).normal(size=(3000, 900))[::2],
    "swapped": lambda: np.random.default_rng(0).normal(size=(900, 1000)).astype(">f8"),
    "half": lambda: np.random.default_rng(0).normal(size=(900, 1000)).astype(np.float16),
    "small": lambda: np.arange(7.0),
    "scalar": lambda: np.array(3.0),
    "empty": lambda: np.empty((0, 4)),
}


@pytest.mark.parametrize("how", ARRAYS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_copies_are_whole(how: str, threads: int) -> None:
    """Any layout and dtype arrives, whichever number of threads copies it."""
    source = ARRAYS[how]()
    wide = np.float64 if source.dtype.newbyteorder("=") == np.float64 else np.float32
    copier = HostCopier(threads)
    for target in (np.zeros(source.shape, wide), np.zeros(source.shape, wide, order="F")):
        other = np.zeros(5)
        copier.copy([(target, source), (other, np.arange(5.0))])
        assert np.array_equal(target, source)
        assert np.array_equal(other, np.arange(5.0))
    copier.close()


def test_copy_goes_on_while_a_helper_has_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more pieces than threads, so the others copy the share of one that is late."""
    sizes: list[int] = []
    copied = _copying._copy

    def note(target: Any, source: Any) -> None:
        sizes.append(target.nbytes)
        copied(target, source)

    monkeypatch.setattr(_copying, "_copy", note)
    copier = HostCopier(2)
    source = np.random.default_rng(0).integers(0, 255, 16 << 20, np.uint8)
    target = np.zeros_like(source)
    copier.copy([(target, source)])
    copier.close()
    assert np.array_equal(target, source)
    assert sizes == [2 << 20] * 8


def test_large_copies_are_split_and_small_ones_are_not() -> None:
    """Pieces are at least a MiB, as many as threads, and cover the whole."""
    large, small = np.zeros((64, 1 << 16), np.uint8), np.zeros(1 << 20, np.uint8)
    assert len(split_copy(large, large, 4)) == 4
    assert sum(target.nbytes for target, _ in split_copy(large, large, 3)) == large.nbytes
    assert len(split_copy(large, large, 64)) == 4
    assert len(split_copy(small, small, 4)) == 1
    assert len(split_copy(large[:, ::2], large[:, ::2], 4)) == 1


def test_copy_after_close_is_made_all_the_same() -> None:
    """Who is still copying when the threads are sent away copies to the end."""
    source = np.random.default_rng(0).integers(0, 255, 1 << 23, np.uint8)
    copier = HostCopier(4)
    stop = threading.Event()

    def close() -> None:
        while not stop.is_set():
            copier.close()

    closer = threading.Thread(target=close)
    closer.start()
    for _ in range(30):
        target = np.zeros_like(source)
        copier.copy([(target, source)])
        assert np.array_equal(target, source)
    stop.set()
    closer.join()
    copier.close()


def test_error_in_a_copy_is_raised_once_all_are_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that can't be copied is the caller's error, after the last piece, wherever it happened."""
    through: list[int] = []
    raised = threading.Event()

    def copy(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
        through.append(len(source))
        if source[0]:
            raised.set()
            raise ValueError("planted")
        raised.wait()  # the other pieces are still to come when the error is there

    monkeypatch.setattr(_copying, "_copy", copy)
    source = np.zeros(1 << 22, np.uint8)
    source[0] = 1
    copier = HostCopier(3)
    with pytest.raises(ValueError, match="planted"):
        copier.copy([(np.zeros_like(source), source)])
    assert sum(through) == source.nbytes
    copier.close()


def test_copying_threads_are_harmless_to_captures() -> None:
    """CUDA graphs are captured beside them, since they wait for no device."""
    copier = HostCopier(3)
    copier._start()
    assert len(copier._threads) == 2
    assert all(is_harmless(thread) for thread in copier._threads)
    threads = list(copier._threads)
    copier.close()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads)

"""`torch2engine.serving.wire`: numpy's own bytes in both directions, and nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest

import torch2engine as t2e
from torch2engine.serving.wire import read_arrays, write_arrays


def npz(save: Any = np.savez, **arrays: Any) -> bytes:
    """A .npz."""
    stream = io.BytesIO()
    save(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    """A .npy."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    """Any dtype, shape and order, one by itself or several by name."""
    made = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    for array in (made, np.asfortranarray(made), made.T):
        one = read_arrays(write_arrays({"y": array}, as_archive=False), ["x"])["x"]
        several = read_arrays(write_arrays({"a": array, "states.0": made}, as_archive=False), ["a", "states.0"])
        alone = read_arrays(write_arrays({"y": array}, as_archive=True), ["x"])
        assert (list(several), list(alone)) == (["a", "states.0"], ["y"])
        for found in (one, several["a"], alone["y"]):
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)


def test_numpys_own_files_are_read() -> None:
    """What numpy.save and numpy.savez write is taken, and numpy.load reads what is sent."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(read_arrays(npy(x), ["x"])["x"], x)
    assert np.array_equal(read_arrays(npz(x=x, y=x), ["x", "y"])["y"], x)
    assert np.array_equal(np.load(io.BytesIO(write_arrays({"x": x}, as_archive=False))), x)
    assert np.array_equal(np.load(io.BytesIO(write_arrays({"x": x, "y": x}, as_archive=True)))["y"], x)


HEADER = npy(np.zeros((2, 3), np.float32))
LARGE = HEADER.replace(b"(2, 3)", b"(9, 9)")


@pytest.mark.parametrize(
    ("body", "names", "got"),
    [
        (b"", ["x"], "a request without an array's header"),
        (b"[1, 2, 3]", ["x"], "a request without an array's header"),
        (pickle.dumps([1]), ["x"], "a request without an array's header"),
        (HEADER[:-1], ["x"], "a request with 23 bytes for shape [2, 3] of float32"),
        (HEADER + b"0", ["x"], "a request with 25 bytes for shape [2, 3] of float32"),
        (LARGE, ["x"], "a request with 24 bytes for shape [9, 9] of float32"),
        (npy(np.array([None, "a"], object)), ["x"], "a request with objects for shape [2] of object"),
        (HEADER, ["x", "y"], "one array, or other bytes, that begin with b'\\x93NUMPY'"),
        (npz(np.savez_compressed, x=np.zeros(9)), ["x"], "the compressed array 'x.npy'"),
        (npz(x=np.array([None], object)), ["x"], "an array 'x' with objects for shape [1] of object"),
        (npz(x=np.zeros(9))[:-9], ["x"], "a damaged .npz"),
    ],
)
def test_other_bytes_are_refused(body: bytes, names: list[str], got: str) -> None:
    """Nothing is unpickled, and no header makes the server allocate what did not come."""
    with pytest.raises(t2e.InputError) as caught:
        read_arrays(body, names)
    assert str(caught.value).startswith(f"request: got {got}")
    assert str(caught.value).endswith("; send numpy.save's bytes for one input, numpy.savez's for several")

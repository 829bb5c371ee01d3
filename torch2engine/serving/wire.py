"""Arrays ↔ the bytes of a request or a response: numpy's own files, `.npy` for one array and `.npz` for several.

Enters: bytes from anybody. Leaves: arrays by name, or a typed error; nothing is unpickled, and no header is believed
about sizes. Separate because every server of arrays needs it, and it must be safe by itself.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torch2engine.core.errors import InputError

__all__ = ["NPY", "NPZ", "read_arrays", "write_arrays"]

Array = npt.NDArray[Any]

NPY = "application/x-npy"
NPZ = "application/x-npz"

_ZIP = b"PK"
_FIX = "send numpy.save's bytes for one input, numpy.savez's for several"


def read_arrays(body: bytes, names: Sequence[str]) -> dict[str, Array]:
    """The arrays of a body; read-only views of it where that can be.

    Args:
        body: as `write_arrays`, numpy.save or numpy.savez wrote it.
        names: of the inputs; the array of a `.npy` has the name of the only one.

    Raises:
        InputError: other bytes, other names, objects, or compressed arrays.
    """
    if body[: len(_ZIP)] == _ZIP:
        return _read_npz(body)
    if len(names) != 1:
        raise _refusal(f"one array, or other bytes, that begin with {body[:6]!r}", f"a .npz with {', '.join(names)}")
    return {names[0]: _read_npy(memoryview(body), "a request")}


def _read_npz(body: bytes) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _refusal(f"the compressed array '{entry.filename}'", "arrays as numpy.savez stores them")
                name = entry.filename.removesuffix(".npy")
                arrays[name] = _read_npy(memoryview(archive.read(entry)), f"an array '{name}'")
    except InputError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _refusal(f"a damaged .npz ('{error}')", "a whole one") from error
    return arrays


def _read_npy(data: memoryview, what: str) -> Array:
    """An array that lies in `data`; `what` names it in errors."""
    stream = io.BytesIO(data[: 1 << 16])  # a header is far shorter
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        raise _refusal(f"{what} without an array's header", ".npy bytes") from error
    content = data[stream.tell() :]
    count = 1
    for size in shape:
        count *= int(size)
    if dtype.hasobject or count * dtype.itemsize != len(content) or min(shape, default=0) < 0:
        got = "objects" if dtype.hasobject else f"{len(content)} bytes"
        raise _refusal(f"{what} with {got} for shape {list(shape)} of {dtype}", "numbers, as many as the shape says")
    flat = np.frombuffer(content, dtype, count) if dtype.itemsize else np.empty(count, dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def write_arrays(arrays: Mapping[str, Array], as_archive: bool) -> bytes:
    """The bytes of arrays.

    Args:
        arrays: by name; dtypes that numpy has itself.
        as_archive: a `.npz`, even for one array.
    """
    stream = io.BytesIO()
    if len(arrays) == 1 and not as_archive:
        (array,) = arrays.values()
        np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    else:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def _refusal(got: str, allowed: str) -> InputError:
    return InputError("request", got=got, allowed=allowed, fix=_FIX)

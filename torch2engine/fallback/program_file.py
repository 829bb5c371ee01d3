"""torch's program ↔ the bytes of a ``.pt2`` file.

Enters: an exported program, or bytes. Leaves: bytes that hold no sample and nothing pickled, or the program on the
device where it is to run. Separate because torch.export's file format is read and written here alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from torch2engine.core.errors import ArtifactError, ExportError
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.wording import quote
from torch2engine.exporter.functional_program import FunctionalProgram
from torch2engine.fallback.program_check import checked_archive

__all__ = ["read_program", "replace_tensors", "write_program"]

_CPU = torch.device("cpu")


def write_program(exported: torch.export.ExportedProgram) -> bytes:
    """Write a program as it is on the CPU. The program itself is moved there.

    Raises:
        ExportError: it holds tensors or operators that the format does not take.
    """
    buffer = io.BytesIO()
    try:
        torch.export.save(move_to_device_pass(exported, _CPU), buffer)
        return checked_archive(buffer.getvalue())
    except SchemaError as error:
        raise _no_file(error.got, error.allowed) from error
    except Exception as error:  # torch raises many kinds of errors for operators and sizes that it can't serialise
        raise _no_file(f"a program that torch.export.save refuses ({quote(error)})", "one that it takes") from error


def _no_file(got: str, allowed: str) -> ExportError:
    fix = "replace these, or use torch.compile(model, backend='torch2engine'), which writes no program"
    return ExportError("model", got=got, allowed=allowed, fix=fix)


def read_program(data: bytes | memoryview, where: str, device: torch.device) -> FunctionalProgram:
    """Read a program, after a check that it is data alone.

    Args:
        data: the file's bytes.
        where: the artifact's path, for errors.
        device: where its tensors go, and what it makes.

    Raises:
        ArtifactError: it is no program, not of plain data, or needs an operator that nobody has registered here.
    """
    return FunctionalProgram.of(move_to_device_pass(_load(data, where), device))


def replace_tensors(data: bytes | memoryview, where: str, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The same file with other values for parameters and buffers.

    Args:
        data, where: as for `read_program`.
        tensors: by path, on any device; others stay as they are.

    Raises:
        ArtifactError: as `read_program`.
    """
    exported = _load(data, where)
    for held in (exported.state_dict, exported.constants):
        for name, tensor in held.items():
            held[name] = _writable(tensor)
    own = FunctionalProgram.of(exported).tensors
    with torch.no_grad():
        for path, tensor in tensors.items():
            own[path].copy_(tensor)
    return write_program(exported)


def _writable(tensor: Any) -> Any:
    """A copy of a loaded tensor, which may be a view of bytes that must not be written to."""
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    return tensor.clone()


def _load(data: bytes | memoryview, where: str) -> torch.export.ExportedProgram:
    try:
        archive = io.BytesIO(checked_archive(data))
        with warnings.catch_warnings():
            # torch 2.11 makes tensors of bytes that must not be written to; nobody writes to them
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            program: Any = torch.export.load(archive)
    except SchemaError as error:
        raise _refusal(where, error.got, error.allowed, "load only what you trust, and save it again") from error
    except Exception as error:  # torch raises many kinds of errors for a file of another version
        fix = "import the module that registers the operator, load it with the torch that saved it, or deploy again"
        raise _refusal(where, f"a program that torch can't load ({quote(error)})", "one that it can", fix) from error
    return program


def _refusal(where: str, got: str, allowed: str, fix: str) -> ArtifactError:
    return ArtifactError(f"artifact '{where}'", got=got, allowed=allowed, fix=fix, path=where)

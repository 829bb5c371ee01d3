"""Live parameters: parameters and buffers of the model that become inputs of the engine.

Enters: patterns over the names of parameters and buffers. Leaves: which they are, their values now, other values to
compare on, and the same values as bytes. Separate because they belong to the model and to the call at once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from torch2engine.artifact.artifact import Artifact
from torch2engine.capture.model_state import version_of
from torch2engine.capture.torch_types import check_tensor, torch_dtype
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.spec import TensorSpec
from torch2engine.core.wording import did_you_mean, kind_of

__all__ = [
    "encode_live_values",
    "find_live_parameters",
    "live_tensors",
    "live_values_in_place",
    "other_values",
    "saved_live_values",
]

_SUBJECT = "live_parameters"
_MOST_BYTES = 8 << 20  # their values stand in the manifest
_SHOWN = 8


def find_live_parameters(model: nn.Module, patterns: Sequence[str]) -> tuple[LiveParameter, ...]:
    """Find the parameters and buffers that patterns name. Of tied ones, which are one tensor, the first is taken.

    Args:
        model: the unwrapped module.
        patterns: as in a shell, over dotted names, e.g. "*.lora_scale".

    Raises:
        InputError: a pattern that names none, or a tensor that can't be an input; and no list of patterns.
    """
    _check_list(patterns)
    tensors = _named_tensors(model)
    chosen: dict[int, LiveParameter] = {}
    for pattern in patterns:
        paths = [path for path in tensors if fnmatchcase(path, pattern)]
        if not paths:
            raise _names_nothing(pattern, list(tensors))
        for path in paths:
            kind = "parameter" if isinstance(tensors[path], nn.Parameter) else "buffer"
            chosen.setdefault(id(tensors[path]), LiveParameter(path, kind))
    found = tuple(chosen.values())
    for one in found:
        _check_usable(one.path, tensors[one.path])
    size_bytes = sum(tensors[one.path].nbytes for one in found)
    if size_bytes > _MOST_BYTES:
        raise InputError(
            _SUBJECT,
            got=f"{size_bytes / (1 << 20):.1f} MiB of parameters and buffers",
            allowed=f"at most {_MOST_BYTES >> 20} MiB, such as scales and mixing weights",
            fix="name fewer; large weights are replaced by refit(), with config=BuildConfig(refittable=True)",
        )
    return found


def _check_list(patterns: object) -> None:
    """Refuse what is no list of strings.

    Raises:
        InputError: it is something else.
    """
    listed = cast("Sequence[object]", patterns) if isinstance(patterns, (list, tuple)) else None
    wrong = [one for one in listed or () if not isinstance(one, str)]
    if listed is None or wrong:
        raise InputError(
            _SUBJECT,
            got=f"{kind_of(wrong[0])} in it" if wrong else kind_of(cast("object", patterns)),
            allowed="a list of names of parameters and buffers, with * and ? for any letters",
            fix="write e.g. live_parameters=['*.lora_scale']",
        )


def _names_nothing(pattern: str, paths: Sequence[str]) -> InputError:
    if not paths:
        allowed = "none, since the model has no parameters and buffers"
        return InputError(_SUBJECT, got=repr(pattern), allowed=allowed, fix="leave live_parameters out")
    nearest = get_close_matches(pattern, paths, n=_SHOWN, cutoff=0.0)
    more = ", ..." if len(paths) > _SHOWN else ""
    return InputError(
        _SUBJECT,
        got=f"{pattern!r}, which names no parameter or buffer",
        allowed=f"names such as {', '.join(map(repr, nearest))}{more}",
        fix=did_you_mean(pattern, paths) or "use names of these, with * and ? for any letters",
    )


def _check_usable(path: str, tensor: torch.Tensor) -> None:
    """Refuse a parameter or buffer that can't be an input of an engine.

    Raises:
        InputError, DtypeError: as `check_tensor`, about the live parameter.
    """
    try:
        check_tensor(path, tensor)
    except InputError as error:
        fix = "leave it out of live_parameters"
        raise type(error)(
            f"live parameter '{path}'", name=path, got=error.got, allowed=error.allowed, fix=fix
        ) from error


def _named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def live_tensors(model: nn.Module, live: Sequence[LiveParameter]) -> list[torch.Tensor]:
    """The model's own tensors, in order.

    Raises:
        InputError: the model has no such parameter or buffer.
    """
    tensors = _named_tensors(model)
    for one in live:
        if one.path not in tensors:
            raise InputError(
                f"live parameter '{one.path}'",
                name=one.path,
                got="a model without it",
                allowed="a model of the structure that was deployed",
                fix=did_you_mean(one.path, list(tensors)) or "pass that model",
            )
    return [tensors[one.path] for one in live]


@contextmanager
def live_values_in_place(
    model: nn.Module, live: Sequence[LiveParameter], values: Sequence[torch.Tensor]
) -> Generator[None]:
    """Give the model other values of its live parameters while the body runs, in their own memory.

    So the body sees them wherever the model has kept the same tensor, e.g. in a list or in a recurrent layer.

    Raises:
        ExportError: the body writes into one of them.
    """
    tensors = live_tensors(model, live)
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data.copy_(value)  # no version moves: a pending backward pass sees the old values again
        versions = [version_of(tensor) for tensor in tensors]
        yield
        for one, tensor, version in zip(live, tensors, versions, strict=True):
            if version_of(tensor) != version:
                raise ExportError(
                    "model",
                    got=f"a forward that writes into its live parameter '{one.path}'",
                    allowed="a forward that only reads them",
                    fix="leave it out of live_parameters",
                )
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.data.copy_(value)


def other_values(values: Sequence[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """Invent other values: floats moved by about their own size, bools inverted, and the same integers.

    Args:
        values: of the live parameters now.
        generator: on the CPU.
    """
    return [_other_value(value, generator) for value in values]


def _other_value(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if value.dtype == torch.bool:
        return ~value
    if not value.is_floating_point() or not value.numel():
        return value.detach().clone()
    # Positive stays positive, since a temperature or a variance must. A zero becomes a small number.
    factors = torch.rand(value.shape, generator=generator, device="cpu").add_(0.5).to(value.device)
    wide = value.detach().double()
    return torch.where(wide == 0, 0.1 * factors, wide * factors).to(value.dtype)


def encode_live_values(specs: Sequence[TensorSpec], values: Sequence[torch.Tensor]) -> dict[str, bytes]:
    """The bytes of values, by input, for `Artifact.live_values`; waits for the GPU."""
    return {spec.name: _bytes(value) for spec, value in zip(specs, values, strict=True)}


def _bytes(value: torch.Tensor) -> bytes:
    flat: Any = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def saved_live_values(artifact: Artifact) -> list[torch.Tensor]:
    """Fresh tensors on the CPU with an artifact's values of its live parameters, in the signature's order."""
    values: Mapping[str, bytes] = artifact.live_values
    return [_tensor(spec, values[spec.name]) for spec in artifact.signature.live_inputs]


def _tensor(spec: TensorSpec, value: bytes) -> torch.Tensor:
    shape = spec.sized({})
    dtype = torch_dtype(spec.dtype)
    # Copied, because the memory of a bytearray need not begin where vector instructions want it.
    flat = torch.frombuffer(bytearray(value), dtype=dtype).clone() if value else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)

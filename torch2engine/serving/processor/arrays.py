"""numpy arrays under the call contract: the checks and error texts of TRTModule, for arrays.

Enters: what a caller passes to a Processor. Leaves: one array per input of the signature, checked, and its profile; or
the typed error. Separate because nothing here needs a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from torch2engine.artifact.artifact import Artifact
from torch2engine.core.constants import NOT_IN_NUMPY
from torch2engine.core.errors import DtypeError, InputError, InstallationError, ShapeError
from torch2engine.core.pytree import LeafKind, bind
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Profile, Signature, TensorSpec
from torch2engine.core.wording import did_you_mean, kind_of

__all__ = [
    "Array",
    "CheckedCall",
    "check_call",
    "check_out_array",
    "input_layout",
    "live_arrays",
    "match_arguments",
    "match_out",
    "numpy_dtype",
    "require_dtype",
]

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def _is_plain_array(value: object) -> bool:
    # Some values of a masked array are invalid, so it is refused; a scalar of numpy is an array without dimensions.
    return isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, np.ma.MaskedArray)


ARRAYS = LeafKind(_is_plain_array, "a numpy.ndarray", "pass numpy.asarray(...) of it")


@dataclass(frozen=True)
class CheckedCall:
    """One checked call.

    Args:
        arrays: one per input of the signature, in its order; dtypes cast without loss.
        shapes: theirs.
        profile: that holds them.
    """

    arrays: tuple[Array, ...]
    shapes: tuple[Shape, ...]
    profile: int


def numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """numpy's dtype of a tensor.

    Raises:
        InstallationError: numpy does not have it, and ml_dtypes is not installed.
    """
    if spec.dtype not in NOT_IN_NUMPY:
        return np.dtype(spec.dtype)
    try:
        found: Any = importlib.import_module("ml_dtypes")
    except ModuleNotFoundError as error:
        raise InstallationError(
            f"tensor '{spec.name}'",
            got=f"dtype {spec.dtype}, which numpy has not",
            allowed="ml_dtypes, which has it",
            fix="`pip install ml_dtypes`, or deploy a model with float32 inputs and outputs",
        ) from error
    return np.dtype(getattr(found, spec.dtype))


def match_arguments(signature: Signature, given: object) -> list[Any]:
    """The arguments of a call, in the order of the signature's inputs, without those of live parameters."""
    if isinstance(given, Mapping):
        items = cast("Mapping[Any, Any]", given)
        names = [spec.name for spec in signature.call_inputs]
        parameters = {parameter.name for parameter in signature.parameters}
        # By the tensors' own names, which differ from the parameters' where these are nested.
        if set(items) == set(names) or (set(items) & set(names)) - parameters:
            return _by_name(names, items)
        wrong = [key for key in items if not isinstance(key, str)]
        if wrong:
            raise InputError(
                "inputs", got=f"the key {wrong[0]!r}", allowed=f"names: {', '.join(names)}", fix="use these names"
            )
        return bind(signature.parameters, (), items, ARRAYS)
    if isinstance(given, (list, tuple)):
        return bind(signature.parameters, cast("Sequence[Any]", given), {}, ARRAYS)
    return bind(signature.parameters, (given,), {}, ARRAYS)


def _by_name(names: Sequence[str], items: Mapping[Any, Any]) -> list[Any]:
    for key in items:
        if key not in names:
            raise InputError(
                f"argument '{key}'",
                name=str(key),
                got="an unknown name",
                allowed=f"one of {', '.join(names)}",
                fix=did_you_mean(key, names, items) or "leave it out",
            )
    for name in names:
        if name not in items:
            raise InputError(
                f"argument '{name}'",
                name=name,
                got="no value",
                allowed=f"the arguments {', '.join(names)}",
                fix=f"pass {name}",
            )
        if not _is_plain_array(items[name]):
            got = kind_of(cast("object", items[name]))
            raise InputError(f"input '{name}'", name=name, got=got, allowed=ARRAYS.allowed, fix=ARRAYS.fix)
    return [items[name] for name in names]


def require_dtype(signature: Signature, spec: TensorSpec, leaf: Any) -> Array:
    """An input as an array, whose dtype is or casts without loss to the engine's.

    Raises:
        DtypeError: it does not.
    """
    array: Array = np.asarray(leaf)
    dtype: Any = array.dtype
    signature.check_dtype(spec, dtype.name, ".astype('{}')")
    return array


def live_arrays(artifact: Artifact) -> dict[str, Array]:
    """The saved values of an artifact's live parameters, by the names of the inputs that they feed."""
    values = artifact.live_values
    return {
        spec.name: np.frombuffer(values[spec.name], numpy_dtype(spec)).reshape(spec.sized({}))
        for spec in artifact.signature.live_inputs
    }


def check_call(
    signature: Signature, profiles: Sequence[Profile], given: object, live: Mapping[str, Array] | None = None
) -> CheckedCall:
    """Check a call against the signature and the profiles.

    Args:
        signature, profiles: the engine's.
        given: one array; a list or tuple of the arguments by position; or a Mapping of them by name. Nested inputs may
            stand there by their own names, ``"batch.ids"``. A Mapping may hold values of live parameters, too.
        live: from `live_arrays`, for those that the call does not give.

    Raises:
        InputError: missing, extra or other arguments, or an argument that is no array.
        DtypeError: a dtype that can't be cast without loss.
        ShapeError: a rank or size that no profile allows.
    """
    values = dict(live or {})
    if values and isinstance(given, Mapping):
        items = cast("Mapping[Any, Any]", given)
        values |= {name: items[name] for name in values if name in items}
        given = {name: value for name, value in items.items() if name not in values}
    leaves = [*match_arguments(signature, given), *values.values()]
    arrays = [require_dtype(signature, spec, leaf) for spec, leaf in zip(signature.inputs, leaves, strict=True)]
    shapes = tuple(array.shape for array in arrays)
    sizes = signature.resolve(shapes)
    profile = select_profile(signature, profiles, sizes) if profiles else 0
    return CheckedCall(tuple(arrays), shapes, profile)


def match_out(signature: Signature, out: object) -> dict[str, Array]:
    """The caller's own arrays for results, by output.

    Args:
        signature: the outputs.
        out: None; an array for the only output; a list or tuple with one for each; or a Mapping for some, by name.

    Raises:
        InputError: anything else, or an array that can't be written to.
    """
    names = [spec.name for spec in signature.outputs]
    if out is None:
        return {}
    found: dict[str, Any]
    if isinstance(out, Mapping):
        found = dict(cast("Mapping[str, Any]", out))
    else:
        given = list(cast("Sequence[Any]", out)) if isinstance(out, (list, tuple)) else [out]
        if len(given) != len(names):
            raise InputError(
                "out", got=f"{len(given)} arrays", allowed=f"{len(names)}: {', '.join(names)}", fix="pass these"
            )
        found = dict(zip(names, given, strict=True))
    for name, array in found.items():
        if name not in names:
            fix = did_you_mean(name, names, found) or "use one of these names"
            raise InputError("out", got=f"an output '{name}'", allowed=f"one of {', '.join(names)}", fix=fix)
        if not isinstance(array, np.ndarray):
            got = kind_of(array)
            raise InputError(
                f"out['{name}']",
                name=name,
                got=got,
                allowed="a numpy.ndarray to write into",
                fix="pass one, e.g. of numpy.empty",
            )
        if not array.flags.writeable:
            raise InputError(
                f"out['{name}']",
                name=name,
                got="a read-only array",
                allowed="an array to write into",
                fix="pass a copy of it",
            )
    return found


def check_out_array(name: str, array: Array, dtype: np.dtype[Any], shape: Shape) -> None:
    """Refuse an array that does not take an output as it is.

    Raises:
        DtypeError: another dtype.
        ShapeError: another shape.
    """
    subject = f"out['{name}']"
    if array.dtype != dtype:
        got = f"dtype {array.dtype}"
        allowed = f"{dtype}, that of the output"
        raise DtypeError(subject, name=name, got=got, allowed=allowed, fix=f"make it with dtype='{dtype}'")
    if array.shape != shape:
        got = f"shape {list(array.shape)}"
        allowed = f"{list(shape)}, that of the output"
        raise ShapeError(subject, name=name, got=got, allowed=allowed, fix="pass an array of that shape")


def input_layout(
    signature: Signature, profiles: Sequence[Profile], sizes: Mapping[str, int]
) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """dtype and shape of every input that a call gives; an axis that is left out has the first profile's opt.

    Raises:
        InputError: no such axis.
        ShapeError: sizes that no profile allows.
    """
    names = [axis.name for axis in signature.axes]
    if unknown := [name for name in sizes if name not in names]:
        allowed = f"one of {', '.join(names)}" if names else "none, since the engine has no dynamic axes"
        raise InputError(
            "empty",
            got=f"axis '{unknown[0]}'",
            allowed=allowed,
            fix=did_you_mean(unknown[0], names, sizes) or "name one of them",
        )
    full = {**(profiles[0].sizes(1) if profiles else {}), **sizes}
    shapes = [spec.sized(full) for spec in signature.inputs]
    if profiles:
        select_profile(signature, profiles, signature.resolve(shapes))
    pairs = zip(signature.inputs, shapes, strict=True)
    return {spec.name: (numpy_dtype(spec), shape) for spec, shape in pairs if spec.live is None}

"""sample_input and dynamic_axes → `CapturedCall`: the signature, the profiles and the reference that goes with them.

Enters: what a user passes to deploy(). Leaves: every wrong spec refused with the list of what is valid, and everything
later stages need to know about the call. A room of its own because names, axes and structure are settled here, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.reference import Reference
from torch2engine.capture.torch_types import dtype_name, layout_name
from torch2engine.core.errors import DynamicAxisError, ExportError, InputError
from torch2engine.core.preprocess import by_input
from torch2engine.core.pytree import Inputs, as_inputs, flatten
from torch2engine.core.spec import Axis, Dim, Parameter, Preprocess, Profile, Signature, TensorSpec

__all__ = ["capture_call"]

_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
    inspect.Parameter.VAR_POSITIONAL: "var_positional",
    inspect.Parameter.VAR_KEYWORD: "var_keyword",
}


def capture_call(
    model: nn.Module,
    sample_input: Any,
    dynamic_axes: Mapping[str, Any] | None = None,
    profiles: Sequence[Any] | None = None,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
) -> CapturedCall:
    """Settle names, dtypes, axes, profiles and structure of a call; run inside `undisturbed(model)`.

    Args:
        model: the unwrapped module.
        sample_input: a Tensor; a tuple or list of positionals; a Mapping of keywords; `Inputs`.
        dynamic_axes: {input: {dimension: name or Axis}} or {input: [dimension, ...]}; entries for outputs are kept
            for export to check.
        profiles: {axis name: (min, opt, max)} dicts; by default one, from the axes.
        preprocess: what becomes of an input of bytes before the model gets it; for several, by name.

    Raises:
        InputError: the sample does not fit forward's parameters or `preprocess`, or holds no tensor.
        DynamicAxisError: an unknown input, dimension or axis, or contradicting ranges; lists the valid ones.
        ExportError: the model itself fails on the sample, or answers the same input in two ways.
    """
    parameters, leaves, names = _parameters(model, as_inputs(sample_input))
    if not leaves:
        raise InputError(
            "sample_input", got="no tensor in it", allowed="at least one tensor", fix="pass what forward takes"
        )
    prepare = by_input(preprocess, names)
    for name, leaf in zip(names, leaves, strict=True):
        if name in prepare:
            prepare[name].check(name, dtype_name(leaf.dtype), leaf.shape)
    reference = Reference(model, parameters, [prepare.get(name) for name in names])
    flat, notes = _answer(reference, leaves, names)
    output_names = [f"output.{name}" if name in names else name for name in flat.names]
    wanted, output_axes = _wanted_axes(dynamic_axes or {}, names, leaves, output_names)
    axes, profiles_ = _resolve(wanted, names, leaves, profiles)
    inputs = tuple(
        TensorSpec(name, dtype_name(leaf.dtype), _dims(leaf, wanted.get(name, {}), axes), prepare.get(name))
        for name, leaf in zip(names, leaves, strict=True)
    )
    outputs = tuple(
        TensorSpec(name, dtype_name(leaf.dtype), tuple(leaf.shape))
        for name, leaf in zip(output_names, flat.leaves, strict=True)
    )
    dynamic = tuple(axis for axis in axes.values() if axis.min != axis.max)
    signature = Signature(inputs, outputs, dynamic, tuple(parameters), flat.tree)
    kept = {axis.name for axis in dynamic}
    return CapturedCall(
        reference=reference,
        signature=signature,
        profiles=tuple(Profile({n: r for n, r in p.ranges.items() if n in kept}) for p in profiles_),
        sample=tuple(leaf.detach() for leaf in leaves),
        output_axes=output_axes,
        precision=_precision(model, [*leaves, *flat.leaves]),
        notes=notes,
    )


def _precision(model: nn.Module, tensors: Sequence[torch.Tensor]) -> str:
    dtypes = {tensor.dtype for tensor in [*model.parameters(), *model.buffers(), *tensors]}
    if torch.bfloat16 in dtypes:
        return "bf16"
    return "fp16" if torch.float16 in dtypes else "fp32"


def _parameters(model: nn.Module, sample: Inputs) -> tuple[list[Parameter], list[torch.Tensor], list[str]]:
    """forward's parameters with the sample bound to them, and the sample's tensors with their names."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*sample.args, **sample.kwargs)
    except TypeError as error:
        raise InputError(
            "sample_input",
            got=str(error),
            allowed=f"forward takes {signature}",
            fix="pass a tuple of positionals, a Mapping of keywords, or Inputs(*args, **kwargs)",
        ) from error
    parameters: list[Parameter] = []
    leaves: list[torch.Tensor] = []
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        kind = _KINDS[parameter.kind]
        optional = isinstance(parameter.default, (type(None), bool, int, float, str))  # Parameter.empty is a class
        default = parameter.default if optional else None
        if name not in bound.arguments:
            parameters.append(Parameter(name, kind, None, default, optional))
            continue
        flat = flatten(bound.arguments[name], name)
        parameters.append(Parameter(name, kind, flat.tree, default, optional))
        leaves.extend(flat.leaves)
        # Keywords caught by **kwargs are known to the caller by their own names.
        prefix = f"{name}."
        names.extend(n.removeprefix(prefix) if kind == "var_keyword" else n for n in flat.names)
    for name, leaf in zip(names, leaves, strict=True):
        _plain(name, leaf)
    return parameters, leaves, names


def _plain(name: str, leaf: torch.Tensor) -> None:
    """Refuse tensors that no engine takes."""
    problem, fix = "", "pass its to_dense()"
    if leaf.is_nested:
        problem, fix = "it is a nested tensor", "pass its to_padded_tensor(0) and a mask"
    elif leaf.layout is not torch.strided:
        problem = f"layout is {layout_name(leaf.layout)}"
    elif leaf.is_quantized:
        problem, fix = "it is a quantized tensor", "pass its dequantize()"
    elif leaf.is_complex():
        problem, fix = f"dtype is {dtype_name(leaf.dtype)}", "pass torch.view_as_real(...) of it"
    elif leaf.device.type not in ("cpu", "cuda"):
        problem, fix = f"device is {leaf.device}", "move model and sample there"
    if problem:
        allowed = "dense tensors of real numbers on the CPU or a CUDA device"
        raise InputError(f"input '{name}'", name=name, got=problem, allowed=allowed, fix=fix)


def _answer(reference: Reference, leaves: Sequence[torch.Tensor], names: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
    """The reference's result on the sample, and notes on what else the call does."""
    clones = [leaf.detach().clone() for leaf in leaves]
    versions = [clone._version for clone in clones]
    flat = reference.run(clones)
    notes = [
        f"the model writes into its input '{name}'; the engine leaves inputs as they are"
        for name, clone, version in zip(names, clones, versions, strict=True)
        if clone._version != version
    ]
    if not flat.leaves:
        raise ExportError("model", got="its result holds no tensor", allowed="at least one output tensor")
    for name, leaf in zip(flat.names, flat.leaves, strict=True):
        if leaf.is_complex():
            raise ExportError(
                "model",
                got=f"its result '{name}' is {dtype_name(leaf.dtype)}",
                allowed="real numbers: ONNX has no operators on complex ones",
                fix="return torch.view_as_real(...) of it",
            )
    again = reference(leaves)
    if again.tree != flat.tree or not all(map(_close, flat.leaves, again.leaves)):
        raise ExportError(
            "model",
            got="two calls on the same input give different results",
            allowed="a function of its inputs alone, since an engine keeps no state and draws no random numbers",
            fix="pass the state as an input and return it, or take randomness out of inference",
        )
    return flat, tuple(notes)


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if not left.dtype.is_floating_point:
        return torch.equal(left, right)
    scale = float(left.double().abs().nan_to_num(0, 0, 0).max()) if left.numel() else 0.0
    return torch.allclose(left.double(), right.double(), rtol=1e-2, atol=1e-2 * scale, equal_nan=True)


def _wanted_axes(
    dynamic_axes: Mapping[str, Any],
    names: Sequence[str],
    leaves: Sequence[torch.Tensor],
    output_names: Sequence[str],
) -> tuple[dict[str, dict[int, str | Axis]], dict[str, dict[int, str | None]]]:
    """dynamic_axes split into inputs and outputs, dimensions normalised, lists given names."""
    if not isinstance(cast("object", dynamic_axes), Mapping):
        raise DynamicAxisError(
            "dynamic_axes",
            got=f"a {type(dynamic_axes).__name__}",
            allowed="a dict as in torch.onnx.export",
            fix=f"e.g. {{{names[0]!r}: {{0: 'batch'}}}}",
        )
    ranks = {name: leaf.ndim for name, leaf in zip(names, leaves, strict=True)}
    wanted: dict[str, dict[int, str | Axis]] = {}
    output_axes: dict[str, dict[int, str | None]] = {}
    for tensor, entry in dynamic_axes.items():
        if tensor in ranks:
            wanted[tensor] = {
                dim: f"{tensor.replace('.', '_')}_dim_{dim}" if axis is None else axis
                for dim, axis in _entry(tensor, entry, ranks[tensor]).items()
            }
        elif tensor in output_names:
            axes = _entry(tensor, entry, None)
            output_axes[tensor] = {dim: axis.name if isinstance(axis, Axis) else axis for dim, axis in axes.items()}
        else:
            raise DynamicAxisError(
                f"dynamic_axes[{tensor!r}]",
                got="no such tensor",
                allowed=f"inputs are {', '.join(names)}; outputs are {', '.join(output_names)}",
                fix="use one of these names",
            )
    return wanted, output_axes


def _entry(tensor: str, entry: Any, rank: int | None) -> dict[int, Any]:
    """One tensor's {dimension: name, Axis or None}, with dimensions counted from the front."""
    subject = f"dynamic_axes[{tensor!r}]"
    if isinstance(entry, Mapping):
        items = list(cast("Mapping[Any, Any]", entry).items())
    elif isinstance(entry, (list, tuple, set, frozenset)):
        items = [(dim, None) for dim in cast("Sequence[Any]", entry)]
    else:
        raise DynamicAxisError(
            subject,
            got=f"a {type(entry).__name__}",
            allowed="{dimension: name or Axis} or [dimension, ...]",
            fix="e.g. {0: 'batch'}",
        )
    axes: dict[int, Any] = {}
    for dim, axis in items:
        if not isinstance(dim, int) or isinstance(dim, bool) or (rank is not None and not -rank <= dim < rank):
            valid = "ints" if rank is None else (f"0..{rank - 1} (or -{rank}..-1)" if rank else "none: it is a scalar")
            raise DynamicAxisError(subject, got=f"dimension {dim!r}", allowed=f"valid dimensions are {valid}")
        if axis is not None and not isinstance(axis, (str, Axis)):
            raise DynamicAxisError(
                subject,
                got=f"{axis!r} for dimension {dim}",
                allowed="a name or torch2engine.Axis",
                fix=f"e.g. {{{dim}: Axis('batch', 1, 8, 32)}}",
            )
        index = dim % rank if rank else dim
        if index in axes:
            raise DynamicAxisError(subject, got=f"dimension {index} twice", fix="name it once")
        axes[index] = Axis(axis).name if isinstance(axis, str) else axis  # validates the name
    return axes


def _resolve(
    wanted: Mapping[str, Mapping[int, str | Axis]],
    names: Sequence[str],
    leaves: Sequence[torch.Tensor],
    profiles: Sequence[Any] | None,
) -> tuple[dict[str, Axis], list[Profile]]:
    """Every axis with numbers, one per name, and the profiles."""
    sizes: dict[str, tuple[int, str]] = {}
    explicit: dict[str, Axis] = {}
    for name, leaf in zip(names, leaves, strict=True):
        for dim, entry in wanted.get(name, {}).items():
            axis = entry.name if isinstance(entry, Axis) else entry
            where = f"'{name}' dimension {dim}"
            size, first = sizes.setdefault(axis, (int(leaf.shape[dim]), where))
            if size != leaf.shape[dim]:
                raise DynamicAxisError(
                    f"axis '{axis}'",
                    axis=axis,
                    got=f"it is {size} in {first} and {leaf.shape[dim]} in {where} of sample_input",
                    allowed="one size per name",
                    fix="use two names, or a sample whose sizes agree",
                )
            if isinstance(entry, Axis) and explicit.setdefault(axis, entry) != entry:
                raise DynamicAxisError(
                    f"axis '{axis}'",
                    axis=axis,
                    got=f"two ranges, {explicit[axis]} and {entry}",
                    allowed="one range per name",
                    fix="pass the same Axis in both places",
                )
    given = _given_profiles(profiles, list(sizes))
    axes = {name: _axis(name, size, explicit.get(name), given) for name, (size, _) in sizes.items()}
    default = {name: axis.range for name, axis in axes.items()}
    return axes, [Profile({**default, **profile}) for profile in given] or [Profile(default)]


def _given_profiles(profiles: Sequence[Any] | None, axes: Sequence[str]) -> list[dict[str, Any]]:
    given: list[dict[str, Any]] = []
    sequence = isinstance(cast("object", profiles), (list, tuple, type(None)))
    for profile in (profiles or ()) if sequence else [None]:
        ranges = dict(profile.ranges) if isinstance(profile, Profile) else profile
        if not isinstance(ranges, dict):
            raise DynamicAxisError(
                "profiles",
                got=f"a {type(profile if sequence else profiles).__name__}",
                allowed="a list of dicts",
                fix="e.g. [{'batch': (1, 8, 32)}]",
            )
        checked = Profile(cast("dict[str, Any]", ranges)).ranges
        for name in checked:
            if name not in axes:
                raise DynamicAxisError(
                    "profiles",
                    axis=name,
                    got=f"no axis named '{name}'",
                    allowed=f"axes are {', '.join(axes) or 'none: give dynamic_axes'}",
                )
        given.append(dict(checked))
    return given


def _axis(name: str, size: int, explicit: Axis | None, profiles: Sequence[Mapping[str, Any]]) -> Axis:
    """One axis with numbers: from its Axis, else from the profiles, else from the sample."""
    subject = f"axis '{name}'"
    ranges = [profile[name] for profile in profiles if name in profile]
    axis = explicit or Axis(name)
    if explicit is None and ranges and len(ranges) == len(profiles):
        return Axis(name, min(r[0] for r in ranges), ranges[0][1], max(r[2] for r in ranges))
    step = axis.multiple_of
    if axis.max is None and axis.opt is None and size < axis.min:
        raise DynamicAxisError(
            subject,
            axis=name,
            got=f"sample_input has {size}",
            allowed=f"at least min={axis.min}",
            fix="give opt and max",
        )
    opt = axis.opt if axis.opt is not None else (size if axis.max is None else min(max(size, axis.min), axis.max))
    resolved = replace(axis, opt=opt, max=max(size, opt) if axis.max is None else axis.max)
    low, _, high = resolved.range
    if not low <= size <= high or size % step:
        raise DynamicAxisError(
            subject,
            axis=name,
            got=f"sample_input has {size}",
            allowed=f"{low}..{high}" + (f" in multiples of {step}" if step > 1 else ""),
            fix="take a sample inside the range, or widen the Axis",
        )
    if axis.opt is None and axis.max is None and high == 1:
        raise DynamicAxisError(
            subject,
            axis=name,
            got="sample_input has 1, so that its range would be 1..1",
            allowed="without opt and max it ranges from 1 to the sample's size",
            fix=f"give a range, e.g. Axis({name!r}, 1, 8, 32), or a larger sample",
        )
    for profile_range in ranges:
        if profile_range[0] < low or profile_range[2] > high or any(value % step for value in profile_range):
            raise DynamicAxisError(
                subject,
                axis=name,
                got=f"a profile asks for {profile_range}",
                allowed=f"its Axis allows {low}..{high}" + (f" in multiples of {step}" if step > 1 else ""),
                fix="widen the Axis, or leave the range to the profiles by naming the axis only",
            )
    return resolved


def _dims(leaf: torch.Tensor, wanted: Mapping[int, str | Axis], axes: Mapping[str, Axis]) -> tuple[Dim, ...]:
    dims: list[Dim] = [int(size) for size in leaf.shape]
    for dim, entry in wanted.items():
        axis = axes[entry.name if isinstance(entry, Axis) else entry]
        dims[dim] = axis.min if axis.min == axis.max else axis.name
    return tuple(dims)

"""dynamic_axes and profiles → the axes of a call with their ranges, and its optimization profiles.

Enters: both arguments as a user passes them, with the shapes of the sample. Leaves: every axis with numbers, and every
wrong entry refused with the list of what is valid. Separate from `signature` because it needs shapes alone: no model,
no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.size_expression import parse_size_expression
from torch2engine.core.spec import Axis, Dim, Profile
from torch2engine.core.wording import did_you_mean, kind_of

__all__ = ["RequestedAxes", "ResolvedAxes", "parse_dynamic_axes", "resolve_axes"]

Shapes = Mapping[str, Sequence[int]]

_SEQUENCES: tuple[type, ...] = (list, tuple)
_COLLECTIONS: tuple[type, ...] = (*_SEQUENCES, set, frozenset)


@dataclass(frozen=True)
class RequestedAxes:
    """A user's dynamic_axes with every dimension counted from the front.

    Args:
        inputs: {input: {dimension: axis name, or an Axis}}; an unnamed axis has been given a name.
        outputs: {output: {dimension: axis name, or None where the user gave none}}.
    """

    inputs: Mapping[str, Mapping[int, str | Axis]]
    outputs: Mapping[str, Mapping[int, str | None]]


@dataclass(frozen=True)
class ResolvedAxes:
    """The axes of a call, each with numbers.

    Args:
        by_name: every axis that the user named, including axes of a single size.
        profiles: at least one; without dynamic axes, one without ranges.
    """

    by_name: Mapping[str, Axis]
    profiles: tuple[Profile, ...]

    @property
    def dynamic(self) -> tuple[Axis, ...]:
        """The axes of more than one size."""
        return tuple(axis for axis in self.by_name.values() if axis.min != axis.max)

    @property
    def _sizes_of_fixed_axes(self) -> dict[str, int]:
        return {axis.name: axis.min for axis in self.by_name.values() if axis.min == axis.max}

    def symbolic_shape(self, shape: Sequence[int], requested: Mapping[int, str | Axis]) -> tuple[Dim, ...]:
        """A shape with the axis's name for each dynamic dimension, and the axis's size for each of one size."""
        dims: list[Dim] = [int(size) for size in shape]
        for index, entry in requested.items():
            if _is_expression(entry):
                derived = parse_size_expression(entry).fixed(self._sizes_of_fixed_axes)
                dims[index] = derived if isinstance(derived, int) else derived.text
                continue
            axis = self.by_name[_axis_name(entry)]
            dims[index] = axis.min if axis.min == axis.max else axis.name
        return tuple(dims)


@dataclass
class _NamedAxis:
    """One axis name in the sample: its size, the place that gave it first, and the user's Axis if there is one."""

    size: int
    first_place: str
    explicit: Axis | None = None


def parse_dynamic_axes(dynamic_axes: Any, shapes: Shapes, output_names: Sequence[str]) -> RequestedAxes:
    """Split dynamic_axes into inputs and outputs, count dimensions from the front, and name unnamed axes.

    Args:
        dynamic_axes: {tensor: {dimension: name, Axis or expression over names}} or {tensor: [dimension, ...]}.
        shapes: of the sample's tensors, by input name.
        output_names: of the reference's result.

    Raises:
        DynamicAxisError: an unknown tensor or dimension, or an entry that is no axis.
    """
    if not _is_mapping(dynamic_axes):
        raise DynamicAxisError(
            "dynamic_axes",
            got=kind_of(dynamic_axes),
            allowed="a dict as in torch.onnx.export",
            fix=f"e.g. {{{next(iter(shapes))!r}: {{0: 'batch'}}}}",
        )
    inputs: dict[str, dict[int, str | Axis]] = {}
    outputs: dict[str, dict[int, str | None]] = {}
    for tensor, entry in dynamic_axes.items():
        if tensor in shapes:
            inputs[tensor] = {
                dim: f"{tensor.replace('.', '_')}_dim_{dim}" if axis is None else axis
                for dim, axis in _axes_of_tensor(tensor, entry, len(shapes[tensor])).items()
            }
        elif tensor in output_names:
            axes = _axes_of_tensor(tensor, entry, None)
            outputs[tensor] = {dim: None if axis is None else _axis_name(axis) for dim, axis in axes.items()}
        else:
            raise DynamicAxisError(
                f"dynamic_axes[{tensor!r}]",
                got="no such tensor",
                allowed=f"an input ({', '.join(shapes)}) or an output ({', '.join(output_names)})",
                fix=did_you_mean(tensor, [*shapes, *output_names], dynamic_axes) or "use one of these names",
            )
    return RequestedAxes(inputs, outputs)


def resolve_axes(requested: Mapping[str, Mapping[int, str | Axis]], shapes: Shapes, profiles: Any) -> ResolvedAxes:
    """Give every axis numbers, one axis for each name.

    Args:
        requested: the axes of the inputs.
        shapes: of the sample's tensors, by input name.
        profiles: the user's, a list of dicts {axis name: (min, opt, max)}; or None.

    Raises:
        DynamicAxisError: contradicting sizes or ranges, a sample outside its range, or a wrong profile.
    """
    named_axes = _named_axes(requested, shapes)
    user_ranges = _ranges_of_profiles(profiles, list(named_axes))
    axes = {name: _resolve_axis(name, named, user_ranges) for name, named in named_axes.items()}
    _check_expressions(requested, shapes, axes, {name: named.size for name, named in named_axes.items()})
    dynamic = {name: axis.range for name, axis in axes.items() if axis.min != axis.max}
    resolved_profiles = [
        {**dynamic, **{name: ranges[name] for name in ranges if name in dynamic}} for ranges in user_ranges
    ]
    return ResolvedAxes(axes, tuple(Profile(ranges) for ranges in resolved_profiles or [dynamic]))


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_expression(entry: Any) -> TypeGuard[str]:
    """Whether a dimension's entry is a size that follows from axes."""
    return isinstance(entry, str) and not entry.isidentifier()


def _axis_name(entry: str | Axis) -> str:
    return entry.name if isinstance(entry, Axis) else entry


def _axes_of_tensor(tensor: str, entry: Any, rank: int | None) -> dict[int, str | Axis | None]:
    """One tensor's {dimension: axis name, Axis or None}, with dimensions counted from the front.

    Args:
        tensor: its name.
        entry: what dynamic_axes says of it.
        rank: its number of dimensions; None for an output, whose dimensions export checks.
    """
    subject = f"dynamic_axes[{tensor!r}]"
    axes: dict[int, str | Axis | None] = {}
    for dim, axis in _entry_items(subject, entry):
        if not isinstance(dim, int) or isinstance(dim, bool) or (rank is not None and not -rank <= dim < rank):
            valid = "ints" if rank is None else (f"0..{rank - 1} (or -{rank}..-1)" if rank else "none: it is a scalar")
            raise DynamicAxisError(
                subject, got=f"dimension {dim!r}", allowed=f"one of {valid}", fix="name one that the tensor has"
            )
        if axis is not None and not isinstance(axis, (str, Axis)):
            raise DynamicAxisError(
                subject,
                got=f"{axis!r} for dimension {dim}",
                allowed="a name or torch2engine.Axis",
                fix=f"e.g. {{{dim}: Axis('batch', 1, 8, 32)}}",
            )
        index = dim % rank if rank else dim
        if index in axes:
            raise DynamicAxisError(
                subject, got=f"dimension {index} twice", allowed="each dimension once", fix="name it once"
            )
        axes[index] = _read_expression(subject, axis) if _is_expression(axis) else axis
    return axes


def _read_expression(subject: str, text: str) -> str:
    """An expression in its one spelling.

    Raises:
        DynamicAxisError: it is neither a name nor an expression over names.
    """
    if not any(sign in text for sign in "+-*/"):
        return Axis(text).name  # refuses a name that is none
    try:
        return parse_size_expression(text).text
    except ValueError as error:
        raise DynamicAxisError(
            subject,
            got=str(error),
            allowed="letters, digits and underscores, e.g. 'batch'",
        ) from None


def _entry_items(subject: str, entry: Any) -> list[tuple[Any, Any]]:
    """The (dimension, axis or None) pairs of either form in which a user names axes."""
    if _is_mapping(entry):
        return list(entry.items())
    if isinstance(entry, _COLLECTIONS):
        return [(dim, None) for dim in entry]
    raise DynamicAxisError(
        subject,
        got=kind_of(entry),
        allowed="{dimension: name or Axis} or [dimension, ...]",
        fix="e.g. {0: 'batch'}",
    )


def _named_axes(requested: Mapping[str, Mapping[int, str | Axis]], shapes: Shapes) -> dict[str, _NamedAxis]:
    """Every axis name with its one size in the sample.

    Raises:
        DynamicAxisError: one name has two sizes, or two ranges.
    """
    axes: dict[str, _NamedAxis] = {}
    for tensor, shape in shapes.items():
        for dim, entry in requested.get(tensor, {}).items():
            if _is_expression(entry):
                continue
            name = _axis_name(entry)
            place = f"'{tensor}' dimension {dim}"
            axis = axes.setdefault(name, _NamedAxis(int(shape[dim]), place))
            if axis.size != shape[dim]:
                raise DynamicAxisError(
                    f"axis '{name}'",
                    axis=name,
                    got=f"{axis.size} in {axis.first_place} and {shape[dim]} in {place} of sample_input",
                    allowed="one size per name",
                    fix="use two names, or a sample whose sizes agree",
                )
            if not isinstance(entry, Axis):
                continue
            if axis.explicit is not None and axis.explicit != entry:
                raise DynamicAxisError(
                    f"axis '{name}'",
                    axis=name,
                    got=f"two ranges, {axis.explicit} and {entry}",
                    allowed="one range per name",
                    fix="pass the same Axis in both places",
                )
            axis.explicit = entry
    return axes


def _check_expressions(
    requested: Mapping[str, Mapping[int, str | Axis]],
    shapes: Shapes,
    axes: Mapping[str, Axis],
    sample_sizes: Mapping[str, int],
) -> None:
    """Refuse a size that does not follow from axes of the inputs, in the sample or at all.

    Raises:
        DynamicAxisError: an unknown axis in it, another size in the sample, or no entry at min.
    """
    for tensor, shape in shapes.items():
        for dim, entry in requested.get(tensor, {}).items():
            if not _is_expression(entry):
                continue
            subject = f"dynamic_axes[{tensor!r}]"
            expression = parse_size_expression(entry)
            if unknown := sorted(expression.axes - axes.keys()):
                raise DynamicAxisError(
                    subject,
                    axis=unknown[0],
                    got=f"'{entry}', and no input has an axis '{unknown[0]}'",
                    allowed=f"one of {', '.join(axes) or 'none'}",
                    fix=f"call a dimension of an input '{unknown[0]}'",
                )
            expected = expression.value(sample_sizes)
            if expected != shape[dim]:
                raise DynamicAxisError(
                    subject,
                    got=f"dimension {dim} = {shape[dim]} in sample_input",
                    allowed=f"{expected}, which '{entry}' is there",
                    fix="take a sample whose sizes agree, or another expression",
                )
            least = expression.value({name: axis.min for name, axis in axes.items()})
            if least < 1:
                raise DynamicAxisError(
                    subject,
                    got=f"{least} for '{entry}' where the axes are smallest",
                    allowed="at least 1",
                    fix=f"raise min of {' or '.join(sorted(expression.axes))}: an engine can't answer empty axes",
                )


def _ranges_of_profiles(profiles: Any, axes: Sequence[str]) -> list[dict[str, tuple[int, int, int]]]:
    """The {axis name: (min, opt, max)} of each of the user's profiles.

    Raises:
        DynamicAxisError: no list of dicts, or an axis that does not exist.
    """
    if profiles is None:
        return []
    if not isinstance(profiles, _SEQUENCES):
        raise _not_a_profile(profiles)
    ranges_of_profiles: list[dict[str, tuple[int, int, int]]] = []
    for entry in profiles:
        if isinstance(entry, Profile):
            profile = entry
        elif _is_mapping(entry) and isinstance(entry, dict):
            profile = Profile(entry)
        else:
            raise _not_a_profile(entry)
        for name in profile.ranges:
            if name not in axes:
                raise DynamicAxisError(
                    "profiles",
                    axis=name,
                    got=f"no axis named '{name}'",
                    allowed=f"one of {', '.join(axes)}" if axes else "none without dynamic_axes",
                    fix=did_you_mean(name, axes, profile.ranges)
                    or ("use one of these names" if axes else "give dynamic_axes"),
                )
        ranges_of_profiles.append(dict(profile.ranges))
    return ranges_of_profiles


def _not_a_profile(value: Any) -> DynamicAxisError:
    return DynamicAxisError(
        "profiles", got=kind_of(value), allowed="a list of dicts or 'auto'", fix="e.g. [{'batch': (1, 8, 32)}]"
    )


def _resolve_axis(name: str, named: _NamedAxis, profiles: Sequence[Mapping[str, tuple[int, int, int]]]) -> Axis:
    """One axis with numbers: from its Axis, else from the profiles, else from the sample."""
    profile_ranges = [ranges[name] for ranges in profiles if name in ranges]
    if named.explicit is None and profile_ranges and len(profile_ranges) == len(profiles):
        least = min(low for low, _, _ in profile_ranges)
        largest = max(high for _, _, high in profile_ranges)
        return Axis(name, least, profile_ranges[0][1], largest)
    axis = named.explicit or Axis(name)
    resolved = _complete_from_sample(axis, named.size)
    _check_sample_size(axis, resolved, named.size)
    low, _, high = resolved.range
    step = axis.multiple_of
    for profile_range in profile_ranges:
        if profile_range[0] < low or profile_range[2] > high or any(value % step for value in profile_range):
            raise DynamicAxisError(
                f"axis '{name}'",
                axis=name,
                got=f"{profile_range} in a profile",
                allowed=f"{_describe_range(resolved)}, as its Axis says",
                fix="widen the Axis, or leave the range to the profiles by naming the axis only",
            )
    return resolved


def _complete_from_sample(axis: Axis, size: int) -> Axis:
    """An axis with opt and max from the sample's size where the user left them out."""
    if axis.max is None and axis.opt is None and size < axis.min:
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got=f"{size} in sample_input",
            allowed=f"at least min={axis.min}",
            fix=_fix_for_sample(size, f"take a larger sample, or lower min to {size}"),
        )
    opt = axis.opt
    if opt is None:
        opt = size if axis.max is None else min(max(size, axis.min), axis.max)
    return replace(axis, opt=opt, max=max(size, opt) if axis.max is None else axis.max)


def _check_sample_size(axis: Axis, resolved: Axis, size: int) -> None:
    """Refuse a sample outside the range, and a range of one size that the user did not give."""
    low, _, high = resolved.range
    if not low <= size <= high or size % axis.multiple_of:
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got=f"{size} in sample_input",
            allowed=_describe_range(resolved),
            fix=_fix_for_sample(size, "take a sample inside the range, or widen the Axis"),
        )
    if axis.opt is None and axis.max is None and high == 1:
        raise DynamicAxisError(
            f"axis '{axis.name}'",
            axis=axis.name,
            got="1 in sample_input, so that its range would be 1..1",
            allowed="a larger sample, since without opt and max the range ends at its size",
            fix=f"give a range, e.g. Axis({axis.name!r}, 1, 8, 32), or a larger sample",
        )


def _fix_for_sample(size: int, fix: str) -> str:
    """The fix for a sample outside an axis's range; no range holds the size 0."""
    if size:
        return fix
    return (
        "take a sample that is not empty there, since an engine can't answer empty axes; an empty cache can be one "
        "entry that a mask hides"
    )


def _describe_range(axis: Axis) -> str:
    low, _, high = axis.range
    return f"{low}..{high}" + (f" in multiples of {axis.multiple_of}" if axis.multiple_of > 1 else "")

"""sample_input and dynamic_axes → `CapturedCall`: the signature, the profiles and the reference.

Enters: what a user passes to deploy(). Leaves: everything that later stages need to know about the call, or an error
that lists what is valid. Separate because names, axes and structure are decided here, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch2engine.capture.axes import RequestedAxes, ResolvedAxes, parse_dynamic_axes, resolve_axes
from torch2engine.capture.call_effects import answer_with_effects
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.examples import with_examples
from torch2engine.capture.live_parameters import live_tensors
from torch2engine.capture.own_profiles import OWN_PROFILES, with_own_profiles
from torch2engine.capture.reference import Reference
from torch2engine.capture.repeatable import answer_repeatably
from torch2engine.capture.torch_types import COMPUTED_DTYPES, check_tensor, dtype_name
from torch2engine.capture.unwrap import require_values
from torch2engine.core.config import Profiles
from torch2engine.core.errors import ExportError, InputError
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.core.precisions import DEFAULT_PRECISION, lowest_cast_precision
from torch2engine.core.preprocess import by_input
from torch2engine.core.pytree import Flat, Inputs, as_inputs, flatten, unique_names
from torch2engine.core.spec import Parameter, Preprocess, Signature, TensorSpec

__all__ = ["BoundSample", "bind_sample", "capture_call"]

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
    profiles: Profiles | None = None,
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None,
    examples: Sequence[Any] | None = None,
    mutations: str = "refuse",
    live_parameters: Sequence[LiveParameter] = (),
) -> CapturedCall:
    """Run the model on the sample, refuse what no engine can repeat, and decide the call's names, dtypes and axes.

    Profiles and the structure of arguments and result belong to the call, too. Run it inside `undisturbed(model)`.

    Args:
        model: the unwrapped module.
        sample_input: a Tensor; a tuple or list of positionals; a Mapping of keywords; `Inputs`.
        dynamic_axes: {input: {dimension: name or Axis}} or {input: [dimension, ...]}; entries for outputs are passed
            on to export, which checks them.
        profiles: {axis name: (min, opt, max)} dicts; by default one, from the axes. "auto" adds those of single sizes.
        preprocess: the steps from an input of bytes to the model's input; for several inputs, by name.
        examples: real inputs at other sizes, from `read_examples`.
        mutations: what becomes of a model that writes into its inputs, as `BuildConfig.mutations`.
        live_parameters: from `find_live_parameters`; their values become the last inputs.

    Raises:
        InputError: the sample does not fit forward's parameters or `preprocess`, or holds no tensor. Or the model is on
            the meta device.
        DynamicAxisError: an unknown input, dimension or axis, or contradicting ranges; lists the valid ones.
        ExportError: the model itself fails on the sample, writes into an input, or keeps state between calls.
    """
    require_values(model)
    sample = bind_sample(model, as_inputs(sample_input))
    steps = by_input(preprocess, sample.names)
    sample = _with_live(sample, live_parameters, model)
    for name, tensor in sample.by_name.items():
        if name in steps:
            steps[name].check(name, dtype_name(tensor.dtype), tensor.shape)
    preprocessing = [steps.get(name) for name in sample.names]
    reference = Reference(model, sample.parameters, preprocessing, live=live_parameters)
    answer = answer_repeatably(
        model, sample.tensors, lambda: answer_with_effects(reference, sample.names, sample.tensors, mutations)
    )
    result = answer.first.result
    _check_result(result)
    output_names = unique_names(
        [f"output.{name}" if name in sample.by_name else name for name in result.names], taken=sample.names
    )
    effects = answer.first.effects
    output_names += effects.output_names(sample.names, output_names)
    given = len(sample.names) - len(live_parameters)
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(sample.names[:given], sample.tensors, strict=False)}
    requested = parse_dynamic_axes(dynamic_axes or {}, shapes, output_names)
    axes = resolve_axes(requested.inputs, shapes, None if profiles == OWN_PROFILES else profiles)
    inputs = _input_specs(sample, steps, axes, requested, live_parameters)
    outputs = tuple(
        TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape))
        for name, tensor in zip(output_names, result.leaves, strict=True)
    )
    captured = CapturedCall(
        reference=answer.first.reference,
        signature=Signature(
            inputs,
            outputs,
            axes.dynamic,
            tuple(sample.parameters),
            result.tree,
            effects.writes(sample.names, output_names),
            effects.refills(sample.names, output_names),
        ),
        profiles=axes.profiles,
        sample=tuple(tensor.detach() for tensor in sample.tensors),
        output_axes=requested.outputs,
        precision=_lowest_precision(model, [*sample.tensors, *result.leaves]),
        notes=answer.notes,
        trial=answer.trial,
    )
    captured = with_examples(captured, examples)
    return with_own_profiles(captured) if profiles == OWN_PROFILES else captured


def _input_specs(
    sample: BoundSample,
    steps: Mapping[str, Preprocess],
    axes: ResolvedAxes,
    requested: RequestedAxes,
    live_parameters: Sequence[LiveParameter],
) -> tuple[TensorSpec, ...]:
    """Describe every input; live parameters are the last, with fixed sizes."""
    names = sample.names
    live_of = dict(zip(names[len(names) - len(live_parameters) :], live_parameters, strict=True))
    return tuple(
        TensorSpec(
            name,
            dtype_name(tensor.dtype),
            axes.symbolic_shape(tensor.shape, requested.inputs.get(name, {})),
            steps.get(name),
            live_of.get(name),
        )
        for name, tensor in sample.by_name.items()
    )


def _lowest_precision(model: nn.Module, tensors: Sequence[torch.Tensor]) -> str:
    dtypes = {dtype_name(tensor.dtype) for tensor in [*model.parameters(), *model.buffers(), *tensors]}
    return lowest_cast_precision(dtypes) or DEFAULT_PRECISION


@dataclass(frozen=True)
class BoundSample:
    """The sample, bound to forward's parameters.

    Args:
        parameters: all of forward's, with the structure that the sample has for each.
        names: of the sample's tensors, in the signature's order.
        tensors: the sample's, in the same order.
    """

    parameters: Sequence[Parameter]
    names: Sequence[str]
    tensors: Sequence[torch.Tensor]

    @property
    def by_name(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.tensors, strict=True))


def _with_live(sample: BoundSample, live: Sequence[LiveParameter], model: nn.Module) -> BoundSample:
    """Add copies of the live parameters' present values to the sample, under names of their own."""
    names = unique_names([one.path for one in live], taken=sample.names)
    values = [tensor.detach().clone() for tensor in live_tensors(model, live)]
    return BoundSample(sample.parameters, [*sample.names, *names], [*sample.tensors, *values])


def _described_arguments(sample: Inputs) -> str:
    count = len(sample.args)
    positional = [f"{count} positional argument{'s' if count != 1 else ''}"] if count or not sample.kwargs else []
    keywords = [f"the keywords {', '.join(sample.kwargs)}"] if sample.kwargs else []
    return " and ".join([*positional, *keywords])


def _cure_for_arguments(sample: Inputs, signature: inspect.Signature) -> str:
    """How to pass the sample; a forward that takes one dict or one list needs a tuple around it."""
    takes_one = len(signature.parameters) == 1 and all(
        parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in signature.parameters.values()
    )
    if takes_one and sample.kwargs and not sample.args:
        return "for a forward that takes one dict, pass it in a tuple: (the_dict,)"
    if takes_one and len(sample.args) > 1 and not sample.kwargs:
        return "for a forward that takes one list, pass it in a tuple: (the_list,)"
    return "pass a tuple of positionals, a Mapping of keywords, or Inputs(*args, **kwargs)"


def bind_sample(model: nn.Module, sample: Inputs) -> BoundSample:
    """Bind the sample to forward's parameters.

    Raises:
        InputError: it does not fit them, holds no tensor, or one that no engine takes.
    """
    signature = inspect.signature(model.forward)
    try:
        arguments = signature.bind(*sample.args, **sample.kwargs).arguments
    except TypeError as error:
        raise InputError(
            "sample_input",
            got=f"{_described_arguments(sample)} ({error})",
            allowed=f"what forward takes: {signature}",
            fix=_cure_for_arguments(sample, signature),
        ) from error
    parameters: list[Parameter] = []
    names: list[str] = []
    tensors: list[torch.Tensor] = []
    for name, parameter in signature.parameters.items():
        kind = _KINDS[parameter.kind]
        optional = isinstance(parameter.default, (type(None), bool, int, float, str))  # Parameter.empty is a class
        default = parameter.default if optional else None
        if name not in arguments:
            parameters.append(Parameter(name, kind, None, default, optional))
            continue
        flat = flatten(arguments[name], name)
        parameters.append(Parameter(name, kind, flat.tree, default, optional))
        tensors.extend(flat.leaves)
        # The caller knows keywords that **kwargs catches by their names alone.
        prefix = f"{name}."
        names.extend(path.removeprefix(prefix) if kind == "var_keyword" else path for path in flat.names)
    names = unique_names(names)  # keywords caught by **kwargs may be named like a part of another argument
    for name, tensor in zip(names, tensors, strict=True):
        check_tensor(name, tensor)
    if not tensors:
        raise InputError("sample_input", got="no tensor", allowed="at least one tensor", fix="pass what forward takes")
    return BoundSample(parameters, names, tensors)


def _check_result(result: Flat) -> None:
    """Refuse a result that no engine returns."""
    if not result.leaves:
        raise ExportError(
            "model", got="a result without a tensor", allowed="at least one tensor", fix="return one from forward"
        )
    for name, tensor in zip(result.names, result.leaves, strict=False):  # no input is complex
        if tensor.is_complex():
            raise ExportError(
                "model",
                got=f"a result '{name}' of {dtype_name(tensor.dtype)}",
                allowed="real numbers, since ONNX has no operators on complex ones",
                fix="return torch.view_as_real(...) of it",
            )
        if tensor.dtype not in COMPUTED_DTYPES:
            raise ExportError(
                "model",
                got=f"a result '{name}' of {dtype_name(tensor.dtype)}",
                allowed="one of " + ", ".join(map(dtype_name, COMPUTED_DTYPES)),
                fix="return it before the cast, and cast it after the call",
            )

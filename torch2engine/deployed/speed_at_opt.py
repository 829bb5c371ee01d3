"""A deployed module beside its model → the times of both at each profile's opt.

Enters: a module, the model on the same GPU, and inputs. Leaves: a `SpeedAtOpt` for each profile whose opt has inputs.
Separate from `benchmark`, which compares answers and measures thoroughly when a user asks for it. Every deploy()
measures this, on inputs that were compared just now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.reference import Reference
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.spec import Profile, Signature
from torch2engine.deployed.call_times import CallTime, time_calls
from torch2engine.deployed.deployed_module import DeployedModule
from torch2engine.deployed.inputs_of_calls import InputsOfCalls
from torch2engine.deployed.timing import Call, measure

__all__ = ["CallTime", "SpeedAtOpt", "calls_of_both", "cases_at_opt", "speed_at_opts", "times_side_by_side"]

_FASTER = 1.05  # times: less is noise
_FASTER_US = 2.0
_HOST_BOUND = 1.25  # a call, as a multiple of its kernels


@dataclass(frozen=True, kw_only=True)
class SpeedAtOpt:
    """The times of both at one profile's opt.

    Args:
        case: e.g. "batch 8"; "" for a model without axes.
        engine, eager: what a call takes, by the deployed module and by the model in eager.
    """

    case: str
    engine: CallTime
    eager: CallTime

    @property
    def is_slower(self) -> bool:
        """Whether a call of the engine takes longer than one of the model."""
        return _is_longer(self.engine.call_us, self.eager.call_us)

    @property
    def has_slower_kernels(self) -> bool:
        """Whether the engine's kernels take longer than the model's."""
        return _is_longer(self.engine.kernels_us, self.eager.kernels_us)

    @property
    def is_host_bound(self) -> bool:
        """Whether launching the engine takes longer than its work."""
        return self.engine.call_us > _HOST_BOUND * self.engine.kernels_us


def _is_longer(ours_us: float, theirs_us: float) -> bool:
    return ours_us > max(_FASTER * theirs_us, theirs_us + _FASTER_US)


def speed_at_opts(
    module: DeployedModule[Any],
    model: nn.Module,
    cases: Sequence[ParityCase],
    own_cases: Sequence[ParityCase],
    seconds: float,
) -> list[SpeedAtOpt]:
    """Time a module and its model, which is left as it was.

    The model runs in evaluation mode without autocast, with the user's own float32 switches and attention kernels.

    Args:
        module: on its GPU.
        model: the model, on the same GPU.
        cases: inputs in the model's dtypes, on that GPU.
        own_cases: the same in the module's dtypes; a case that is not among them is not timed.
        seconds: that all may take, as for `time_calls`.
    """
    device = module.device
    assert device is not None, "it is on its GPU"
    signature = module.signature
    reference = Reference.for_signature(model, signature)
    own_inputs = {case.name: case.inputs for case in own_cases}
    profiles = module._artifact.profiles  # pyright: ignore[reportPrivateUsage]  # the same folder
    chosen = cases_at_opt(signature, profiles, [case for case in cases if case.name in own_inputs])
    found: list[SpeedAtOpt] = []
    with undisturbed(model, is_exact=False):
        for name, case in chosen.items():
            ours = InputsOfCalls.of(signature, own_inputs[case.name])
            engine = ours.on_same_values(ours.call_of(module))
            eager = _eager_call(reference, InputsOfCalls.of(signature, case.inputs))
            times = time_calls({"engine": engine, "eager": eager}, device, seconds / len(chosen))
            found.append(SpeedAtOpt(case=name, **times))
    return found


def _eager_call(reference: Reference, inputs: InputsOfCalls) -> Call:
    """A call of the model, with its preprocessing where the engine has that inside."""
    if any(inputs.signature.preprocess):
        return inputs.on_same_values(lambda: reference.call(inputs.leaves))
    return inputs.on_same_values(inputs.call_of(reference.model))


def calls_of_both(
    module: DeployedModule[Any], reference: Reference, leaves: Sequence[torch.Tensor]
) -> tuple[Call, Call]:
    """A call of a module and one of its model, as users make them; each can be repeated.

    Args:
        module: takes the same dtypes as the model.
        reference: the model, on the same device.
        leaves: flat inputs on that device; they are not changed.
    """
    inputs = InputsOfCalls.of(module.signature, leaves)
    return inputs.on_same_values(inputs.call_of(module)), _eager_call(reference, inputs)


def times_side_by_side(
    modules: Mapping[str, DeployedModule[Any]], inputs: Mapping[str, Sequence[torch.Tensor]], seconds: float
) -> dict[str, dict[str, float]]:
    """Time calls of several modules in turns.

    Args:
        modules: by name, all of one signature and on one device.
        inputs: {case: flat inputs of a call} on that device; they are not changed.
        seconds: that all may take on a GPU, as for `time_calls`. On the CPU each is called a dozen times or more.

    Returns:
        {name: {case: median time of a call, in µs}}.
    """
    device = next(iter(inputs.values()))[0].device
    times: dict[str, dict[str, float]] = {name: {} for name in modules}
    for case, leaves in inputs.items():
        calls: dict[str, Call] = {}
        for name, module in modules.items():
            own = InputsOfCalls.of(module.signature, leaves)
            calls[name] = own.on_same_values(own.call_of(module))
        for name, microseconds in _call_us(calls, device, seconds / len(inputs)).items():
            times[name][case] = microseconds
    return times


def _call_us(calls: Mapping[str, Call], device: torch.device, seconds: float) -> dict[str, float]:
    with torch.no_grad():
        if device.type == "cuda":
            return {name: time.call_us for name, time in time_calls(calls, device, seconds).items()}
        return {name: timing.host_us for name, timing in measure(calls, device=device, rounds=7, warmup=2).items()}


def cases_at_opt(
    signature: Signature, profiles: Sequence[Profile], cases: Sequence[ParityCase]
) -> Mapping[str, ParityCase]:
    """The first case at each profile's opt, by its sizes in words; a model without axes has one."""
    opts = [profile.sizes(1) for profile in profiles] or [{}]
    found: dict[str, ParityCase] = {}
    for case in cases:
        sizes = signature.resolve([leaf.shape for leaf in case.inputs])
        if sizes in opts:
            found.setdefault(", ".join(f"{name} {size}" for name, size in sizes.items()), case)
    return found

"""A deployed module and inputs → what a call takes, and what makes it slower than it could be.

Enters: a module and checked inputs. Leaves: an `Explanation`. Separate because it calls the module in several ways;
`call_findings` has the rules for what is measured here.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from torch2engine.core.select_profile import select_profile
from torch2engine.deployed.call_findings import (
    call_us,
    converted_inputs,
    default_stream,
    host_bound,
    slow_first_call,
    small_batch,
)
from torch2engine.deployed.explanation import Explanation, GraphPartRecord
from torch2engine.deployed.inputs_of_calls import InputsOfCalls
from torch2engine.deployed.timing import Call, measure

if TYPE_CHECKING:
    from torch2engine.core.finding import Finding
    from torch2engine.deployed.deployed_module import DeployedModule

__all__ = ["explain_calls"]

_ROUNDS = 5
_MOST_COPIES = 8  # of the sample, in the larger batch
_CALL = "call"
_OWN_STREAM = "call on a stream of its own"
_LARGER = "call with a larger batch"


def explain_calls(module: DeployedModule[Any], leaves: Sequence[torch.Tensor]) -> Explanation:
    """Time calls of a module with these inputs.

    Args:
        module: a whole engine, or an ONNX graph.
        leaves: inputs inside a profile, on its device. They are not changed.
    """
    signature = module.signature
    device = leaves[0].device if leaves else torch.device("cpu")
    sizes = signature.resolve([leaf.shape for leaf in leaves])
    first_us = _first_call_us(module, leaves, device)
    calls: dict[str, Call] = {_CALL: _call(module, leaves)}
    streams: dict[str, torch.cuda.Stream] = {}
    if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        calls[_OWN_STREAM] = calls[_CALL]
        streams[_OWN_STREAM] = torch.cuda.Stream(device)
    axis, copies = _room_for_copies(module, sizes)
    if copies > 1:
        calls[_LARGER] = _call(module, [leaf.repeat(copies, *[1] * (leaf.ndim - 1)) for leaf in leaves])
    with torch.no_grad():
        timings = measure(calls, device=device, rounds=_ROUNDS, streams=streams)
    taken_us = call_us(timings[_CALL])
    found: list[Finding] = [*module.report.findings, *converted_inputs(signature, leaves), *host_bound(timings[_CALL])]
    if _OWN_STREAM in timings:
        found += default_stream(timings[_CALL], timings[_OWN_STREAM])
    found += slow_first_call(first_us, taken_us, sizes, can_warm_up=device.type == "cuda")
    if copies > 1:
        found += small_batch(axis, {sizes[axis]: taken_us, copies * sizes[axis]: call_us(timings[_LARGER])})
    whole = GraphPartRecord(module.runtime, 0, "", seconds=taken_us / 1e6, calls=1)
    return Explanation((whole,), (), taken_us / 1e6, tuple(found))


def _call(module: DeployedModule[Any], leaves: Sequence[torch.Tensor]) -> Call:
    inputs = InputsOfCalls.of(module.signature, leaves)
    return inputs.on_same_values(inputs.call_of(module))


def _first_call_us(module: DeployedModule[Any], leaves: Sequence[torch.Tensor], device: torch.device) -> float:
    """The time of the first call of a copy, which has neither contexts nor sessions; its engine is the module's."""
    call = _call(copy.copy(module), leaves)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    with torch.no_grad():
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e6 * (time.perf_counter() - start)


def _room_for_copies(module: DeployedModule[Any], sizes: dict[str, int]) -> tuple[str, int]:
    """The axis that every input has first and nowhere else, and how many samples fit into its profile along it.

    Without such an axis the number is 1.
    """
    signature = module.signature
    shapes = [spec.shape for spec in signature.inputs]
    first = {str(shape[0]) if shape else "" for shape in shapes}
    axis = next(iter(first), "")
    mentions = sum(axis in str(dim) for shape in shapes for dim in shape) if axis in sizes else 0
    if len(first) != 1 or mentions != len(shapes):
        return axis, 1
    profiles = module._artifact.profiles  # pyright: ignore[reportPrivateUsage]  # the same folder
    largest = profiles[select_profile(signature, profiles, sizes)].ranges[axis][2]
    return axis, min(_MOST_COPIES, largest // sizes[axis])

"""Measured calls → what makes them slower than they could be.

Enters: a call's inputs and its times. Leaves: findings. Separate from `explain_calls`, which measures, so that each
rule can be tried on times of any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.core.finding import Finding
from torch2engine.core.spec import Signature
from torch2engine.deployed.timing import Timing

__all__ = ["call_us", "converted_inputs", "default_stream", "host_bound", "slow_first_call", "small_batch"]

_MOSTLY_LAUNCHING = 0.8  # share of a call that the host needs to launch it
_NOTABLE_GAIN = 1.1
_LEAST_FIRST_CALL_US = 20_000
_SLOW_FIRST_CALL = 20  # times a later call
_LEAST_GAIN_OF_BATCH = 2.0  # times less for each entry


def call_us(timing: Timing) -> float:
    """The time of a call where calls follow each other: the host's or the device's, whichever is longer."""
    return max(timing.host_us, timing.device_us or 0.0)


def converted_inputs(signature: Signature, leaves: Sequence[torch.Tensor]) -> Iterable[Finding]:
    """Inputs that every call copies, since the engine takes them otherwise.

    Args:
        signature: of the call.
        leaves: the inputs, as they are given.
    """
    reasons: list[str] = []
    for spec, leaf in zip(signature.inputs, leaves, strict=True):
        if leaf.dtype != torch_dtype(spec.dtype):
            reasons.append(f"'{spec.name}' is {dtype_name(leaf.dtype)}, and the engine takes {spec.dtype}")
        elif not leaf.is_contiguous() or leaf.is_neg():
            reasons.append(f"'{spec.name}' is not contiguous (strides {leaf.stride()})")
    if reasons:
        yield Finding(
            name="copies",
            measured="every call converts inputs: " + "; ".join(reasons),
            why="A copy of an input costs a kernel and its memory before the engine begins",
            suggestion="inputs in the engine's dtype and contiguous, made so once and not in every call",
        )


def host_bound(timing: Timing) -> Iterable[Finding]:
    """Calls for which the GPU waits.

    Args:
        timing: of a call on a GPU; one on the CPU has no finding.
    """
    if timing.device_us is None or timing.host_us < _MOSTLY_LAUNCHING * timing.device_us:
        return
    yield Finding(
        name="host-bound",
        measured=f"the host needs {timing.host_us:.0f} µs to launch a call, and a call takes {timing.device_us:.0f} µs",
        why="The GPU computes faster than calls are launched, so it idles between them",
        suggestion="larger batches, RuntimeConfig(cuda_graphs=True), RuntimeConfig(output='static'), or one CUDA graph "
        "of your own around several calls",
    )


def default_stream(on_default: Timing, on_own: Timing) -> Iterable[Finding]:
    """Calls that are slower on the default stream.

    Args:
        on_default: a call on CUDA's default stream.
        on_own: the same on a stream of its own.
    """
    if call_us(on_default) < _NOTABLE_GAIN * call_us(on_own):
        return
    yield Finding(
        name="default stream",
        measured=f"a call takes {call_us(on_default):.0f} µs on the default stream and {call_us(on_own):.0f} µs on "
        "a stream of its own",
        why="TensorRT must not run on CUDA's default stream, so each call changes over to another one and back",
        suggestion="calls under `with torch.cuda.stream(torch.cuda.Stream()):`",
    )


def slow_first_call(first_us: float, later_us: float, sizes: Mapping[str, int], can_warm_up: bool) -> Iterable[Finding]:
    """A first call that takes far longer than later ones.

    Args:
        first_us, later_us: what they take.
        sizes: of the call's axes.
        can_warm_up: whether the module has `warmup`.
    """
    if first_us < _LEAST_FIRST_CALL_US or first_us < _SLOW_FIRST_CALL * later_us:
        return
    yield Finding(
        name="slow first call",
        measured=f"the first call takes {first_us / 1000:.0f} ms, later ones take {later_us / 1000:.2f} ms",
        why="The runtime prepares kernels and memory for each new shape, and the first request waits for it",
        suggestion=f"module.warmup([{dict(sizes)}]) before the first request; save() then keeps the compiled kernels"
        if can_warm_up
        else "one call before the first request",
    )


def small_batch(axis: str, times: Mapping[int, float]) -> Iterable[Finding]:
    """Entries that would take much less time together.

    Args:
        axis: along which a call holds several entries.
        times: two sizes of it, the smaller one first, with the µs of a call.
    """
    (size, one_us), (larger, all_us) = times.items()
    gain = (one_us / size) / (all_us / larger) if all_us else 0.0
    if gain < _LEAST_GAIN_OF_BATCH:
        return
    yield Finding(
        name="small batch",
        measured=f"a call takes {one_us:.0f} µs with {axis} {size} and {all_us:.0f} µs with {axis} {larger}: "
        f"{gain:.1f} times less for each entry",
        why="A small call does not fill the processor",
        suggestion=f"calls of {axis} {larger}: collect inputs, and answer them together",
    )

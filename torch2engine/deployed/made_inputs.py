"""Axis sizes → flat inputs: zeros that prepare a module for calls, random values that it is compared and timed on.

Enters: a signature, its profiles and axis sizes. Leaves: tensors in the signature's order, or the name of an axis that
does not exist. Separate because backends, refits and benchmarks make inputs alike.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence

import torch

from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.constants import RANDOM_SEED
from torch2engine.core.errors import InputError
from torch2engine.core.profile_sizes import profile_sizes
from torch2engine.core.spec import Profile, Signature, TensorSpec
from torch2engine.core.wording import did_you_mean

__all__ = ["case_name", "corner_sizes", "named_examples", "random_cases", "zeros"]


def zeros(
    signature: Signature,
    profiles: Sequence[Profile],
    shapes: Iterable[Mapping[str, int]] | None,
    device: torch.device | None,
) -> Generator[list[torch.Tensor]]:
    """Yield flat inputs of zeros.

    Args:
        signature: the inputs.
        profiles: sizes that are not given are the first profile's opt.
        shapes: axis name -> size; None for min, opt and max of every profile. Where other profiles answer these sizes,
            a size is added that this one answers.
        device: where to make them.

    Raises:
        InputError: no such axis.
    """
    if shapes is None:
        shapes = [sizes for index in range(len(profiles)) for sizes in profile_sizes(signature, profiles, index)] or [
            {}
        ]
    names = [axis.name for axis in signature.axes]
    for given in shapes:
        if unknown := [name for name in given if name not in names]:
            allowed = f"one of {', '.join(names)}" if names else "none, since the engine has no dynamic axes"
            fix = did_you_mean(unknown[0], names, given) or "name one of them"
            raise InputError("warmup", got=f"axis '{unknown[0]}'", allowed=allowed, fix=fix)
        sizes = {**(profiles[0].sizes(1) if profiles else {}), **given}
        yield [
            torch.zeros(spec.sized(sizes), dtype=torch_dtype(spec.dtype), device=device) for spec in signature.inputs
        ]


def corner_sizes(profiles: Sequence[Profile]) -> list[dict[str, int]]:
    """Return the sizes at min, opt and max of the first profile."""
    return [profiles[0].sizes(which) if profiles else {} for which in range(3)]


def random_cases(
    signature: Signature,
    all_sizes: Iterable[Mapping[str, int]],
    device: torch.device,
    live: Sequence[torch.Tensor] = (),
) -> dict[str, list[torch.Tensor]]:
    """Make the same pseudo-random inputs at every run, by the name of their sizes.

    Args:
        signature: the inputs.
        all_sizes: the size of every axis, one mapping for each case.
        device: where the inputs go.
        live: values of the live parameters, which are not random.

    Returns:
        random floats, bytes of images, True, and other integers that are 0, or 1 where the input's name ends in "mask".
    """
    generator = torch.Generator().manual_seed(RANDOM_SEED)
    specs = signature.call_inputs
    return {
        case_name(sizes): [
            *(_random(spec, spec.sized(sizes), generator).to(device) for spec in specs),
            *(value.detach().to(device, copy=True) for value in live),
        ]
        for sizes in all_sizes
    }


def named_examples(
    signature: Signature, examples: Sequence[Sequence[torch.Tensor]], device: torch.device
) -> dict[str, Sequence[torch.Tensor]]:
    """Name inputs that somebody gave by their sizes, and move them; those of the same sizes are numbered."""
    cases: dict[str, Sequence[torch.Tensor]] = {}
    for index, leaves in enumerate(examples):
        name = case_name(signature.resolve([leaf.shape for leaf in leaves]))
        cases[f"{name} ({index})" if name in cases else name] = [leaf.to(device) for leaf in leaves]
    return cases


def _random(spec: TensorSpec, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    dtype = torch_dtype(spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    if spec.preprocess is not None:
        return torch.randint(256, tuple(shape), generator=generator, dtype=dtype)
    # Every embedding table has entry 0. A mask that hides everything has no answer.
    fill = 1 if dtype == torch.bool or spec.name.endswith("mask") else 0
    return torch.full(tuple(shape), fill, dtype=dtype)


def case_name(sizes: Mapping[str, int]) -> str:
    """Return the name of these sizes, e.g. "batch 8"."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "sample"

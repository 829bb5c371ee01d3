"""Puts into the caller's arguments what the model would leave there: new values of tensors, new contents of containers.

Enters: a checked call, and the backend's outputs. Leaves: the arguments as the model would have left them, and the
result; or a typed error before anything ran. Separate because backends only read their inputs: this is the one place
that writes into an object of the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import torch

from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.errors import DtypeError, InputError
from torch2engine.core.pytree import argument_at, assign, can_refill, refill, unflatten
from torch2engine.core.spec import Signature, TensorSpec, Tree
from torch2engine.core.wording import kind_of, with_article

__all__ = ["WriteBack"]

_OVERLAP_WORK = 10_000  # of numpy's search for an element that two tensors share; beyond it they count as overlapping


@dataclass(frozen=True)
class WriteBack:
    """Copies outputs into the inputs that the model writes, and fills containers anew.

    Args:
        signature: of the call.
        outputs: {index of a written input: index of the output with its new value}.
    """

    signature: Signature
    outputs: dict[int, int]

    @property
    def has_containers(self) -> bool:
        """Whether writing back needs the call's own arguments, and not their tensors alone."""
        return bool(self.signature.refills) or _holds_argument(self.signature.output)

    @classmethod
    def of(cls, signature: Signature) -> WriteBack | None:
        """Find what a model of this signature writes; None for a model that only reads its arguments."""
        if not (signature.writes or signature.refills or _holds_argument(signature.output)):
            return None
        inputs = [spec.name for spec in signature.inputs]
        outputs = [spec.name for spec in signature.outputs]
        return cls(signature, {inputs.index(one.input): outputs.index(one.output) for one in signature.writes})

    def check(self, leaves: Sequence[torch.Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that can't be written into as PyTorch would.

        Args:
            leaves: the call's inputs, checked as those of any call.
            args, kwargs: the call.

        Raises:
            DtypeError: a written input in another dtype than the model's.
            InputError: a tensor with several elements in one place, one that shares memory with another input, or an
                inference tensor outside of inference mode. Also a container that can't change.
        """
        for refilled in self.signature.refills:
            value = argument_at(self.signature.parameters, args, kwargs, refilled.path)
            if not can_refill(value, refilled.tree):
                path = ".".join(map(str, refilled.path))
                raise InputError(
                    f"argument '{path}'",
                    name=path,
                    got=kind_of(value),
                    allowed=f"{with_article(refilled.tree.kind)} that can change, since the model fills it anew",
                    fix="pass the container that sample_input had",
                )
        for index in self.outputs:
            self._check_written(self.signature.inputs[index], leaves[index])
        for one, other in _overlapping(leaves):
            if one in self.outputs or other in self.outputs:
                written, read = (one, other) if one in self.outputs else (other, one)
                raise InputError(
                    _subject(self.signature.inputs[written]),
                    name=self.signature.inputs[written].name,
                    got=f"memory that input '{self.signature.inputs[read].name}' has, too",
                    allowed="memory of its own, since the model writes into it",
                    fix="pass a .clone() of one of them",
                )

    def _check_written(self, spec: TensorSpec, leaf: torch.Tensor) -> None:
        if (dtype := dtype_name(leaf.dtype)) != spec.dtype:
            raise DtypeError(
                _subject(spec),
                name=spec.name,
                got=f"dtype {dtype}",
                allowed=f"{spec.dtype}, since the model writes into it",
                fix=f"pass a tensor of that dtype, e.g. with .to(torch.{spec.dtype}), and read the new values from it",
            )
        if _may_overlap_itself(leaf):
            raise InputError(
                _subject(spec),
                name=spec.name,
                got="a tensor with several elements in one place, such as an expanded one",
                allowed="a place for each element, since the model writes into it",
                fix="pass its .clone(), and read the new values from that",
            )
        if leaf.is_inference() and not torch.is_inference_mode_enabled():
            raise InputError(
                _subject(spec),
                name=spec.name,
                got="a tensor that was made in inference mode, outside of it",
                allowed="one that PyTorch lets be written into here",
                fix="pass its .clone(), or call the module under torch.inference_mode()",
            )

    def suits_fast_path(self, leaves: Sequence[Any]) -> bool:
        """Whether contiguous inputs pass `check`, by a look at their addresses. False also where that is unknown."""
        if self.signature.refills:
            return False
        if not self.outputs:
            return True
        in_inference_mode = torch.is_inference_mode_enabled()
        try:
            if not in_inference_mode and any(leaves[index].is_inference() for index in self.outputs):
                return False
            ranges = sorted((leaf.data_ptr(), leaf.nbytes) for leaf in leaves)
        except (AttributeError, IndexError, RuntimeError):  # something else than tensors with memory
            return False
        return all(start + size <= following for (start, size), (following, _) in pairwise(ranges))

    def apply(
        self,
        leaves: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Copy the new values into the inputs, on the current stream, and fill the containers anew.

        Args:
            leaves: inputs that passed `check`.
            outputs: the backend's, in the signature's order.
            args, kwargs: the call.

        Returns:
            the result, with the caller's own tensor or cache where the model returns the very argument.
        """
        answer = list(outputs)
        with torch.no_grad():
            for index, place in self.outputs.items():
                leaves[index].copy_(outputs[place])
                answer[place] = leaves[index]
        signature = self.signature
        if not self.has_containers:
            return unflatten(signature.output, answer)
        tensors = {spec.name: leaf for spec, leaf in zip(signature.inputs, leaves, strict=True)}
        tensors |= {spec.name: leaf for spec, leaf in zip(signature.outputs, answer, strict=True)}
        for refilled in signature.refills:
            container = argument_at(signature.parameters, args, kwargs, refilled.path)
            refill(container, refilled.tree, [tensors[name] for name in refilled.tensors])
        return unflatten(signature.output, answer, assign(signature.parameters, args, kwargs))


def _holds_argument(tree: Tree) -> bool:
    return tree.kind == "argument" or any(map(_holds_argument, tree.children))


def _subject(spec: TensorSpec) -> str:
    return f"input '{spec.name}'"


def _may_overlap_itself(leaf: torch.Tensor) -> bool:
    """Whether two elements may have one place: not where each stride steps over all that the smaller ones reach."""
    reach = 1
    for stride, size in sorted(zip(leaf.stride(), leaf.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return True
            reach += stride * (size - 1)
    return False


def _overlapping(leaves: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """The pairs of tensors that share an element's memory."""
    places = sorted((_range(leaf), index) for index, leaf in enumerate(leaves) if leaf.numel())
    clusters: list[list[int]] = []
    reached = -1
    for (start, end), index in places:
        if start >= reached:
            clusters.append([])
        clusters[-1].append(index)
        reached = max(reached, end)
    pairs = [pair for cluster in clusters for pair in combinations(cluster, 2)]
    return [(one, other) for one, other in pairs if _share_memory(leaves[one], leaves[other])]


def _range(leaf: torch.Tensor) -> tuple[int, int]:
    """The addresses from a tensor's first byte to behind its last."""
    reach = sum(stride * (size - 1) for stride, size in zip(leaf.stride(), leaf.shape, strict=True))
    return leaf.data_ptr(), leaf.data_ptr() + (reach + 1) * leaf.element_size()


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    shares_memory: Any = np.shares_memory  # whose types know no limit but "exact" and "bounds only"
    try:
        return shares_memory(_layout(one), _layout(other), max_work=_OVERLAP_WORK)
    except RuntimeError:  # numpy's TooHardError, which has moved between versions
        return True


def _layout(leaf: torch.Tensor) -> Any:
    """An array at the tensor's addresses, on whatever device they are, for questions of addresses alone."""
    size = leaf.element_size()
    interface = {
        "version": 3,
        "data": (leaf.data_ptr(), True),
        "typestr": f"|V{size}",
        "shape": tuple(leaf.shape),
        "strides": tuple(stride * size for stride in leaf.stride()),
    }
    return np.asarray(type("Layout", (), {"__array_interface__": interface})())

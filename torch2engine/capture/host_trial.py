"""Invented inputs on a copy of the model on the CPU, before they may reach a GPU.

Enters: a model on a GPU, and invented inputs. Leaves: the CPU's answer or an exception. Separate because an index out
of range ends the process's CUDA context. The model, its optimizer and hours of training would be lost with it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torch2engine.capture.device_asserts import is_on_gpu, tensors_in, watch
from torch2engine.capture.model_state import StateEntry, is_shared_by_copies, state_entries
from torch2engine.capture.reference import Reference
from torch2engine.core.errors import ExportError
from torch2engine.core.pytree import Flat

__all__ = ["HostTrial", "find_unsafe_inputs", "trial_if_needed"]

_CPU = torch.device("cpu")
_GPU_NAME = re.compile(r"(cuda|xpu|hip)(:\d+)?")
_LARGEST_SHARE = 0.5  # share of the free memory that a copy may take; activations need the rest


class HostTrial:
    """Runs invented inputs on a copy of the model on the CPU.

    Args:
        reference: the model on its GPU.
        sample: inputs that the user gave. The copy must answer them, or it proves nothing about others.
        on_gpu: whether a tensor is on a GPU.
        follows_floats: whether the model computes indices from floats. Then inputs and weights that are rounded
            differently need a trial, too.
    """

    def __init__(
        self,
        reference: Reference,
        sample: Sequence[torch.Tensor],
        on_gpu: Callable[[torch.Tensor], bool] = is_on_gpu,
        follows_floats: bool = True,
    ) -> None:
        self.follows_floats = follows_floats
        self._reference = reference
        self._sample = sample
        self._on_gpu = on_gpu
        self._copy: Reference | None = None
        self._obstacle: str | None = None

    def obstacle(self) -> str:
        """Say why the model can't be tried on the CPU; "" if it can."""
        if self._obstacle is None:
            try:
                self.run(self._sample)
                self._obstacle = ""
            except Exception as error:  # of the user's code: a copy runs __deepcopy__, __reduce__ and __init__
                self._copy = None
                self._obstacle = error.got if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
        return self._obstacle

    def run(self, inputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor] | None = None) -> Flat:
        """Answer these inputs on the CPU, by a copy that is made at the first call.

        Args:
            inputs: on any device.
            weights: they replace the model's own; on any device.

        Raises:
            ExportError: as `Reference`, where the model would have failed on the GPU.
            Exception: the model can't be copied, as `obstacle` says before.
        """
        if self._copy is None:
            self._copy = self._reference.of(copy_to_cpu(self._reference.model))
        on_cpu = [leaf.detach().to(_CPU, copy=True) for leaf in inputs]  # moved before operators on the GPU are refused
        weights_on_cpu = None
        if weights is not None:
            weights_on_cpu = {name: weight.detach().to(_CPU) for name, weight in weights.items()}
        with self.on_cpu():
            return self._copy.run(on_cpu, weights_on_cpu)

    def on_cpu(self) -> AbstractContextManager[None]:
        """Give a context for code that must not reach a GPU: there it raises a RuntimeError instead."""
        return _only_on_cpu(self._on_gpu)

    def refresh(self) -> None:
        """Free the copy; the next run copies the model as it is then, with its state."""
        self._copy = None


def trial_if_needed(
    reference: Reference,
    sample: Sequence[torch.Tensor],
    answer: Sequence[torch.Tensor],
    on_gpu: Callable[[torch.Tensor], bool] = is_on_gpu,
) -> HostTrial | None:
    """Decide whether invented inputs need a trial before they may reach the model, and watch it once for that.

    Args:
        reference: the model.
        sample: its inputs, that it has answered.
        answer: the tensors of its answer.
        on_gpu: whether a tensor is on a GPU.

    Returns:
        None for a model that is not on a GPU, or has no operator that asserts there.
    """
    if not any(map(on_gpu, (*sample, *answer, *reference.model.parameters(), *reference.model.buffers()))):
        return None
    watched = watch(lambda: reference(sample), on_gpu)
    return HostTrial(reference, sample, on_gpu, watched.follows_floats) if watched.asserting else None


def find_unsafe_inputs(
    reference: Reference,
    cases: Mapping[str, Sequence[torch.Tensor]],
    on_gpu: Callable[[torch.Tensor], bool] = is_on_gpu,
) -> dict[str, str]:
    """Find invented inputs that must not reach a model on a GPU, where no input of the user exists.

    Args:
        reference: the model.
        cases: its inputs, by name.
        on_gpu: whether a tensor is on a GPU.

    Returns:
        the name of each unsafe case, with the reason.
    """
    if not cases or not any(map(on_gpu, (*reference.model.parameters(), *reference.model.buffers()))):
        return {}
    smallest = min(cases, key=lambda name: sum(leaf.numel() for leaf in cases[name]))
    trial = HostTrial(reference, cases[smallest], on_gpu)
    if obstacle := trial.obstacle():
        return dict.fromkeys(cases, obstacle)
    if not watch(lambda: trial.run(cases[smallest]), lambda tensor: True).asserting:
        return {}
    unsafe: dict[str, str] = {}
    for name in cases:
        try:
            trial.run(cases[name])
        except ExportError as error:
            unsafe[name] = error.got
    return unsafe


def copy_to_cpu(model: nn.Module) -> nn.Module:
    """Copy a module with all tensors, generators and device names that it can reach, to the CPU.

    The copy shares what nobody can copy, such as locks.

    Raises:
        MemoryError: the host has too little memory.
        Exception: any of the classes in the model refuses to be copied.
    """
    entries = list(state_entries(model))
    _require_memory(entry.value for entry in entries)
    copies: dict[int, Any] = {}  # by the id of the original, as copy.deepcopy looks them up
    for entry in entries:
        value = entry.value
        if isinstance(value, torch.Tensor):
            copies[id(value)] = _tensor_on_cpu(value)
        elif isinstance(value, torch.Generator):
            copies[id(value)] = torch.Generator().manual_seed(value.initial_seed())
        elif is_shared_by_copies(value):
            copies[id(value)] = value
    copied = copy.deepcopy(model, copies)
    for entry in list(state_entries(copied)):
        _name_cpu(entry)
    return copied


def _tensor_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().to(_CPU, copy=True)
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _name_cpu(entry: StateEntry) -> None:
    """Replace the name of a GPU on which forward makes tensors, or to which it moves them."""
    value = entry.value
    is_name = isinstance(value, str) and _GPU_NAME.fullmatch(value)
    if entry.container is not None and (is_name or isinstance(value, torch.device)):
        entry.container[entry.key] = _on_cpu(value)


def _on_cpu(value: Any) -> Any:
    """The CPU instead of a GPU, in the form in which the GPU was named; other values unchanged."""
    if isinstance(value, torch.device):
        return value if value.type == "meta" else _CPU
    return "cpu" if isinstance(value, str) and _GPU_NAME.fullmatch(value) else value


def _require_memory(values: Iterable[object]) -> None:
    tensors = {id(value): value for value in values if isinstance(value, torch.Tensor)}
    needed = sum(tensor.nbytes for tensor in tensors.values() if tensor.layout is torch.strided)
    free = _free_host_bytes()
    if needed > _LARGEST_SHARE * free:
        raise MemoryError(f"its copy takes {needed >> 20} MiB of the host's {free >> 20} MiB that are free")


def _free_host_bytes() -> int:
    """The memory that this process can still take, as the system and its control group report it."""
    amounts = [int(words[1]) << 10 for words in _lines("/proc/meminfo") if words[0] == "MemAvailable:"]
    group = [words[0] for name in ("memory.max", "memory.current") for words in _lines(f"/sys/fs/cgroup/{name}")]
    if len(group) == 2 and all(word.isdigit() for word in group):
        amounts.append(int(group[0]) - int(group[1]))
    return max(0, min(amounts, default=1 << 62))


def _lines(path: str) -> list[list[str]]:
    """The words of each line; empty if there is no such file."""
    try:
        return [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
    except OSError:
        return []


@contextmanager
def _only_on_cpu(on_gpu: Callable[[torch.Tensor], bool]) -> Generator[None]:
    """Run the body on the CPU: every device that it names means the CPU, and an operator on a GPU raises."""
    with _GpuRefused(on_gpu), _DevicesReplaced(), _CPU:  # the last one is for tensors without a named device
        yield


class _DevicesReplaced(TorchFunctionMode):
    """Replaces every device that a call of torch names by the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with other devices."""
        named: Mapping[str, Any] = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:  # the index of a GPU
            args = (args[0], _CPU, *args[2:])
        positional = [_on_cpu(value) for value in cast("Sequence[Any]", args)]
        by_name = {
            key: _CPU if key == "device" and type(value) is int else _on_cpu(value) for key, value in named.items()
        }
        return func(*positional, **by_name)


class _GpuRefused(TorchDispatchMode):
    """Refuses operators on a tensor on a GPU, e.g. one that is a global variable."""

    supports_higher_order_operators = True  # torch.cond and the like

    def __init__(self, on_gpu: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self._on_gpu = on_gpu

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.cond compile without this mode: what Dynamo compiles under a mode fails later (torch 2.13)."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, unless it reads or writes a GPU's memory."""
        if any(map(self._on_gpu, tensors_in((args, kwargs)))):
            raise RuntimeError(f"{func} reads a tensor on a GPU that is no part of the model")
        return func(*args, **(kwargs or {}))

"""The result tensors of one prepared shape, and the memory that PyTorch's allocator gives TensorRT.

Enters: output shapes. Leaves: tensors that TensorRT writes into. Separate from `shape_graphs` because an enqueue needs
them too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.errors import BuildError
from torch2engine.core.spec import TensorSpec
from torch2engine.trt.context import Context, DataDependentOutput
from torch2engine.trt.memory import ALIGNMENT_BYTES, FREE_MEMORY

__all__ = ["OutputTensors", "TensorMemory", "allocate_memory", "empty_like_each"]


class TensorMemory:
    """Device memory that a uint8 tensor owns."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.address = tensor.data_ptr()
        self.size_bytes = tensor.numel()


def allocate_memory(device: torch.device, size_bytes: int) -> TensorMemory:
    """Allocate device memory by PyTorch's allocator.

    Raises:
        BuildError: there is not enough.
    """
    try:
        tensor = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise BuildError(
            "execution context",
            got=f"working memory of {size_bytes / 2**20:.0f} MiB that does not fit on {device}, of which "
            f"{torch.cuda.mem_get_info(device)[0] / 2**20:.0f} MiB are free",
            allowed="room for it",
            fix=FREE_MEMORY,
            out_of_memory=True,
        ) from error
    return TensorMemory(tensor)


class OutputTensors:
    """The outputs of one prepared shape. Not thread-safe.

    Args:
        specs: the outputs' names and dtypes.
        is_static: whether every call gets the same tensors, which the next call overwrites.
        device: where they live.
    """

    def __init__(self, specs: Sequence[TensorSpec], is_static: bool, device: torch.device) -> None:
        self.is_static = is_static
        self.data_dependent: list[int] = []  # outputs whose shapes only their values decide
        self.templates: list[torch.Tensor] = []  # none before the first context
        self._specs = specs
        self._device = device
        self._static: list[torch.Tensor] | None = None
        self._on_demand: dict[str, DataDependentOutput[TensorMemory]] = {}
        self._placeholder: torch.Tensor | None = None

    def set_shapes(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Take the shapes that TensorRT gives; -1 stands for a dimension that only values decide."""
        self.data_dependent = [index for index, shape in enumerate(shapes) if min(shape, default=0) < 0]
        if self.templates:
            return
        with torch.inference_mode(False):  # buffers of inference mode can't be written to outside of it
            templates = [self._make_template(index, shape) for index, shape in enumerate(shapes)]
            if self.is_static:
                self._static = empty_like_each(templates)
            self.templates = templates

    def _make_template(self, index: int, shape: Sequence[int]) -> torch.Tensor:
        """A tensor of an output's shape and dtype, almost without memory: empty_like is faster than empty."""
        dtype = torch_dtype(self._specs[index].dtype)
        known_shape = [0] if index in self.data_dependent else list(shape)
        if 0 in known_shape:
            return torch.empty(known_shape, dtype=dtype, device=self._device)
        return torch.empty((), dtype=dtype, device=self._device).expand(known_shape)

    def make_fresh(self) -> list[torch.Tensor]:
        """Make tensors for the results, which nothing else holds."""
        return empty_like_each(self.templates)

    def for_next_call(self) -> list[torch.Tensor]:
        """Tensors for the results of the next call; none before the first context."""
        return self._static or self.make_fresh()

    def replace_null_addresses(self, addresses: Sequence[int]) -> tuple[int, ...]:
        """Give an address that TensorRT accepts to empty tensors, which have none."""
        if self._placeholder is None:
            self._placeholder = torch.empty(ALIGNMENT_BYTES, dtype=torch.uint8, device=self._device)
        return tuple(address or self._placeholder.data_ptr() for address in addresses)

    # Outputs whose shapes only their values decide.

    def allocate_on_demand(self, context: Context) -> None:
        """Let TensorRT request the memory of the data-dependent outputs during the next enqueue."""
        names = [self._specs[index].name for index in self.data_dependent]
        # Not a method of self: the context holds the function, and the prepared shape holds both.
        self._on_demand = context.allocate_on_demand(names, partial(allocate_memory, self._device))

    def allocation_error(self) -> Exception | None:
        """The error of an allocation that TensorRT requested, and because of which it gave up."""
        return next((output.error for output in self._on_demand.values() if output.error is not None), None)

    def resolve_data_dependent(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Replace the data-dependent outputs by views of the memory that TensorRT requested."""
        results = list(outputs)
        for index in self.data_dependent:
            output = self._on_demand[self._specs[index].name]
            template = self.templates[index]
            size = math.prod(output.shape) * template.element_size()
            if size and output.memory is not None:
                results[index] = output.memory.tensor[:size].view(template.dtype).view(output.shape)
            else:
                results[index] = template.new_empty(output.shape)
            output.memory = None  # The result alone owns the memory, since TensorRT keeps the allocator.
        self._on_demand = {}
        return results

    def reset(self) -> None:
        """Forget the shapes and tensors of a context that is freed."""
        self._on_demand = {}


def empty_like_each(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Make, for each tensor, a contiguous one of the same shape, dtype and device."""
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]

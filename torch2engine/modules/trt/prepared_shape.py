"""What a lane knows about one set of input shapes: profile, context, output shapes, memory, CUDA graphs.

Enters: shapes on their first call. Leaves: what every later call needs no TensorRT for. Apart from `_lane` because it
decides nothing about order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch2engine.capture.torch_types import torch_dtype
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import BuildError
from torch2engine.trt.context import Context, Found
from torch2engine.trt.cuda_graph import Graph
from torch2engine.trt.engine import Engine

__all__ = ["Copied", "Plan", "allocate"]

_ALIGNMENT_BYTES = 256
# An address set gets a graph at its third call: a capture costs about four enqueues (1 ms for ResNet-50 on an H200).
_SIGHTINGS = 3
_SIGHTINGS_BESIDE_COPY = 8  # which is but the copies slower
_REMEMBERED = 64
# Loops cycle through few addresses, since PyTorch's allocator hands them out again: two where shapes stay, up to twenty
# where sixty-four shapes come in random order.
_GRAPHS = 16
# With more addresses than that, new ones get a chance this seldom, or captures would cost more than they save.
_MISSES = 1024
_WARM = {True: 1, "auto": 2}
_MOST_PATIENCE = 6
# Copying in and out costs about 20 µs of host time, and device time by bytes; an enqueue that takes less stays.
_COPY_SECONDS = 50e-6
_COPY_BYTES_PER_SECOND = 1e12


def allocate(size_bytes: int, device: torch.device) -> tuple[int, torch.Tensor]:
    """Device memory from PyTorch's allocator: (address, the tensor that owns it)."""
    try:
        memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise BuildError(
            "execution context",
            got=f"its working memory of {size_bytes / 2**20:.0f} MiB does not fit on {device}",
            fix="free GPU memory, or build with a smaller max in the profiles",
            out_of_memory=True,
        ) from error
    return memory.data_ptr(), memory


class Plan:
    """One set of input shapes on one lane. Not thread-safe: the lane's lock is held.

    Args:
        engine: its outputs' names and dtypes.
        shapes: one per input of the signature.
        profile: that holds them.
        config: whether outputs are fresh or static.
        device: where outputs live.
    """

    def __init__(
        self, engine: Engine, shapes: tuple[torch.Size, ...], profile: int, config: RuntimeConfig, device: torch.device
    ) -> None:
        self.shapes = shapes
        self.profile = profile
        self.used = 0.0
        self.context: Context | None = None
        self.memory_bytes = 0
        self.memory: torch.Tensor | None = None  # what the context works in
        self.enqueued = 0
        self.evicted = 0
        self.graphs: dict[tuple[int, ...], Graph] = {}
        self.copied: Copied | None = None
        self._specs = engine.outputs
        self._static = config.output == "static"
        self._device = device
        self._seconds = math.inf
        self._misses = 0
        self._bytes: float | None = None
        self._seen: dict[tuple[int, ...], int] = {}
        self._templates: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] | None = None
        self.unknown: list[int] = []  # outputs whose shapes only their values decide
        self._found: dict[str, Found] = {}
        self._nothing: torch.Tensor | None = None

    def take(self, context: Context, stream: int) -> None:
        """Set a context to these shapes and learn the outputs' shapes and the memory that it needs."""
        shapes = context.set_shapes(self.profile, self.shapes, stream)
        self.unknown = [index for index, shape in enumerate(shapes) if min(shape, default=0) < 0]
        self.memory_bytes = context.memory_bytes()
        if not self._templates:
            with torch.inference_mode(False):  # buffers made in inference mode can't be written to outside of it
                templates = [self._template(index, shape) for index, shape in enumerate(shapes)]
                if self._static:
                    self._kept = _like(templates)
                self._templates = templates
        self.context = context

    def _template(self, index: int, shape: Sequence[int]) -> torch.Tensor:
        """A tensor of an output's shape and dtype without memory to speak of: empty_like is faster than empty."""
        dtype = torch_dtype(self._specs[index].dtype)
        known = [0] if index in self.unknown else list(shape)
        if 0 in known:
            return torch.empty(known, dtype=dtype, device=self._device)
        return torch.empty((), dtype=dtype, device=self._device).expand(known)

    def fresh(self) -> list[torch.Tensor]:
        """Tensors for the results that nothing else knows."""
        return _like(self._templates)

    def outputs(self) -> list[torch.Tensor]:
        """Tensors for the results; none before the first context."""
        return self._kept or self.fresh()

    def nonzero(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """The addresses, with one that is taken for empty tensors, which have none."""
        if self._nothing is None:
            self._nothing = torch.empty(_ALIGNMENT_BYTES, dtype=torch.uint8, device=self._device)
        return tuple(address or self._nothing.data_ptr() for address in key)

    # Outputs whose shapes only their values decide.

    def find_outputs(self, context: Context) -> None:
        """Prepare for the outputs that are `unknown`."""
        names = [self._specs[index].name for index in self.unknown]
        device = self._device  # not self: the context keeps the function, and this plan the context
        self._found = context.find_outputs(names, lambda size_bytes: allocate(size_bytes, device))

    def cause(self) -> Exception | None:
        """What made TensorRT give up: the error of an allocation that it asked for."""
        return next((found.error for found in self._found.values() if found.error is not None), None)

    def found_outputs(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs, with those that were found out as views of the memory that TensorRT asked for."""
        results = list(outputs)
        for index in self.unknown:
            found = self._found[self._specs[index].name]
            like = self._templates[index]
            size = math.prod(found.shape) * like.element_size()
            results[index] = (
                found.owner[:size].view(like.dtype).view(found.shape) if size else like.new_empty(found.shape)
            )
            found.owner = None  # the result's alone, while TensorRT keeps the allocator
        self._found = {}
        return results

    # When to use graphs.

    def note(self, seconds: float) -> None:
        """Remember an enqueue and what it cost the host."""
        self.enqueued += 1
        self._seconds = min(self._seconds, seconds)

    def capturable(self, graphs: bool | str) -> bool:
        """Whether TensorRT has settled: first enqueues load kernels, which a capture forbids.

        A plan that keeps losing its context needs ever more calls in between, or captures would be all it does.
        """
        return self.enqueued >= _WARM[graphs] << min(self.evicted, _MOST_PATIENCE) and not self.unknown

    def recurs(self, key: tuple[int, ...]) -> bool:
        """Whether these addresses came up so often that a graph of their own pays."""
        if not all(key):
            return False
        if self.is_full:
            self._misses += 1
            if self._misses < _MISSES:
                return False
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        times = self._seen[key] = self._seen.get(key, 0) + 1
        return times >= (_SIGHTINGS if self.copied is None else _SIGHTINGS_BESIDE_COPY)

    def add(self, key: tuple[int, ...], graph: Graph) -> None:
        """Take a graph for these addresses."""
        self.graphs[key] = graph
        self._seen.pop(key, None)
        self._misses = 0

    def copying_pays(self, graphs: bool | str, inputs: Sequence[torch.Tensor]) -> bool:
        """Whether a graph at addresses of its own, with copies in and out, beats an enqueue."""
        if self._bytes is None:
            sizes = [tensor.numel() * tensor.element_size() for tensor in (*inputs, *self._templates)]
            self._bytes = sum(sizes) if all(sizes) else math.inf  # an empty tensor can't be copied by address
        if graphs is True:
            return self._bytes < math.inf
        return self._seconds > _COPY_SECONDS + self._bytes / _COPY_BYTES_PER_SECOND

    def buffers(self, inputs: Sequence[torch.Tensor], outputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        """Tensors for a graph of their own: inputs, and outputs (a static plan's are its own already)."""
        with torch.inference_mode(False):
            own = _like(inputs)
            return own, outputs if self._static else self.fresh()

    @property
    def has_graphs(self) -> bool:
        return bool(self.graphs) or self.copied is not None

    @property
    def is_full(self) -> bool:
        return len(self.graphs) >= _GRAPHS

    def drop_graphs(self) -> None:
        """Forget the graphs, which nothing may be running."""
        self.graphs.clear()
        self.copied = None

    def clear(self) -> None:
        """Forget the context and its graphs; shapes are remembered."""
        self.drop_graphs()
        self._seen.clear()
        self._found = {}
        self.context = None
        self.memory = None
        self.enqueued = 0


def _like(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


@dataclass
class Copied:
    """A graph at tensors of its own: calls copy into `inputs` and, unless they are handed out, from `outputs`."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    graph: Graph

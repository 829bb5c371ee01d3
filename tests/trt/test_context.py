"""`torch2engine.trt.context` with an execution context that answers as it is told."""

from __future__ import annotations

from typing import Any

import pytest

from torch2engine.core.errors import BuildError
from torch2engine.trt import bindings
from torch2engine.trt.bindings import TensorRT, check_return_value, find_tensorrt
from torch2engine.trt.context import Context
from torch2engine.trt.memory import ALIGNMENT_BYTES, FREE_MEMORY


@pytest.fixture
def rt() -> TensorRT:
    """The flavour that is installed with the development requirements."""
    return find_tensorrt("tensorrt_rtx")


class FakeExecutionContext:
    """TensorRT's execution context, without shapes.

    Args:
        memory_bytes: what it computes as its working memory.
        rt, lines: the lines that it logs when it refuses to enqueue.
    """

    def __init__(self, rt: TensorRT, memory_bytes: int = 0, lines: tuple[str, ...] = ()) -> None:
        self._rt = rt
        self._memory_bytes = memory_bytes
        self._lines = lines

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return self._memory_bytes

    def execute_async_v3(self, stream: int) -> bool:
        for line in self._lines:
            self._rt.log.record("ERROR", line)
        return False


def context_of(rt: TensorRT, fake: FakeExecutionContext, largest: int = 0) -> Context:
    def largest_memory_bytes(profile: int) -> int:
        return largest + profile

    context = Context(rt, fake, "fp32", (), (), (), largest_memory_bytes)
    context.set_shapes(1, (), 0)
    return context


@pytest.mark.parametrize(
    ("computed", "largest", "expected"),
    [(5000, 9000, 5000), (0, 9000, 9001), (0, 0, ALIGNMENT_BYTES), (16, 9000, ALIGNMENT_BYTES)],
)
def test_context_always_works_in_memory(rt: TensorRT, computed: int, largest: int, expected: int) -> None:
    """A size that TensorRT can't compute is the profile's largest, and memory is set even if none is needed."""
    assert context_of(rt, FakeExecutionContext(rt, computed), largest).memory_bytes() == expected


def test_refused_enqueue_says_what_tensorrt_said(rt: TensorRT) -> None:
    """The lines are quoted, and memory is not named where TensorRT does not name it."""
    lines = ("IExecutionContext::enqueueV3: setDeviceMemory should be called",)
    with pytest.raises(BuildError) as caught:
        context_of(rt, FakeExecutionContext(rt, lines=lines)).enqueue(0)
    assert str(caught.value) == f"enqueue: got False from {rt.title}; expected success\n  {lines[0]}"
    assert (caught.value.log, caught.value.out_of_memory) == (lines, False)


def test_lack_of_memory_is_told_with_what_was_wanted_and_free(rt: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's line says how much was wanted, the driver says how much is free, and the cure fits."""
    monkeypatch.setattr(bindings, "describe_free_memory", lambda: "3 of 143 MiB of GPU memory are free")
    line = "Requested amount of GPU memory (1073741824 bytes) could not be allocated: out of memory"
    with pytest.raises(BuildError) as caught:
        context_of(rt, FakeExecutionContext(rt, lines=(line,))).enqueue(0)
    assert str(caught.value) == (
        f"enqueue: got False from {rt.title} (3 of 143 MiB of GPU memory are free); expected success; "
        f"{FREE_MEMORY}\n  {line}"
    )
    assert caught.value.out_of_memory


def test_warnings_are_quoted_where_there_is_no_error(rt: TensorRT) -> None:
    """TensorRT sometimes gives its reason as a warning."""
    made: Any = None
    mark = rt.log.mark()
    rt.log.record("WARNING", "no kernel for this GPU")
    with pytest.raises(BuildError) as caught:
        check_return_value(made, "execution context", rt, since=mark)
    assert str(caught.value) == (
        f"execution context: got None from {rt.title}; expected success\n  no kernel for this GPU"
    )

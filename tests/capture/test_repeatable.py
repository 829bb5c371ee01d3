"""State that an answer depends on is found and named; what no answer depends on passes with a note."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.models import captured
from torch2engine.capture.call_effects import FirstAnswer
from torch2engine.capture.repeatable import answer_repeatably
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import ExportError

X = torch.linspace(0.1, 1.3, 12).reshape(4, 3)


class Stateful(nn.Module):
    """Runs `step(self, x)` with some state at hand."""

    def __init__(self, step: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("q", torch.zeros(4))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.weight = nn.Parameter(torch.ones(3))
        self.prev: Any = None
        self.count = 0
        self.history: list[Any] = []
        self.recent: deque[Any] = deque(maxlen=3)
        self.cache: dict[str, Any] = {}
        self.array = np.zeros(2)
        self.numbers = np.zeros(1, dtype=np.int64)
        self.loose = [torch.zeros(3)]
        self.norms = [nn.BatchNorm1d(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(self, x)


def queue(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.q = torch.cat((self.q, x.flatten()[:2]))[-4:]
    return x.sum() + self.q * 2


def previous(self: Any, x: torch.Tensor) -> torch.Tensor:
    before = x if self.prev is None else self.prev
    self.prev = x
    return x - before


def slow_average(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.mean.mul_(1 - 1e-5).add_(1e-5 * x.mean())
    return x - self.mean


def average_through_data(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.mean.data.mul_(1 - 1e-5).add_(1e-5 * x.mean())
    return x - self.mean


def late_counter(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return x * 2 if self.count > 50 else x


def late_buffer(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    return torch.where(self.calls > 50, x * 2, x)


def every_hundredth(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return x * 2 if self.count % 100 == 0 else x


def history(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.history.append(x)
    return torch.stack(list(self.history)).mean(0)


def long_history(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.history.append(0)
    return x * 2 if len(self.history) > 50 else x


def remembered(self: Any, x: torch.Tensor) -> torch.Tensor:
    before = self.cache.get("last", x)
    self.cache["last"] = x
    return x + before


def first_input_decides(self: Any, x: torch.Tensor) -> torch.Tensor:
    if self.prev is None:
        self.prev = x.abs().max()
    return x / self.prev


def array_in_place(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.array += 1
    return x + float(self.array[0])


def counter_in_an_array(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.numbers[0] += 1
    return x if self.numbers[0] < 90 else x + 1


def unregistered(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.loose[0].data.add_(1e-6)
    return x + self.loose[0]


STATES: dict[str, tuple[Callable[[Any, torch.Tensor], torch.Tensor], str]] = {
    "queue": (queue, "q"),
    "previous": (previous, "prev"),
    "slow average": (slow_average, "mean"),
    "average through data": (average_through_data, "mean"),
    "late counter": (late_counter, "count"),
    "late counter in a buffer": (late_buffer, "calls"),
    "every hundredth": (every_hundredth, "count"),
    "history": (history, "history"),
    "long history": (long_history, "history"),
    "dict": (remembered, "cache"),
    "first input decides": (first_input_decides, "prev"),
    "numpy array": (array_in_place, "array"),
    "late counter in an array": (counter_in_an_array, "numbers"),
    "unregistered tensor": (unregistered, "loose"),
}


@pytest.mark.parametrize(("step", "name"), STATES.values(), ids=STATES)
def test_state_that_matters_is_refused_by_name(step: Callable[[Any, torch.Tensor], torch.Tensor], name: str) -> None:
    """A call's answer may not depend on earlier calls, however late or little; and the state is put back."""
    model = Stateful(step)
    with pytest.raises(ExportError) as error:
        captured(model, X)
    assert f"a call changes '{name}" in str(error.value)
    assert error.value.fix == "pass the state as an input and return it, or take randomness out of inference"
    assert (model.prev, model.count, model.history, model.cache) == (None, 0, [], {})
    assert not any(
        np.any(np.asarray(value))
        for value in (model.q, model.mean, model.calls, model.loose[0], model.array, model.numbers)
    )


def test_state_as_input_and_output_is_deployable() -> None:
    """The fix that the error offers works."""

    class Passed(nn.Module):
        def forward(self, x: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            q = torch.cat((q, x.flatten()[:2]))[-4:]
            return x.sum() + q * 2, q

    assert captured(Passed(), (X, torch.zeros(4))).notes == ()


def count_calls(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    self.count += 1
    return x * 2


def keep_last(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.prev = x * 3
    self.recent.append(x)
    return self.prev + 1


def fill_table(self: Any, x: torch.Tensor) -> torch.Tensor:
    key = f"table {x.shape[0]}"
    if key not in self.cache:
        self.cache[key] = torch.arange(x.shape[0], dtype=x.dtype)[:, None]
    return x + self.cache[key]


@pytest.mark.parametrize(
    ("step", "names"),
    [(count_calls, "'calls', 'count'"), (keep_last, "'prev', 'recent'"), (fill_table, "'cache'")],
    ids=["counters", "last values", "position table"],
)
def test_state_that_no_answer_depends_on_is_noted(
    step: Callable[[Any, torch.Tensor], torch.Tensor], names: str
) -> None:
    """Counters, kept intermediate results and tables pass, and are put back."""
    model = Stateful(step)
    notes = captured(model, X).notes
    assert notes == (f"a call changes {names}, on which no answer was seen to depend; the engine leaves it alone",)
    assert (model.calls, model.count, model.prev, list(model.recent), model.cache) == (0, 0, None, [], {})


def test_stateless_model_has_no_note() -> None:
    """Nothing is said of a model that keeps nothing."""
    assert captured(Stateful(lambda self, x: x * self.weight), X).notes == ()


# on a GPU, where an index out of range is no exception


class Paged(nn.Module):
    """Reads a table at the input's places, or at one that a counter names; remembers which indices reached it."""

    seen: ClassVar[list[int]] = []

    def __init__(self, by_counter: bool = False, copies: bool = True) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.by_counter = by_counter
        self.is_live = True
        self.copies = copies

    def __deepcopy__(self, memo: dict[int, Any]) -> Paged:
        if not self.copies:
            raise RuntimeError("there is one of me")
        other = Paged(self.by_counter)
        other.table, other.position, other.is_live = memo[id(self.table)], memo[id(self.position)], False
        return other

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        if self.by_counter:
            self.position += 1
            index = self.position.reshape(1)
        if self.is_live:
            self.seen.extend(index.long().tolist())
        return self.table[index.long()]


def answer_on_gpu(model: Paged, index: torch.Tensor) -> Any:
    """Answer as if the model's table were on a GPU."""
    place = model.table.data_ptr()
    reference = captured(Stateful(lambda self, x: x), index).reference.of(model)
    Paged.seen.clear()
    with undisturbed(model):
        return answer_repeatably(
            model,
            [index],
            lambda: FirstAnswer(reference, reference([index])),
            on_gpu=lambda tensor: tensor.data_ptr() == place,
        )


def test_other_inputs_run_on_the_cpu_first() -> None:
    """Other floats may be indices out of range, as a hundred times 0.16 is: these stay on the CPU."""
    assert answer_on_gpu(Paged(), torch.tensor([6.0, 2.0])).trial is not None
    assert set(Paged.seen) == {6, 2, 3, 1}
    assert answer_on_gpu(Spread(), torch.tensor([0.07])).trial is not None
    assert set(Paged.seen) == {7}


class Spread(Paged):
    """Reads at a hundred times its input."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Spread:
        other = Spread()
        other.table, other.is_live = memo[id(self.table)], False
        return other

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return super().forward((index * 100).round())


def test_other_counters_run_on_the_cpu_first() -> None:
    """A counter of a million is out of the table's range: the model is refused, and the GPU never saw it."""
    with pytest.raises(ExportError) as error:
        answer_on_gpu(Paged(by_counter=True), torch.tensor([0]))
    assert error.value.got == "answers that depend on values that every call changes (a call changes 'position')"
    assert max(Paged.seen) < 8


def test_state_that_cannot_be_tried_on_the_cpu_is_refused() -> None:
    """Whether an answer depends on a counter is unknown then, and asking the GPU could end its context."""
    with pytest.raises(ExportError) as error:
        answer_on_gpu(Paged(by_counter=True, copies=False), torch.tensor([0]))
    assert str(error.value) == (
        "model: got a call that changes 'position', on which no answer can be tried: RuntimeError: there is one "
        "of me; expected a model that can be tried on the CPU, where an index out of range is an "
        "exception; deploy it from the "
        "CPU, or don't change 'position' in inference"
    )
    assert max(Paged.seen) < 8


def test_model_that_cannot_be_copied_answers_its_sample_alone() -> None:
    """Without a trial no invented input reaches it."""
    assert answer_on_gpu(Paged(copies=False), torch.tensor([6, 2])).trial is not None
    assert set(Paged.seen) == {6, 2}

"""The trial on the CPU: a copy of the whole model, which leaves the model and the GPU alone."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.models import captured
from torch2engine.capture import host_trial
from torch2engine.capture.host_trial import HostTrial, copy_to_cpu, find_unsafe_inputs, trial_if_needed
from torch2engine.core.errors import ExportError

ROWS = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)  # float64 stands for a tensor on a GPU


def is_float64(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float64


class Lookup(nn.Module):
    """Reads rows of a table, and counts its calls by the object that was called."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 3)
        self.calls = 0
        self.lock = threading.Lock()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.calls += 1
        return self.table(ids)


class Calling(nn.Module):
    """Calls a function with itself."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def trial_of(model: nn.Module, sample: torch.Tensor, **options: Any) -> HostTrial:
    call = captured(model, sample)
    return HostTrial(call.reference, call.sample, **options)


def test_trial_answers_like_the_model_and_leaves_it_alone() -> None:
    """The copy has the model's weights; the model itself is not called."""
    model = Lookup()
    ids = torch.tensor([1, 3])
    trial = trial_of(model, ids)
    calls = model.calls
    assert trial.obstacle() == ""
    assert torch.equal(trial.run([torch.tensor([2, 0])]).leaves[0], model.table.weight[[2, 0]])
    assert model.calls == calls


def test_trial_raises_what_would_end_a_cuda_context() -> None:
    """An index out of range is the model's own error at the user's line."""
    trial = trial_of(Lookup(), torch.tensor([1, 3]))
    assert trial.obstacle() == ""
    with pytest.raises(ExportError) as error:
        trial.run([torch.tensor([4, 0])])
    assert "IndexError: index out of range" in error.value.got


def test_refreshed_trial_copies_the_model_as_it_is_now() -> None:
    """State that has changed since the last copy counts."""
    model = Lookup()
    trial = trial_of(model, torch.tensor([1]))
    trial.run([torch.tensor([1])])
    with torch.no_grad():
        model.table.weight.fill_(7)
    trial.refresh()
    assert trial.run([torch.tensor([1])]).leaves[0].tolist() == [[7.0] * 3]


def test_copy_shares_no_value_with_the_model() -> None:
    """Parameters, buffers, plain tensors, arrays and generators are copied; what nobody can copy is shared."""
    loose, array, lock = torch.ones(3), np.ones(3), threading.Lock()
    model = Calling(
        lambda self, x: x, loose=[loose], array=array, lock=lock, random=random.Random(3), generator=torch.Generator()
    )
    model.register_buffer("buffer", torch.ones(3))
    model.weight = nn.Parameter(torch.ones(3))
    model.tied = model.weight
    model.bound = functools.partial(model.forward, torch.zeros(1))
    copied: Any = copy_to_cpu(model)
    for own, other in ((copied.loose[0], loose), (copied.array, array), (copied.buffer, model.buffer)):
        assert own is not other
        assert own.tolist() == other.tolist()
    assert copied.tied is copied.weight
    assert copied.weight is not model.weight
    assert copied.lock is lock
    assert copied.random is not model.random
    assert copied.generator is not model.generator
    assert copied.bound.func.__self__ is copied


def test_results_of_autograd_and_recurrent_weights_are_copied() -> None:
    """Tensors that copy.deepcopy refuses, and weights that a module holds twice."""
    model = Calling(lambda self, x: self.gru(x)[0] + self.derived, gru=nn.GRU(3, 4))
    model.derived = model.gru.weight_ih_l0.sum() * 2
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.allclose(copy_to_cpu(model)(x), model(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x + torch.arange(3, device="cuda"),
        lambda self, x: x + torch.arange(3, device=0),
        lambda self, x: x + torch.arange(3, device=self.where),
        lambda self, x: x + torch.arange(3).to(self.name),
        lambda self, x: x.cuda() + torch.ones(3).cuda(non_blocking=True),
        lambda self, x: x.to("cuda:1") + torch.ones(3).to(torch.device("cuda", 0)),
        lambda self, x: x.to(0) + x.new_zeros(3, device="cuda"),
        lambda self, x: x + torch.arange(3).to(device="cuda", dtype=torch.float32),
        lambda self, x: x if x.device.type == self.where.type else None,
        lambda self, x: x if self.name.startswith(x.device.type) else None,
    ],
    ids=[
        *("constant", "number", "attribute", "name", "cuda()", "to", "to number", "keyword"),
        *("compared attribute", "compared name"),
    ],
)
def test_devices_that_forward_names_are_the_cpu_in_a_trial(function: Callable[[Any, torch.Tensor], Any]) -> None:
    """A model with device names of its own can be tried all the same."""
    model = Calling(function, where=torch.device("cuda"), name="cuda:0")
    trial = trial_of(Calling(lambda self, x: x), torch.ones(3))
    trial._copy = trial._reference.of(copy_to_cpu(model))
    assert trial.run([torch.ones(3)]).leaves[0].device.type == "cpu"
    assert (model.where, model.name) == (torch.device("cuda"), "cuda:0")


def test_trial_ignores_the_default_device() -> None:
    """Tensors that forward makes without a device are on the CPU, too."""
    trial = trial_of(Calling(lambda self, x: x + torch.arange(3)), torch.ones(3))
    with torch.device("meta"):
        assert trial.obstacle() == ""
        assert trial.run([torch.ones(3, device="cpu")]).leaves[0].device.type == "cpu"


def test_operator_on_a_tensor_of_a_gpu_is_an_obstacle() -> None:
    """A global table on a GPU would be read there, so the trial proves nothing and runs nothing."""
    trial = trial_of(Calling(lambda self, ids: ROWS[ids]), torch.tensor([1, 3]), on_gpu=is_float64)
    assert trial.obstacle() == (
        "a failure of PyTorch itself on inputs of shape [2]: RuntimeError: aten.index.Tensor reads a "
        "tensor on a GPU that is "
        "no part of the model"
    )


def test_model_that_refuses_to_be_copied_is_an_obstacle() -> None:
    """Its own reason is told."""

    class Single(Lookup):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is one of me")

    assert trial_of(Single(), torch.tensor([1])).obstacle() == "RuntimeError: there is one of me"


def test_model_that_the_host_has_no_memory_for_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is not begun, since the system may end a process that takes too much."""
    monkeypatch.setattr(host_trial, "_free_host_bytes", lambda: 3 << 20)
    trial = trial_of(Lookup(rows=1 << 18), torch.tensor([1]))
    assert trial.obstacle() == "MemoryError: its copy takes 3 MiB of the host's 3 MiB that are free"


def test_free_memory_of_the_host_is_known() -> None:
    """There is some, and no more than a machine has."""
    assert 1 << 20 < host_trial._free_host_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("model", "sample", "needed"),
    [
        (Calling(lambda self, ids: ROWS[ids]), torch.tensor([1]), True),
        (Calling(lambda self, x: ROWS * x), torch.ones(3), False),
        (Calling(lambda self, ids: torch.ones(4)[ids]), torch.tensor([1]), False),
    ],
    ids=["index on GPU", "product on GPU", "index on CPU"],
)
def test_trial_is_needed_for_operators_that_assert_on_a_gpu(
    model: nn.Module, sample: torch.Tensor, needed: bool
) -> None:
    """A model of convolutions is not run on the CPU at its largest batch for nothing."""
    reference = captured(model, sample).reference
    trial = trial_if_needed(reference, [sample], reference([sample]).leaves, on_gpu=is_float64)
    assert (trial is not None) is needed


def test_inputs_on_a_gpu_reach_the_copy() -> None:
    """They come to the CPU before what runs on a GPU is refused."""
    sample = torch.tensor([1, 3])

    def is_sample(tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == sample.untyped_storage().data_ptr()

    trial = HostTrial(captured(Lookup(), sample).reference, [sample], on_gpu=is_sample)
    assert trial.obstacle() == ""


def test_made_up_inputs_that_fail_on_the_cpu_are_unsafe() -> None:
    """Where no input was given by the user, each is tried; those that the model refuses are named with the reason."""
    model = Lookup().double()  # on a GPU, as float64 stands for it
    reference = captured(Lookup(), torch.tensor([1])).reference.of(model)
    cases = {"small": [torch.tensor([0])], "large": [torch.tensor([0, 3, 4])], "other": [torch.tensor([1, 2])]}

    def on_gpu(tensor: torch.Tensor) -> bool:
        return tensor is model.table.weight

    unsafe = find_unsafe_inputs(reference, cases, on_gpu)
    assert list(unsafe) == ["large"]
    assert "IndexError" in unsafe["large"]
    assert find_unsafe_inputs(reference, {"one": [torch.tensor([9])]}, on_gpu).keys() == {"one"}
    assert find_unsafe_inputs(reference, cases) == {}


def test_made_up_inputs_of_a_model_that_never_asserts_are_safe() -> None:
    """The smallest alone runs on the CPU, to see the operators."""
    sizes: list[int] = []

    def double(self: Any, x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x * self.weight

    model = Calling(double)
    model.weight = nn.Parameter(torch.ones(1))
    reference = captured(Calling(lambda self, x: x), torch.ones(2)).reference.of(model)
    cases = {"large": [torch.ones(9)], "small": [torch.ones(2)]}
    assert find_unsafe_inputs(reference, cases, lambda tensor: tensor is model.weight) == {}
    assert set(sizes) == {2}


def test_trial_takes_other_weights() -> None:
    """Weights that were moved by rounding are tried like inputs, and the copy keeps its own."""
    model = Lookup()
    trial = trial_of(model, torch.tensor([1]))
    moved = {"table.weight": torch.full((4, 3), 5.0)}
    assert trial.run([torch.tensor([1])], moved).leaves[0].tolist() == [[5.0] * 3]
    assert torch.equal(trial.run([torch.tensor([1])]).leaves[0], model.table.weight[[1]])

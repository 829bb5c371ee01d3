"""The model afterwards is the model before, bit for bit, whatever ran in between and however it ended."""

from __future__ import annotations

import collections
import copy
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.float32_switches import SWITCHES
from tests.support.models import BATCH, captured, exported
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.core.errors import (
    DynamicAxisError,
    ExportError,
    InputError,
    Torch2EngineError,
    UnsupportedOperatorError,
)
from torch2engine.core.threads import is_idle_worker
from torch2engine.exporter.export_onnx import export_onnx

X = torch.randn(4, 3)


class Busy(nn.Module):
    """Leaves a trace of every kind whenever it runs: buffers, attributes, containers, random numbers, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("moved", torch.zeros(2))
        self.seen: list[Any] = []
        self.cache: dict[str, Any] = {"kept": 1}
        self.nested = {"deep": [collections.deque([1], maxlen=3), {2}]}
        self.note = "before"
        self.shape: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.moved = self.moved + 1
        self.seen.append(x)
        self.cache["last"] = x
        self.cache["kept"] = 2
        self.nested["deep"][0].append(x)
        self.nested["deep"][1].add("ran")
        self.note, self.shape, self.fresh = "after", x.shape, x
        random.random()
        np.random.rand()
        torch.rand(3)
        return self.last(torch.relu(self.frozen(self.first(x))))


class Refusing(Busy):
    """Works on the sample and fails at the largest size, which only the cases see."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if not torch.compiler.is_exporting() and x.shape[0] == 8:
            raise RuntimeError("too large")
        return y


class Pinned(Busy):
    """Holds for one batch size only, which torch.export finds out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.ones(4, 2)


class Unsupported(Busy):
    """Has no ONNX form, which the exporter finds out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.geqrf(super().forward(x))[0]


class Random(Busy):
    """Answers in two ways, which capture finds out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(4, 2)


def trained(kind: type[Busy] = Busy) -> tuple[Busy, torch.optim.Optimizer]:
    """A model in the middle of its training: two steps taken, gradients of a third, one layer frozen."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    model = kind()
    model.train()
    model.frozen.eval()
    model.frozen.weight.requires_grad_(False)
    model.last.register_forward_hook(lambda module, args, output: output * 1.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        Busy.forward(model, torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that can be seen, with tensors by identity, version and value."""
    seen: dict[str, Any] = {}
    for path, module in model.named_modules():
        seen[f"{path} training"] = module.training
        for name, value in module.__dict__.items():
            if isinstance(value, (dict, list)):
                seen[f"{path}.{name} itself"] = id(value)
                value = copy.copy(value)
            seen[f"{path}.{name}"] = repr(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        seen[name] = (id(tensor), tensor._version, tensor.detach().clone(), tensor.requires_grad, id(tensor.grad))
        seen[f"{name}.grad"] = None if tensor.grad is None else (tensor.grad._version, tensor.grad.clone())
    return seen


def surroundings() -> dict[str, Any]:
    """Everything of the process that deploy might turn."""
    backends = torch.backends
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "torch": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "fast path": backends.mha.get_fastpath_enabled(),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "float32": [(name, read()) for name, read in SWITCHES.items()],
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Equal down to the last bit."""
    assert before.keys() == after.keys()
    for key, value in before.items():
        left, right = (v if isinstance(v, tuple) else (v,) for v in (value, after[key]))
        assert len(left) == len(right), key
        for one, other in zip(left, right, strict=True):
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, f"{key}: {one} became {other}"


def run_all(model: nn.Module) -> None:
    """Capture, export and cases."""
    with undisturbed(model):
        settled = capture_call(model, X, {"x": BATCH})
        export_onnx(settled)
        make_parity_cases(settled)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Busy, None),
        (Random, ExportError),
        (Pinned, DynamicAxisError),
        (Unsupported, UnsupportedOperatorError),
        (Refusing, DynamicAxisError),
    ],
    ids=["nothing fails", "capture fails", "torch.export fails", "torch.onnx fails", "cases fail"],
)
def test_model_in_training_is_unchanged_bit_for_bit(kind: type[Busy], error: type[Torch2EngineError] | None) -> None:
    """Flags, parameters, buffers, gradients, attributes, hooks and the process around them stay as they were."""
    model, _ = trained(kind)
    before, around = state(model), surroundings()
    with pytest.raises(error) if error else nullcontext():
        run_all(model)
    assert_same(before, state(model))
    assert_same(around, surroundings())
    assert model.training
    assert not model.frozen.training
    assert model.note == "after"
    assert len(model.last._forward_hooks) == 1


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    """Further steps, with dropout and momentum, equal an undisturbed twin's bit for bit."""
    models = []
    for disturb in (True, False):
        model, optimizer = trained()
        if disturb:
            run_all(model)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
        models.append((model.state_dict(), optimizer.state_dict()["state"], torch.rand(1), random.random()))
    (weights, momenta, *drawn), (other_weights, other_momenta, *others_drawn) = models
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)
    for index, slots in momenta.items():
        assert all(torch.equal(slots[slot], other_momenta[index][slot]) for slot in slots)
    assert drawn == others_drawn


def test_backward_pass_that_is_pending_still_runs() -> None:
    """A graph that holds a buffer which forward moves is not invalidated by a deploy before its backward."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.scale.mul_(1.0)
            return x * self.scale

    model, x = Scaled(), X.clone().requires_grad_()
    loss = model(x).sum()
    run_all(model)
    loss.backward()
    assert torch.equal(x.grad, torch.ones(4, 3))
    assert model.calls == 1


def test_deploying_changes_no_answer() -> None:
    """The model answers before and after alike, in training mode with its random numbers."""
    answers = []
    for disturb in (True, False):
        model, _ = trained()
        if disturb:
            run_all(model)
        answers.append(model(X))
    assert torch.equal(answers[0], answers[1])


# what the body sees


def test_body_runs_in_inference_mode_of_every_submodule() -> None:
    """Dropout and batch norm are off inside, without calling the model's own eval()."""

    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            if not mode:
                raise AssertionError("eval() has side effects here")
            return super().train(mode)

    model = nn.Sequential(Merging(3, 3), nn.Dropout())
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert all(module.training for module in model.modules())


def test_deploy_works_in_inference_mode() -> None:
    """A caller under torch.inference_mode() gets his artifact, and stays in that mode."""
    model = nn.Linear(3, 2)
    with torch.inference_mode():
        artifact, examples = exported(model, torch.randn(4, 3), {"input": BATCH})
        assert torch.is_inference_mode_enabled()
    assert artifact.signature.inputs[0].shape == ("batch", 3)
    assert [case.name for case in examples] == ["min", "opt", "max", "random"]


# what can't be undone


@pytest.mark.parametrize("seen", [True, False], ids=["in the answer", "silently"])
def test_forward_that_writes_into_parameters_is_reported(seen: bool) -> None:
    """Which parameters were written to is said, also where another error came of it first."""

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.w.add_(1.0)
            return x * (self.w if seen else self.v)

    with pytest.raises(ExportError) as error:
        run_all(Drifting())
    assert str(error.value) == (
        "model: got a forward that writes into its own parameters (w), which are put back; "
        "expected a forward that only reads them; move such updates out of forward"
    )


def test_buffer_that_is_written_behind_the_counters_back_is_put_back() -> None:
    """A write through .data, which no version counts, is undone too."""

    class Sneaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.tensor([0.0, float("nan")]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.data.add_(1)
            return x * 2

    model = Sneaky()
    with undisturbed(model):
        model(X)
    assert model.calls[0] == 0
    assert model.calls._version == 0


class Counts:
    """A plain object with a tensor and a number."""

    def __init__(self) -> None:
        self.tensor, self.number = torch.zeros(2), 0


class Reaching(nn.Module):
    """Changes what no register of the module names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("resized", torch.arange(4.0))
        self.plain = [nn.BatchNorm1d(3)]
        self.loose = {"deep": (torch.zeros(3),)}
        self.array = np.zeros(3)
        self.counts = Counts()
        self.generators = [torch.Generator(), random.Random(1), np.random.RandomState(1), np.random.default_rng(1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.resized.resize_(9).fill_(2)
        self.loose["deep"][0].data.add_(1)
        self.array += 1
        self.counts.tensor.add_(1)
        self.counts.number += 1
        ours, python, numpy, newer = self.generators
        torch.rand(2, generator=ours), python.random(), numpy.rand(), newer.random()
        return self.plain[0](x)


def reached(model: Reaching) -> list[Any]:
    """All that `Reaching` changes."""
    ours, python, numpy, newer = model.generators
    norm = model.plain[0]
    tensors = (model.resized, norm.running_mean, norm.running_var, model.loose["deep"][0], model.counts.tensor)
    return [
        *(tensor.tolist() for tensor in tensors),
        *(norm.num_batches_tracked.item(), model.array.tolist(), model.counts.number),
        *(ours.get_state().tolist(), python.getstate(), repr(numpy.get_state()), newer.bit_generator.state),
    ]


def test_what_no_register_names_is_put_back() -> None:
    """Tensors, arrays and generators are found in lists, tuples, plain objects and modules that are not registered."""
    model = Reaching()
    before = reached(model)
    with undisturbed(model):
        model(X)
        assert reached(model) != before
    assert reached(model) == before


@pytest.mark.parametrize("fill", ["other objects", "one more", "one less"])
def test_lists_get_their_own_objects_back(fill: str) -> None:
    """Also where a call has replaced every object, and the length is the same."""

    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = [object(), object()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            count = {"other objects": 2, "one more": 3, "one less": 1}[fill]
            self.seen[:] = [object() for _ in range(count)]
            return x

    model = Listing()
    before = model.seen
    objects = list(before)
    with undisturbed(model):
        model(X)
        assert model.seen != objects
    assert model.seen is before
    assert before == objects


def test_forward_that_adds_to_gradients_is_reported() -> None:
    """Gradients that were accumulated into can't be put back, so they are named."""

    class Accumulating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                (x * self.w).sum().backward()
            return x * self.w

    model = Accumulating()
    model(X)
    with pytest.raises(ExportError, match="a forward that adds to the gradients of w, which are put back"):
        captured(model, X)


def test_body_error_comes_through() -> None:
    """An error of the body is not replaced, and not wrapped."""
    model, _ = trained()
    before = state(model)

    def body(problem: BaseException) -> None:
        with undisturbed(model):
            model(X)
            raise problem

    with pytest.raises(KeyboardInterrupt):
        body(KeyboardInterrupt())
    assert_same(before, state(model))
    with pytest.raises(InputError) as error:
        body(InputError("x", got="mine"))
    assert str(error.value) == "x: got mine"


def test_no_other_thread_draws_a_number_twice() -> None:
    """Generators that another thread draws from meanwhile are not set back under it."""
    inside, drawn, after = threading.Event(), threading.Event(), threading.Event()
    numbers: list[tuple[float, float, float]] = []

    def draw() -> None:
        for begin, end in ((inside, drawn), (after, drawn)):
            assert begin.wait(600)
            numbers.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            end.set()

    thread = threading.Thread(target=draw)
    thread.start()
    with undisturbed(trained()[0]):
        inside.set()
        assert drawn.wait(600)
    after.set()
    thread.join()
    first, second = numbers
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("module", "is_helper"),
    [
        ("tqdm._monitor", True),
        ("rich.live", True),
        ("multiprocessing.resource_sharer", True),
        ("torch.utils.data._utils.pin_memory", True),
        ("multiprocessing.pool", False),
        ("training", False),
    ],
)
def test_helper_thread_does_not_keep_the_generators_from_being_put_back(module: str, is_helper: bool) -> None:
    """Progress bars and data loaders have threads of their own, beside which the caller's numbers stay as they were."""
    ends = threading.Event()

    def work() -> None:
        ends.wait(600)

    work.__module__ = module
    thread = threading.Thread(target=work)
    model = trained()[0]
    before = torch.get_rng_state()
    thread.start()
    try:
        with undisturbed(model):
            torch.rand(3)
    finally:
        ends.set()
        thread.join()
    assert torch.equal(torch.get_rng_state(), before) is is_helper


@pytest.mark.parametrize("is_at_work", [False, True])
def test_worker_of_a_pool_counts_only_while_it_works(is_at_work: bool) -> None:
    """torch.compile leaves a pool behind, whose idle threads draw no numbers."""
    ends = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        if is_at_work:
            pool.submit(ends.wait)
        while is_idle_worker(next(iter(pool._threads))) is is_at_work:
            time.sleep(0.001)  # until it has come back to the pool's loop, or left it
        model = nn.Linear(2, 2)
        before = torch.get_rng_state()
        with undisturbed(model):
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), before) is not is_at_work
        ends.set()


class Watched(nn.Module):
    """Records in which mode its forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.modes: list[tuple[int, bool, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.append((threading.get_ident(), self.training, self.layer.training))
        return self.layer(x)


def test_other_thread_that_trains_the_model_never_runs_in_inference_mode() -> None:
    """Its call waits until the flags are set again, and then runs as if nothing had been."""
    model, arrived = Watched(), threading.Event()
    caller = threading.get_ident()
    model.register_forward_pre_hook(lambda module, args: arrived.set() if threading.get_ident() != caller else None)
    modes = model.modes
    thread = threading.Thread(target=model, args=(X,))
    with undisturbed(model):
        thread.start()
        for _ in range(2000):  # time in which the other thread would run, if it did not wait
            model.layer(X)
    thread.join()
    assert arrived.is_set()
    assert modes == [(thread.ident, True, True)]
    assert len(model._forward_pre_hooks) == 1


def test_undisturbed_can_be_nested_and_shared() -> None:
    """A second one inside, and those of other threads, leave all but random numbers as the first one found it."""
    models = [trained()[0] for _ in range(3)]
    around, before = surroundings(), [state(model) for model in models]

    def work(model: nn.Module) -> None:
        for _ in range(5):
            with undisturbed(model), undisturbed(model):
                model(X)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, was in zip(models, before, strict=True):
        assert_same(was, state(model))
    after = surroundings()
    for generator in ("python", "numpy", "torch"):
        del around[generator], after[generator]
    assert_same(around, after)


def test_arithmetic_stays_the_users_where_calls_are_timed() -> None:
    """TF32 and the attention kernels are as they were; autocast and grad are off all the same."""
    model = nn.Linear(4, 4).train()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu"), undisturbed(model, is_exact=False):
            assert torch.get_float32_matmul_precision() == "high"
            assert torch.backends.cuda.flash_sdp_enabled()
            assert not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or model.training)
        with undisturbed(model):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.flash_sdp_enabled()
    finally:
        torch.set_float32_matmul_precision(before)
    assert model.training

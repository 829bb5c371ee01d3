"""Sizes outside every profile: split where that is proved right, answered by PyTorch, or refused with the reason."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import helper
from torch import nn

import torch2engine as t2e
from tests.support import deploy_models, onnx_models
from tests.support.deploy_models import BATCH, Mlp, mlp, sample, seeded
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import RuntimeConfig
from torch2engine.core.errors import DtypeError, InputError, ParityError, ShapeError
from torch2engine.core.spec import Axis, Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.deployed.backend import WeightsGuard
from torch2engine.deployed.module_access import prove_split_axes
from torch2engine.deployed.onnxruntime.ort_backend import OnnxRuntimeBackend
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.deployed.split import Unsplittable, halves

SPLIT = RuntimeConfig(out_of_range="split")
ABOVE = "input 'x': got batch = 20; expected 1..8"
WIDER = "redeploy with Axis('batch', 1, 4, 20)"


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


def splitting(model: nn.Module, inputs: Any, axes: Any, profiles: Any = None) -> ORTModule:
    """A module that splits and has proved nothing yet."""
    return ORTModule(t2e.export(model.eval(), inputs, axes, profiles=profiles), runtime_config=SPLIT)


def refusal(kind: type[t2e.Torch2EngineError], call: Callable[..., Any], *args: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        call(*args)
    assert type(caught.value) is kind
    return str(caught.value)


def fresh(config: RuntimeConfig = SPLIT, reference: nn.Module | None = None) -> ORTModule:
    """`mlp` anew, under a policy."""
    return ORTModule(mlp()[1]._artifact, runtime_config=config, reference=reference)


# Split


class Several(nn.Module):
    """Nested results that have the batch in different dimensions, one of them an input passed through."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> dict[str, Any]:
        hidden = self.linear(x) @ table
        return {"logits": hidden, "states": [hidden.t(), (x > 0, None)], "best": hidden.argmax(1), "x": x}


class Turned(nn.Module):
    """(5, batch, 6) -> (5, batch) and (batch, 5): the batch is not the first dimension."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.sum(2), x.amax(2).t().contiguous()


class Reader(nn.Module):
    """(batch, tokens) -> (batch, tokens, 4), each token looking at all of its row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        return (hidden @ hidden.transpose(1, 2)).softmax(-1) @ hidden


def words(batch: int, tokens: int) -> torch.Tensor:
    """Token ids."""
    return torch.randint(0, 50, (batch, tokens), generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("size", [9, 16, 17, 23, 64])
def test_split_answers_like_the_model(size: int) -> None:
    """A batch of any size above the range is answered as the model would."""
    found = fresh()(sample(size, 6))
    close(found, mlp()[0](sample(size, 6)))
    assert found.is_contiguous()


def test_split_puts_nested_results_together() -> None:
    """Every output is joined along its own dimension; an input without the axis goes whole to every chunk."""
    model = seeded(Several)
    module = splitting(model, (sample(4, 6), sample(3, 5)), BATCH)
    x, table = sample(21, 6), sample(3, 5)
    found, expected = module(x, table), model(x, table)
    assert list(found) == list(expected)
    assert found["states"][1][1] is None
    close(found["logits"], expected["logits"])
    close(found["states"][0], expected["states"][0])
    for left, right in (
        (found["states"][1][0], x > 0),
        (found["best"], expected["best"]),
        (found["x"], x),
    ):
        assert torch.equal(left, right)
    found["x"].zero_()
    assert x.any()


def test_split_cuts_any_dimension() -> None:
    """The axis may be elsewhere than in front, and in different places of inputs and outputs."""
    module = splitting(Turned(), sample(5, 4, 6), {"x": {1: t2e.Axis("batch", 1, 4, 8)}})
    for size in (9, 30):
        for left, right in zip(module(sample(5, size, 6)), Turned()(sample(5, size, 6)), strict=True):
            close(left, right)


def test_split_cuts_the_axis_that_is_too_large() -> None:
    """With two axes, the one that is too large is cut where its entries are independent, and refused where not."""
    model = seeded(Reader)
    axes = {"ids": {0: t2e.Axis("batch", 1, 2, 4), 1: t2e.Axis("tokens", 2, 4, 8)}}
    module = splitting(model, words(2, 4), axes)
    close(module(words(11, 7)), model(words(11, 7)))
    text = refusal(ShapeError, module, words(3, 20))
    assert "(it can't be split: its entries may influence each other: MatMul (at test_out_of_range.py:" in text
    assert refusal(ShapeError, module, words(5, 9)) == (
        "input 'ids': got batch = 5; expected 1..4 (it can't be split: axes 'batch' and 'tokens' "
        "are both outside, and only one can be split); redeploy with Axis('batch', 1, 2, 5)"
    )


def chunks_of(module: ORTModule, monkeypatch: pytest.MonkeyPatch, dim: int = 0) -> list[int]:
    """The sizes that the module is asked for from now on."""
    sizes: list[int] = []
    real = OnnxRuntimeBackend.run

    def spy(self: OnnxRuntimeBackend, leaves: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        sizes.append(leaves[0].shape[dim])
        return real(self, leaves, 0)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", spy)
    return sizes


def test_split_proves_once_and_cuts_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call asks for a whole and two chunks, forwards and backwards; later ones for their chunks alone."""
    module = fresh()
    sizes = chunks_of(module, monkeypatch)
    for size, expected in ((9, [8, 5, 3, 8, 5, 3, 5, 4]), (16, [8, 8]), (17, [6, 6, 5]), (8, [8])):
        sizes.clear()
        module(sample(size, 6))
        assert sizes == expected


def test_split_keeps_to_multiples_and_to_the_profile_of_the_largest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are multiples of multiple_of, and as large as a profile that holds the other axes allows."""
    model = deploy_models.Pair()
    module = ORTModule(deploy_models.pair()._artifact, runtime_config=SPLIT)
    sizes = chunks_of(module, monkeypatch)
    for size, expected in (
        (36, [32, 16, 16, 32, 16, 16, 20, 16]),
        (64, [32, 32]),
        (100, [28, 24, 24, 24]),
        (12, [8, 4]),
    ):
        sizes.clear()
        close(module(sample(size, 3), sample(size, 3) + 1), model(sample(size, 3), sample(size, 3) + 1))
        assert sizes == expected
    assert refusal(ShapeError, module, sample(38, 3), sample(38, 3)).endswith("pad axis 'batch' to a multiple of 4")


def test_split_is_proved_by_sizes_that_have_a_profile_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of one size allows no sums, but the wide one around it does."""
    profiles = [{"batch": (8, 8, 8)}, {"batch": (1, 8, 8)}]
    model = deploy_models.Pair()
    axes = {name: {0: "batch"} for name in ("a", "b")}
    module = splitting(model, (sample(4, 4), sample(4, 4)), axes, profiles)
    assert prove_split_axes(module, [(sample(8, 4), sample(8, 4))]) == (
        "axis 'batch' may be split: 8 entries answer like 5 + 3",
    )
    sizes = chunks_of(module, monkeypatch)
    x = sample(19, 4)
    close(module(x, x), model(x, x))
    assert sizes == [7, 6, 6]


@pytest.mark.parametrize("turned", [False, True])
def test_split_is_proved_along_the_axis_that_is_split(turned: bool) -> None:
    """Of the profiles that hold a call the one with the most sizes on that axis counts; calls outside are refused."""
    axes = {name: {0: "batch", 1: "width"} for name in ("a", "b")}
    profiles = [{"batch": (8, 8, 8), "width": (1, 4, 1000)}, {"batch": (1, 8, 8), "width": (4, 4, 4)}]
    module = splitting(deploy_models.Pair(), (sample(8, 4), sample(8, 4)), axes, profiles[::-1] if turned else profiles)
    notes = prove_split_axes(module, [(sample(8, 4), sample(8, 4))])
    assert "axis 'batch' may be split: 8 entries answer like 5 + 3" in notes
    outside = [(sample(9, 4), sample(9, 4))]
    assert "got batch = 9; expected" in refusal(ShapeError, prove_split_axes, module, outside)


def test_split_finds_the_profile_that_holds_the_other_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that only no profile allows together are cut to the one that holds the rest."""
    axes = {name: {0: "batch", 1: "width"} for name in ("a", "b")}
    profiles = [{"batch": (1, 2, 4), "width": (1, 4, 64)}, {"batch": (1, 8, 32), "width": (1, 4, 8)}]
    module = splitting(deploy_models.Pair(), (sample(4, 4), sample(4, 4)), axes, profiles)
    sizes = chunks_of(module, monkeypatch)
    x = sample(10, 40)
    close(module(x, x), deploy_models.Pair()(x, x))
    assert sizes == [4, 3, 1, 4, 3, 1, 4, 3, 3]
    assert refusal(ShapeError, module, sample(40, 80), sample(40, 80)).startswith(
        "input 'a': got batch = 40; expected 1..4 or 1..32 (it can't be split: axes 'batch' and "
        "'width' are both outside"
    )


class ReusingBackend(OnnxRuntimeBackend):
    """Hands out the same tensors at every call of a shape, as an engine under output="static" does."""

    def __init__(self, artifact: OnnxArtifact, guard: WeightsGuard) -> None:
        super().__init__(artifact, guard)
        self.kept: dict[Any, list[torch.Tensor]] = {}

    def run(self, inputs: Sequence[torch.Tensor], profile: int) -> list[torch.Tensor]:
        found = super().run(inputs, profile)
        mine = self.kept.setdefault(tuple(leaf.shape for leaf in inputs), found)
        for left, right in zip(mine, found, strict=True):
            left.copy_(right)
        return mine


class Reusing(ORTModule):
    """The module of that backend."""

    def _make_backend(self, artifact: OnnxArtifact, guard: WeightsGuard, device: Any) -> ReusingBackend:
        return ReusingBackend(artifact, guard)


def test_split_is_right_where_results_are_handed_out_again() -> None:
    """A chunk's result is taken before the next chunk overwrites it."""
    model, module = mlp()
    close(Reusing(module._artifact, runtime_config=SPLIT)(sample(24, 6)), model(sample(24, 6)))


def test_threads_prove_once_and_split_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight first calls at a time are eight right answers after one proof."""
    model, module = mlp()[0], fresh()
    sizes = chunks_of(module, monkeypatch)
    together = threading.Barrier(8)

    def work(size: int) -> torch.Tensor:
        together.wait(600)
        return module(sample(size, 6))

    with ThreadPoolExecutor(8) as pool:
        for size, found in zip(range(9, 17), pool.map(work, range(9, 17)), strict=True):
            close(found, model(sample(size, 6)))
    assert len(sizes) == 6 + 8 * 2


def test_split_reads_every_layout_and_casts_like_any_call() -> None:
    """Strides and smaller dtypes are no other input."""
    model, module = mlp()[0], fresh()
    close(module(sample(6, 20).t()), model(sample(6, 20).t()))
    close(module(sample(20, 6).half()), model(sample(20, 6).half().float()))
    close(module(torch._neg_view(sample(20, 6))), model(-sample(20, 6)))


def test_split_and_copies_go_together() -> None:
    """A copy splits too, after a proof of its own."""
    model, module = mlp()[0], fresh()
    module(sample(20, 6))
    twin = copy.deepcopy(module)
    assert twin.runtime_config == SPLIT
    assert twin._out_of_range._proof_record.proved == set()
    close(twin(sample(20, 6)), model(sample(20, 6)))


def test_loaded_state_is_proved_anew() -> None:
    """What was proved of one model is not believed of another."""
    module = fresh()
    module(sample(20, 6))
    module.load_state_dict(ORTModule(influencing("mean")).state_dict())
    assert refusal(ParityError, module, sample(20, 6)).startswith(
        "axis 'batch': got 8 entries that are not answered like 5 + 3"
    )


# Split: entries that influence each other


class Influence(nn.Module):
    """A model in which rows are not answered each on its own."""

    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(x)


INFLUENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: x - x.mean(0),
    "batch statistics": lambda x: (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt(),
    "softmax": lambda x: x.softmax(0),
    "attention": lambda x: (x @ x.t()).softmax(-1) @ x,
    "running sum": lambda x: x.cumsum(0),
    "running sum backwards": lambda x: x.flip(0).cumsum(0).flip(0),
    "largest": lambda x: x / x.abs().max(),
    "row number": lambda x: x + 0.1 * torch.arange(x.shape[0], device=x.device)[:, None],
    "odd and even rows": lambda x: x * (1 + torch.arange(x.shape[0], device=x.device) % 2)[:, None],
    "number of rows": lambda x: x / x.shape[0],
    "neighbours": lambda x: nn.functional.avg_pool1d(x.t()[None], 3, 1, 1)[0].t(),
    "row before": lambda x: x + 0.1 * x.roll(1, 0),
    "order": lambda x: x.flip(0),
    "rank": lambda x: x.sort(0)[0],
    "first row": lambda x: x * x[:1],
    "an event in any row": lambda x: x + (x.max() > 3).float(),
}


@functools.cache
def exported(how: str) -> OnnxArtifact:
    """Such a model, exported."""
    return t2e.export(Influence(INFLUENCES[how]).eval(), sample(4, 6), BATCH)


def influencing(how: str) -> OnnxArtifact:
    """Such a model under the pretence that no operator of it mixes the rows, so that only examples can show it."""
    return exported(how).replace(influences={"batch": None})


@pytest.mark.parametrize("how", INFLUENCES)
def test_model_with_an_operator_that_mixes_rows_is_never_split(how: str) -> None:
    """The operator is named, whatever the rows of the call are."""
    operator = exported(how).influences["batch"]
    assert operator is not None
    module = ORTModule(exported(how), runtime_config=SPLIT)
    assert refusal(ShapeError, module, torch.ones(20, 6)) == (
        f"{ABOVE} (it can't be split: its entries may influence each other: {operator}); {WIDER}"
    )


def test_model_that_nobody_has_analysed_is_never_split() -> None:
    """An artifact of an earlier version says nothing of its operators."""
    module = ORTModule(exported("mean").replace(influences=None), runtime_config=SPLIT)
    assert "its ONNX graph was not analysed for operators that let entries influence each other; deploy or" in refusal(
        ShapeError, module, sample(20, 6)
    )


@pytest.mark.parametrize("how", INFLUENCES)
def test_example_that_shows_an_influence_refuses_too(how: str) -> None:
    """Whatever flows from row to row shows in an example besides, which keeps refusing at later calls."""
    module = ORTModule(influencing(how), runtime_config=SPLIT)
    x = sample(20, 6)
    x[12] += 4
    with pytest.raises(ParityError) as caught:
        module(x)
    text = str(caught.value)
    assert text.startswith(
        "axis 'batch': got 8 entries that are not answered like 5 + 3 of them, so they influence each other "
    )
    assert "(output 'output', entries " in text
    end = f"; expected an axis whose entries don't, for out_of_range='split'; {WIDER}, or use out_of_range='eager'\n"
    assert end in text
    assert caught.value.report.subject == "8 entries of axis 'batch' whole vs in chunks, ONNX Runtime"
    assert not caught.value.report.passed
    again = refusal(ParityError, module, torch.zeros(12, 6))
    assert "redeploy with Axis('batch', 1, 4, 12)" in again


def test_rows_that_are_all_alike_prove_nothing() -> None:
    """A constant batch hides what rows do to each other, so the next call is asked again."""
    module = ORTModule(influencing("mean"), runtime_config=SPLIT)
    assert torch.equal(module(torch.ones(20, 6)), torch.zeros(20, 6))
    assert refusal(ParityError, module, sample(20, 6)).startswith("axis 'batch': ")


def test_proof_takes_entries_from_all_over_the_call() -> None:
    """Padding in front does not hide what rows do to each other."""
    x = torch.zeros(40, 6)
    x[20:] = sample(20, 6)
    assert refusal(ParityError, ORTModule(influencing("mean"), runtime_config=SPLIT), x).startswith("axis 'batch': ")


@pytest.mark.parametrize(("how", "row"), [("running sum", 17), ("running sum backwards", 0)])
def test_proof_looks_both_ways(how: str, row: int) -> None:
    """What flows one way only is seen wherever the one row is that it flows from."""
    x = torch.zeros(20, 6)
    x[row] = 1
    assert refusal(ParityError, ORTModule(influencing(how), runtime_config=SPLIT), x).startswith("axis 'batch': ")


@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_proof_is_of_two_uneven_chunks_in_range(step: int) -> None:
    """Two allowed sizes that add up, the larger one first and an odd number of steps, where there are such."""
    for whole in range(2 * step, 40 * step, step):
        for low in range(step, whole // 2 + 1, step):
            first, second = halves(whole, low, step)
            assert first + second == whole
            assert min(first, second) >= low
            assert first % step == second % step == 0
            if whole > 2 * low + step:
                assert first > second
            if whole > 2 * low + 2 * step:
                assert first // step % 2 == 1
        with pytest.raises(Unsplittable):
            halves(whole, whole // 2 + 1, step)


def test_answer_of_nothing_but_nan_disproves_nothing() -> None:
    """Where nothing could be compared the call fails, and the next one is asked again."""
    module = fresh()
    text = refusal(ParityError, module, torch.full((20, 6), torch.nan))
    assert "the reference has no finite element, so nothing was compared" in text
    close(module(sample(20, 6)), mlp()[0](sample(20, 6)))


# Split: what can't be


class Sums(nn.Module):
    """One output without the batch."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.tanh(), x.sum()


class Doubled(nn.Module):
    """The batch comes out twice as long."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x))


class Gram(nn.Module):
    """(batch, 6) -> (batch, batch)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.t()


class Square(nn.Module):
    """(batch, batch) -> (batch,)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1)


NARROW = {"x": {0: t2e.Axis("batch", 5, 6, 8)}}
UNSPLITTABLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any, tuple[int, ...], str]] = {
    "an output without it": (
        Sums,
        (4, 6),
        BATCH,
        (20, 6),
        f"{ABOVE} (it can't be split: axis 'batch' is not just one dimension of output 'output.1: float32[]'); {WIDER}",
    ),
    "an expression": (
        Doubled,
        (4, 6),
        BATCH,
        (20, 6),
        f"{ABOVE} (it can't be split: axis 'batch' is not just one dimension of output 'output: "
        f"float32[2*batch, 6]'); {WIDER}",
    ),
    "twice in an output": (
        Gram,
        (4, 6),
        BATCH,
        (20, 6),
        f"{ABOVE} (it can't be split: axis 'batch' is not just one dimension of output 'output: "
        f"float32[batch, batch]'); {WIDER}",
    ),
    "twice in an input": (
        Square,
        (4, 4),
        {"x": {0: t2e.Axis("batch", 1, 4, 8), 1: t2e.Axis("batch", 1, 4, 8)}},
        (20, 20),
        f"{ABOVE} (it can't be split: axis 'batch' is more than one dimension of input 'x: "
        f"float32[batch, batch]'); {WIDER}",
    ),
    "too small": (
        Mlp,
        (6, 6),
        NARROW,
        (4, 6),
        "input 'x': got batch = 4; expected 5..8 (it can't be split: axis 'batch' is too small, "
        "and only a larger one can be split); redeploy with Axis('batch', 4, 6, 8)",
    ),
    "empty": (
        Mlp,
        (4, 6),
        BATCH,
        (0, 6),
        "input 'x': got batch = 0; expected 1..8 (it can't be split: axis 'batch' is too small, "
        "and only a larger one can be split); an engine can't answer empty axes",
    ),
    "no sum of chunks": (
        Mlp,
        (6, 6),
        NARROW,
        (9, 6),
        "input 'x': got batch = 9; expected 5..8 (it can't be split: 9 entries can't be cut into "
        "chunks of 5..8); redeploy with Axis('batch', 5, 6, 9)",
    ),
    "no sum of multiples": (
        Mlp,
        (6, 6),
        {"x": {0: t2e.Axis("batch", 6, 6, 8, multiple_of=2)}},
        (10, 6),
        "input 'x': got batch = 10; expected 6..8 (it can't be split: 10 entries can't be cut "
        "into chunks of 6..8, multiples of 2); redeploy with Axis('batch', 6, 6, 10, multiple_of=2)",
    ),
    "no proof": (
        Mlp,
        (6, 6),
        NARROW,
        (16, 6),
        "input 'x': got batch = 16; expected 5..8 (it can't be split: the range 5..8 is too "
        "narrow to prove that entries don't influence each other: it has no size that is the sum of "
        "two); redeploy with Axis('batch', 5, 6, 16)",
    ),
}


@pytest.mark.parametrize("what", UNSPLITTABLE)
def test_call_that_cannot_be_split_is_a_shape_error_with_the_reason(what: str) -> None:
    """The error is the usual one, and says besides why splitting does not apply."""
    kind, shape, axes, wrong, text = UNSPLITTABLE[what]
    module = splitting(seeded(kind), sample(*shape), axes)
    assert refusal(ShapeError, module, torch.zeros(wrong)) == text


WRONG: dict[str, tuple[type[InputError], Callable[[], Any], str]] = {
    "rank": (ShapeError, lambda: sample(20), "input 'x': got shape [20] of 1 dimensions"),
    "static size": (ShapeError, lambda: sample(20, 7), "input 'x': got dimension 1 = 7"),
    "dtype": (DtypeError, lambda: sample(20, 6).double(), "input 'x': got dtype float64"),
    "grad": (
        InputError,
        lambda: sample(20, 6).requires_grad_(),
        "input 'x': got a tensor that requires grad while grad is enabled",
    ),
    "device": (t2e.DeviceError, lambda: torch.empty(20, 6, device="meta"), "input 'x': got device meta"),
    "layout": (InputError, lambda: sample(20, 6).to_sparse(), "input 'x': got layout sparse_coo"),
    "kind": (InputError, lambda: None, "input 'x': got None; expected a torch.Tensor"),
}


@pytest.mark.parametrize("policy", ["split", "eager"])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_besides_the_size_is_refused_as_ever(what: str, policy: str) -> None:
    """Only sizes are forgiven: nothing runs and nobody warns."""
    kind, make, text = WRONG[what]
    reference = Untouchable() if policy == "eager" else None
    module = fresh(RuntimeConfig(out_of_range=policy), reference)
    assert refusal(kind, module, make()).startswith(text)
    assert module._out_of_range._proof_record.proved == set()


class Untouchable(nn.Module):
    """Must not be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it was called")


def test_chunks_of_unequal_shape_are_refused(tmp_path: Path) -> None:
    """Where a chunk's other dimensions depend on its values, nothing is stretched to fit."""
    nodes = [
        helper.make_node("ReduceMax", ["x", "first"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "zero"], ["kept"]),
        helper.make_node("Compress", ["x", "kept"], ["y"], axis=1),
    ]
    shape, ragged = (onnx_models.FLOAT, ["batch", 2]), (onnx_models.FLOAT, ["batch", "kept"])
    weights = {"first": [0], "zero": torch.tensor(0.0).numpy()}
    onnx_models.save(tmp_path / "model.onnx", nodes, {"x": shape}, {"y": ragged}, weights)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("batch", 2)),),
        outputs=(TensorSpec("y", "float32", ("batch", "kept")),),
        axes=(Axis("batch", 1, 4, 8),),
        parameters=(Parameter("x", "positional", Tree("tensor")),),
    )
    profiles = [Profile({"batch": (1, 4, 8)})]
    artifact = OnnxArtifact(
        tmp_path, signature=signature, profiles=profiles, precision="fp32", influences={"batch": None}
    )
    x = torch.stack((torch.ones(20), torch.zeros(20)), 1)
    x[[0, 12], 1] = 1  # in every chunk of the proof, in the first two of the answer
    assert refusal(ShapeError, ORTModule(artifact, runtime_config=SPLIT), x) == (
        "output 'y': got shape [6, 1] for a chunk of 6 entries of axis 'batch'; expected [6, 2], as "
        "for the chunks before it; use out_of_range='eager'"
    )


# Eager

EAGER = RuntimeConfig(out_of_range="eager")


def eager(model: nn.Module, inputs: Any, axes: Any) -> ORTModule:
    """A module that falls back on its model."""
    return ORTModule(t2e.export(model, inputs, axes), runtime_config=EAGER, reference=model)


@pytest.fixture
def trainee() -> tuple[deploy_models.Trainee, ORTModule]:
    """A model in training, with gradients and a hook, and its module."""
    model = seeded(deploy_models.Trainee).train()
    model.frozen.eval()
    model(sample(4, 6)).sum().backward()
    return model, eager(model, sample(4, 6), BATCH)


@pytest.mark.filterwarnings("ignore:input 'x'.*PyTorch answers:UserWarning")
def test_eager_equals_the_model_and_leaves_it_alone(trainee: tuple[deploy_models.Trainee, ORTModule]) -> None:
    """The answer is the model's in inference mode; training flags, buffers, gradients, hooks and dice stay."""
    model, module = trainee
    seen: list[torch.Size] = []
    model.first.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    modes = [inner.training for inner in model.modules()]
    grads = [parameter.grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    versions = [value._version for value in model.state_dict(keep_vars=True).values()]
    hooks, dice = dict(model.first._forward_hooks), torch.get_rng_state()
    x = sample(20, 6)
    found = module(x)
    assert torch.equal(found, copy.deepcopy(model).eval()(x))
    assert not found.requires_grad
    assert [inner.training for inner in model.modules()] == modes
    assert all(left is right for left, right in zip(grads, (p.grad for p in model.parameters()), strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [value._version for value in model.state_dict(keep_vars=True).values()] == versions
    assert model.first._forward_hooks == hooks
    assert torch.equal(torch.get_rng_state(), dice)
    assert seen[0] == torch.Size([20, 8])
    assert not [*module.parameters(), *module.children()]


@pytest.mark.filterwarnings("ignore:input 'x'.*PyTorch answers:UserWarning")
def test_eager_answers_with_the_weights_of_the_moment(trainee: tuple[deploy_models.Trainee, ORTModule]) -> None:
    """Training goes on, and what PyTorch answers goes with it, while the engine keeps its weights."""
    model, module = trainee
    inside = module(sample(8, 6))
    with torch.no_grad():
        model.second.bias.add_(1)
    assert torch.equal(module(sample(20, 6)), copy.deepcopy(model).eval()(sample(20, 6)))
    assert torch.equal(module(sample(8, 6)), inside)


def test_eager_warns_once_at_the_callers_line() -> None:
    """One warning for all calls of all threads, with the axis, the range and the cure."""
    model = mlp()[0]
    module = fresh(EAGER, model)
    together = threading.Barrier(4)

    def work(size: int) -> torch.Tensor:
        together.wait(600)
        return module(sample(size, 6))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        close(module(sample(8, 6)), model(sample(8, 6)))
        assert caught == []
        close(module(sample(20, 6)), model(sample(20, 6)))
        (warning,) = caught
        with ThreadPoolExecutor(4) as pool:
            for size, found in zip(range(9, 13), pool.map(work, range(9, 13)), strict=True):
                close(found, model(sample(size, 6)))
    assert len(caught) == 1
    assert str(warning.message) == f"{ABOVE}; PyTorch answers such calls, slower; {WIDER}"
    assert (warning.category, warning.filename) == (UserWarning, __file__)


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
def test_eager_gives_the_models_own_types_and_tensors_of_its_own() -> None:
    """Structures come back as inside the range, and writing into them reaches neither model nor inputs."""
    model, other = deploy_models.nested()
    module = ORTModule(other._artifact, runtime_config=EAGER, reference=model)
    inputs = deploy_models.nested_inputs(12)
    found, expected = module(*inputs.args, **inputs.kwargs), model(*inputs.args, **inputs.kwargs)
    assert type(found) is deploy_models.Scores
    assert list(found.hidden) == list(expected.hidden)
    assert (found.hidden["kind"], found.hidden["nothing"]) == ("mlp", None)
    close(found.logits, expected.logits)
    for name in ("sum", "again", "table"):
        close(found.hidden[name], expected.hidden[name])
    state = inputs.args[1][1].clone()
    for tensor in (found.hidden["table"], found.hidden["again"], found.hidden["states"][1]):
        tensor.fill_(7)
    assert torch.equal(model.table, torch.arange(4.0))
    assert torch.equal(inputs.args[1][1], state)
    close(found.logits, expected.logits)


class Writer(nn.Module):
    """Writes into its input and counts its calls in a buffer that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return x.mul_(2), self.calls


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
def test_eager_keeps_inputs_and_buffers_from_a_model_that_writes() -> None:
    """The caller's tensors and the model's counters are as before the call, and the result is from during it."""
    model = Writer()
    signature = t2e.export(seeded(Mlp), sample(4, 6), BATCH)
    two = dataclasses.replace(
        signature.signature,
        outputs=(TensorSpec("y", "float32", ("batch", 6)), TensorSpec("calls", "float32", ())),
        output=Tree("tuple", (0, 1), (Tree("tensor"), Tree("tensor"))),
    )
    artifact = OnnxArtifact(
        signature.folder, signature=two, profiles=signature.profiles, precision="fp32", owner=signature
    )
    x = sample(20, 6)
    found, calls = ORTModule(artifact, runtime_config=EAGER, reference=model)(x)
    assert torch.equal(x, sample(20, 6))
    assert torch.equal(found, x * 2)
    assert (float(calls), float(model.calls)) == (1, 0)


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
def test_eager_casts_like_the_engine() -> None:
    """What the engine casts without loss the model gets cast, under autocast and inference mode too."""
    model = mlp()[0]
    module = fresh(EAGER, model)
    x = sample(20, 6).half()
    for around in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)):
        with around():
            found = module(x)
        close(found, model(x.float()))
        assert not found.is_inference()


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
def test_eager_reaches_the_module_below_its_wrappers() -> None:
    """What torch.compile made of a model is the same model."""
    model = mlp()[0]
    module = fresh(EAGER, torch.compile(model, backend="eager"))
    assert module._out_of_range.reference is model
    close(module(sample(20, 6)), model(sample(20, 6)))


class Limited(nn.Module):
    """Has a table of 8 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[: x.shape[0]]


class Other(nn.Module):
    """Answers whatever it is told to."""

    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x)


OTHERS: dict[str, tuple[nn.Module, str]] = {
    "fails": (
        Limited(),
        "got a failure of PyTorch itself on inputs of shape [20, 6]: RuntimeError: The size of tensor",
    ),
    "structure": (
        Other(lambda x: (x,)),
        "the PyTorch module can't answer either (model: got a result with another structure, or other constants",
    ),
    "dtype": (
        Other(lambda x: x[:, :3].double()),
        "gives float64[20, 3] for output 'output: float32[batch, 3]', so it is not what was deployed",
    ),
    "static size": (Other(lambda x: x), "the PyTorch module gives float32[20, 6] for output"),
    "rank": (Other(lambda x: x[:, 0]), "the PyTorch module gives float32[20] for output"),
}


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
@pytest.mark.parametrize("what", OTHERS)
def test_eager_never_gives_what_the_engine_could_not(what: str) -> None:
    """Where the module fails too, or is another than was deployed, the call is a ShapeError that says so."""
    reference, text = OTHERS[what]
    message = refusal(ShapeError, fresh(EAGER, reference), sample(20, 6))
    assert message.startswith(f"{ABOVE} (")
    assert text in message
    assert message.endswith(f"; {WIDER}")


def test_eager_names_the_module_that_is_on_another_device() -> None:
    """The model is not moved behind its owner's back."""
    module = fresh(EAGER, seeded(Mlp).to("meta"))
    assert refusal(t2e.DeviceError, module, sample(20, 6)) == (
        "the PyTorch module: got a module on meta; expected one on the inputs' device, cpu, for "
        "out_of_range='eager'; move it with .to('cpu')"
    )


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_reference_stays_behind_when_a_module_is_copied(how: Callable[[ORTModule], ORTModule]) -> None:
    """A copy answers inside the range, and says outside it how to have the model back."""
    model = mlp()[0]
    twin = how(fresh(EAGER, model))
    assert twin._out_of_range.reference is None
    close(twin(sample(8, 6)), model(sample(8, 6)))
    assert refusal(ShapeError, twin, sample(20, 6)) == (
        f"{ABOVE} (the PyTorch module that answers outside has stayed behind, as it does when this one is copied); "
        f"load it with runtime_config=RuntimeConfig(out_of_range='eager') and reference=model, or {WIDER}"
    )


@pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")
def test_loaded_module_takes_its_policy_and_reference(tmp_path: Path) -> None:
    """`load` gives a saved module a policy, whatever it had before."""
    model = mlp()[0]
    path = fresh(EAGER, model).save(tmp_path / "model.t2e")
    assert t2e.load(path).runtime_config == RuntimeConfig()
    for module in (t2e.load(path, runtime_config=SPLIT), t2e.load(path, runtime_config=EAGER, reference=model)):
        close(module(sample(20, 6)), model(sample(20, 6)))


REFERENCES: dict[str, tuple[RuntimeConfig, Any, str]] = {
    "none": (
        EAGER,
        None,
        "ORTModule: got out_of_range='eager' and no reference; expected 'eager' with the PyTorch "
        "module that then answers, or another without one; pass reference=model",
    ),
    "one that nothing uses": (
        SPLIT,
        Untouchable(),
        "ORTModule: got out_of_range='split' and a reference; expected 'eager' with the PyTorch "
        "module that then answers, or another without one; leave it out, or pass "
        "RuntimeConfig(out_of_range='eager')",
    ),
    "no module": (
        EAGER,
        torch.tanh,
        "model: got a builtin_function_or_method; expected a torch.nn.Module; wrap a function",
    ),
    "deployed": (
        EAGER,
        mlp,
        "model: got an ORTModule; expected a PyTorch module; pass what it was deployed from",
    ),
}


@pytest.mark.parametrize("what", REFERENCES)
def test_reference_that_does_not_go_with_the_policy_is_refused(what: str) -> None:
    """A policy that can't work, or a model that would be kept for nothing, never becomes a module."""
    config, reference, text = REFERENCES[what]
    reference = reference()[1] if what == "deployed" else reference
    assert refusal(InputError, lambda: fresh(config, reference)).startswith(text)


def test_policy_of_another_class_is_refused() -> None:
    """A word alone is no RuntimeConfig."""
    text = "runtime_config: got 'split'; expected a RuntimeConfig; pass t2e.RuntimeConfig(...)"
    assert refusal(InputError, lambda: fresh("split")) == text  # type: ignore[arg-type]


def test_module_says_how_it_answers() -> None:
    """The policy can be read and not set."""
    assert (mlp()[1].runtime_config, fresh().runtime_config) == (RuntimeConfig(), SPLIT)
    with pytest.raises(AttributeError):
        fresh().runtime_config = RuntimeConfig()  # type: ignore[misc]

"""A model that writes into its inputs, deployed with mutations="write_back", leaves them as PyTorch does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.deploy_models import sample
from torch2engine.core.spec import InputWrite, Signature, TensorSpec
from torch2engine.deployed.module_access import prove_split_axes
from torch2engine.deployed.write_back import WriteBack

WRITE_BACK = t2e.BuildConfig(mutations="write_back")
AXES = {"x": {0: t2e.Axis("batch", 1, 4, 8)}, "cache.keys": {0: "batch"}, "cache.sums": {0: "batch"}}


class Cached(nn.Module):
    """Writes a row of `keys` and counts `position` up, adds to `sums`, and returns the keys themselves."""

    def forward(self, x: torch.Tensor, cache: dict[str, torch.Tensor]) -> dict[str, Any]:
        keys, sums, position = cache["keys"], cache["sums"], cache["position"]
        keys.index_copy_(1, position, x[:, None] * 2)
        sums[:, 1:].add_(x[:, 1:])
        position.add_(1).remainder_(4)
        return {"mean": keys.mean(1), "state": {"keys": keys, "view": sums[:, 1]}}


def inputs(batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """x and a cache that is not empty."""
    cache = {"keys": sample(batch, 4, 6), "sums": sample(batch, 6) + 1, "position": torch.tensor([1])}
    return sample(batch, 6), cache


@pytest.fixture(scope="module")
def module() -> t2e.ORTModule:
    """`Cached` on ONNX Runtime, deployed once for all tests."""
    module = t2e.deploy(Cached(), inputs(4), AXES, runtime="onnxruntime", cache=False, config=WRITE_BACK)
    assert isinstance(module, t2e.ORTModule)
    return module


def assert_same_steps(module: Any, cache: dict[str, torch.Tensor], steps: int = 3) -> None:
    """Let PyTorch and the module work on two equal caches, and compare results and caches after every step."""
    batch = len(cache["keys"])
    expected_cache = {name: leaf.clone() for name, leaf in cache.items()}
    for step in range(steps):
        x = sample(batch, 6) + step
        expected = Cached()(x, expected_cache)
        found = module(x, cache)
        assert found["state"]["keys"] is cache["keys"]  # as in PyTorch
        for left, right in (
            (found["mean"], expected["mean"]),
            (found["state"]["view"], expected["state"]["view"]),
            *((cache[name], expected_cache[name]) for name in cache),
        ):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_caches_move_on_as_in_pytorch(module: t2e.ORTModule) -> None:
    """Over several calls and sizes results and written inputs are PyTorch's; the returned cache is the caller's own."""
    for batch in (1, 4, 7):
        assert_same_steps(module, inputs(batch)[1])


def test_views_and_strides_are_written_through(module: t2e.ORTModule) -> None:
    """Transposed caches, and interleaved parts of one buffer, get their values in their own places."""
    cache = inputs(3)[1]
    buffer = torch.full((3, 2, 4, 6), 9.0)
    strided = {
        "keys": buffer[:, 1].copy_(cache["keys"]),
        "sums": torch.empty(6, 3).t().copy_(cache["sums"]),
        "position": torch.tensor([0, 1, 0])[1:2],
    }
    assert_same_steps(module, strided)
    assert bool((buffer[:, 0] == 9).all())
    assert torch.equal(buffer[:, 1], strided["keys"])


def test_written_values_are_compared_and_named(module: t2e.ORTModule) -> None:
    """Each written input has an output with its new value, in the signature and in the report."""
    assert module.signature.writes == (
        InputWrite("cache.keys", "state.keys"),
        InputWrite("cache.sums", "cache.sums.written"),
        InputWrite("cache.position", "cache.position.written"),
    )
    assert module.report is not None
    compared = {row.name for row in module.report.parity[0].rows}
    assert compared == {"mean", "state.keys", "state.view", "cache.sums.written", "cache.position.written"}


class Adding(nn.Module):
    """Adds a multiple of x to y, unless the factor is 0."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.factor:
            y.add_(x, alpha=self.factor)
        return x * 2


@pytest.fixture(scope="module")
def adding() -> t2e.OnnxArtifact:
    """`Adding(2)`, exported once."""
    axes = {name: {0: t2e.Axis("batch", 1, 4, 8)} for name in "xy"}
    return t2e.export(Adding(2), (sample(4, 6), sample(4, 6)), axes, mutations="write_back")


@pytest.mark.parametrize("policy", ["split", "eager"])
def test_batch_out_of_range_is_written_whole(adding: t2e.OnnxArtifact, policy: str) -> None:
    """In chunks, and by PyTorch, the caller's tensor gets all its new values once."""
    config = t2e.RuntimeConfig(out_of_range=policy)
    module = t2e.ORTModule(adding, runtime_config=config, reference=Adding(2) if policy == "eager" else None)
    if policy == "split":
        assert prove_split_axes(module, [[sample(8, 6), sample(8, 6)]])
    x, y = sample(20, 6), sample(20, 6) + 1
    expected = y + 2 * x
    if policy == "eager":
        with pytest.warns(UserWarning, match="PyTorch answers such calls"):
            module(x, y)
    else:
        module(x, y)
    torch.testing.assert_close(y, expected)


def test_fault_in_a_written_value_is_found(adding: t2e.OnnxArtifact) -> None:
    """A model that returns the same but writes something else does not pass the check, nor one that writes less."""
    pair = (sample(4, 6), sample(4, 6))
    assert t2e.check(Adding(2), adding, pair).passed
    report = t2e.check(Adding(3), adding, pair)
    assert {row.name for row in report.failures} == {"y.written"}
    with pytest.raises(t2e.InputError) as error:
        t2e.check(Adding(0), adding, pair)
    assert str(error.value) == (
        "model: got writes into no input; expected writes into input 'y', as when it was exported; "
        "export the model again"
    )


def test_flat_call_writes_into_nothing(module: t2e.ORTModule) -> None:
    """`infer` gives the new values by name and leaves its inputs alone."""
    x, cache = inputs(4)
    leaves = [x, *cache.values()]
    before = [leaf.clone() for leaf in leaves]
    answer = module.infer(leaves)
    assert all(map(torch.equal, leaves, before))
    module(x, cache)
    assert torch.equal(answer["cache.sums.written"], cache["sums"])


def test_copies_and_saved_modules_write_back(module: t2e.ORTModule, tmp_path: Path) -> None:
    """A copy and a loaded module have the record of what is written, too."""
    module.save(tmp_path / "cached.t2e")
    for twin in (copy.deepcopy(module), t2e.load(tmp_path / "cached.t2e")):
        assert_same_steps(twin, inputs(2)[1], steps=1)


def test_benchmark_times_every_call_on_the_same_values(module: t2e.ORTModule) -> None:
    """The caller's tensors stay, and a position never runs out of range."""
    x, cache = inputs(4)
    before = {name: leaf.clone() for name, leaf in cache.items()}
    report = module.benchmark(Cached(), inputs=(x, cache), rounds=2, calls=3, warmup=1)
    assert len(report.rows) == 2
    assert all(torch.equal(before[name], leaf) for name, leaf in cache.items())


REFUSED: dict[str, tuple[Callable[[torch.Tensor, dict[str, torch.Tensor]], Any], type[Exception], str]] = {
    "dtype": (
        lambda x, cache: cache.update(sums=cache["sums"].half()),
        t2e.DtypeError,
        "input 'cache.sums': got dtype float16; expected float32, since the model writes into it; pass a tensor of "
        "that dtype, e.g. with .to(torch.float32), and read the new values from it",
    ),
    "expanded": (
        lambda x, cache: cache.update(sums=torch.ones(1, 6).expand(4, 6)),
        t2e.InputError,
        "input 'cache.sums': got a tensor with several elements in one place, such as an expanded one; expected a "
        "place for each element, since the model writes into it; pass its .clone(), and read the new values from that",
    ),
    "also read": (
        lambda x, cache: cache.update(sums=x),
        t2e.InputError,
        "input 'cache.sums': got memory that input 'x' has, too; expected memory of its own, since the model writes "
        "into it; pass a .clone() of one of them",
    ),
    "inference": (
        lambda x, cache: cache.update(sums=inference_tensor()),
        t2e.InputError,
        "input 'cache.sums': got a tensor that was made in inference mode, outside of it; expected one that PyTorch "
        "lets be written into here; pass its .clone(), or call the module under torch.inference_mode()",
    ),
    "gradients": (
        lambda x, cache: cache.update(sums=cache["sums"].requires_grad_()),
        t2e.InputError,
        "input 'cache.sums': got a tensor that requires grad while grad is enabled",
    ),
}


def inference_tensor() -> torch.Tensor:
    """One that inference mode has made."""
    with torch.inference_mode():
        return torch.ones(4, 6)


@pytest.mark.parametrize("what", REFUSED)
def test_input_that_cannot_be_written_into_is_refused(module: t2e.ORTModule, what: str) -> None:
    """A typed error comes before anything is computed, and nothing is written."""
    spoil, kind, text = REFUSED[what]
    x, cache = inputs(4)
    spoil(x, cache)
    before = {name: leaf.clone() for name, leaf in cache.items()}
    with pytest.raises(kind) as error:
        module(x, cache)
    assert str(error.value).startswith(text)
    assert all(torch.equal(before[name], leaf) for name, leaf in cache.items())


def test_inference_tensors_are_written_in_inference_mode(module: t2e.ORTModule) -> None:
    """There PyTorch writes into them, too; and without grad it writes into what requires grad."""
    with torch.inference_mode():
        assert_same_steps(module, inputs(2)[1], steps=1)
    cache = inputs(2)[1]
    with torch.no_grad():
        assert_same_steps(module, {**cache, "sums": cache["sums"].requires_grad_()}, steps=1)


def test_overlap_is_found_by_element() -> None:
    """Halves of one buffer that interleave are apart; a shared element is found, also across ranks."""
    base = torch.zeros(4, 2, 6)
    pairs = [
        (base[:, 0], base[:, 1], False),
        (base[..., :3], base[..., 3:], False),
        (base[..., :4], base[..., 3:], True),
        (base.flatten()[::2], base.flatten()[1::2], False),
        (base.flatten()[::2], base.flatten()[4:5], True),
        (base[0], torch.zeros(2, 6), False),
    ]
    for written, other, overlaps in pairs:
        write_back = WriteBack(_signature_of(written, other), {0: 0})
        if overlaps:
            with pytest.raises(t2e.InputError, match="got memory that input 'b' has, too"):
                write_back.check([written, other], (), {})
        else:
            write_back.check([written, other], (), {})


def test_fast_path_is_left_where_addresses_are_not_apart() -> None:
    """Whatever is doubtful goes through the whole check: equal tensors, inference tensors, no tensors at all."""
    a, b = torch.zeros(4), torch.zeros(8)
    write_back = WriteBack(_signature_of(a, b), {0: 0})
    assert write_back.suits_fast_path([a, b])
    assert write_back.suits_fast_path([b[:4], b[4:]])
    for doubtful in ([a, a], [b[:4], b[3:]], [inference_tensor(), b], [a, 1], [None, b], []):
        assert not write_back.suits_fast_path(doubtful)
    with torch.inference_mode():
        assert write_back.suits_fast_path([inference_tensor(), b])


def _signature_of(*leaves: torch.Tensor) -> Any:
    specs = tuple(TensorSpec(name, "float32", tuple(leaf.shape)) for name, leaf in zip("ab", leaves, strict=True))
    return Signature(specs, (TensorSpec("c", "float32", specs[0].shape),), writes=(InputWrite("a", "c"),))

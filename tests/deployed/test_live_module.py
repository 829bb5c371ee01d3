"""`LiveModule` on the CPU: PyTorch itself under the contract of a deployed module."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.deploy_models import (
    BATCH,
    Mlp,
    Scores,
    Trainee,
    deploy,
    mlp,
    nested,
    nested_inputs,
    sample,
    seeded,
)
from tests.support.live_models import live_module
from torch2engine.core.errors import (
    ArtifactError,
    DeviceError,
    DtypeError,
    InputError,
    RefitError,
    ShapeError,
)
from torch2engine.deployed.backend import Backend, RefittableBackend


class Accumulator(nn.Module):
    """It writes into an argument."""

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return total.add_(x) * 2


def live_mlp(**config: Any) -> tuple[Mlp, Any]:
    """A model of one's own, and a module that calls it."""
    model = seeded(Mlp)
    engine = t2e.ORTModule(mlp()[1]._artifact, runtime_config=t2e.RuntimeConfig(**config), reference=None)
    return model, live_module(engine, model, sample(4, 6), BATCH)


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-6, atol=1e-6)


def test_contract_is_kept() -> None:
    """It is a backend like others, whose weights nobody can replace."""
    _, module = live_mlp()
    backend: Backend = module._backend
    assert not isinstance(backend, RefittableBackend)
    assert (module.runtime, module.device, module.precision) == ("PyTorch", torch.device("cpu"), "fp32")
    call = "x: float32[batch, 6] -> output: float32[batch, 3]; batch 1..8 (opt 4)"
    assert repr(module) == f"LiveModule({call}; fp32, device=cpu)"


def test_call_is_answered_like_by_the_model() -> None:
    """Positional or by name, in any strides, in dtypes that cast without loss, in inference mode or not."""
    model, module = live_mlp()
    for x in (sample(4, 6), sample(6, 4).t(), sample(2, 6).half().float(), sample(2, 6).half()):
        close(module(x), model(x.float()))
    close(module(x=sample(3, 6)), model(sample(3, 6)))
    with torch.inference_mode():
        close(module(sample(3, 6)), model(sample(3, 6)))


def test_results_are_the_models_types_on_memory_of_their_own() -> None:
    """A tensor that passes through, one that comes twice and a buffer are copies, which no later call changes."""
    model, engine = nested()
    inputs = nested_inputs(3)
    axis = {0: t2e.Axis("batch", 1, 4, 8)}
    axes = dict.fromkeys(("batch.image", "batch.mask", "states.0", "extra.bias"), axis)
    module = live_module(engine, model, nested_inputs(4), axes)
    got = module(*inputs.args, **inputs.kwargs)
    wanted = model(*inputs.args, **inputs.kwargs)
    assert isinstance(got, Scores)
    assert got.hidden["kind"] == "mlp" and got.hidden["nothing"] is None
    tensors = [got.logits, got.hidden["again"], got.hidden["table"], got.hidden["states"][1]]
    right_ones = [wanted.logits, wanted.hidden["again"], model.table, inputs.args[1][1]]
    for left, right in zip(tensors, right_ones, strict=True):
        close(left, right)
    given = [model.table, *inputs.args[1], inputs.args[0].image]
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*tensors, *given)]
    assert len(set(memory)) == len(memory)
    kept = got.logits.clone()
    module(*inputs.args, **inputs.kwargs)
    close(got.logits, kept)


def test_calls_are_refused_in_the_words_of_every_deployed_module() -> None:
    """Before anything runs; moves, casts and surgery too."""
    _, module = live_mlp()
    refused: list[tuple[type[Exception], Callable[[], Any], str]] = [
        (
            DeviceError,
            lambda: module(sample(4, 6).to("meta")),
            "input 'x': got device meta; expected cpu, where the module runs; ",
        ),
        (DtypeError, lambda: module(sample(4, 6).double()), "input 'x': got dtype float64; expected float32 "),
        (ShapeError, lambda: module(sample(9, 6)), "input 'x': got batch = 9; expected 1..8; "),
        (InputError, module, "argument 'x': got no value"),
        (InputError, lambda: module(sample(4, 6).requires_grad_()), "input 'x': got a tensor that requires grad "),
        (InputError, module.half, "LiveModule: got a cast to float16"),
        (DeviceError, lambda: module.to("meta"), "LiveModule: got a move to meta; expected the CPU; "),
        (InputError, lambda: setattr(module, "w", nn.ReLU()), "LiveModule: got an attempt to set "),
    ]
    for kind, call, text in refused:
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        assert str(caught.value).startswith(text)


def test_module_that_calls_a_live_model_is_neither_saved_nor_copied(tmp_path: Path) -> None:
    """Its weights are the model's; the error names what can be saved, and that works."""
    model, module = live_mlp()
    wishes: list[Callable[[], Any]] = [
        lambda: module.save(tmp_path / "model.t2e"),
        lambda: copy.deepcopy(module),
        lambda: pickle.dumps(module),
        module.state_dict,
        lambda: module.load_state_dict(mlp()[1].state_dict()),
    ]
    for wish in wishes:
        with pytest.raises(ArtifactError) as caught:
            wish()
        assert str(caught.value) == (
            "LiveModule: got a deep copy, a state_dict or a file of a module that calls the live PyTorch model; "
            "expected a module with an engine, which has its weights inside; deploy the model with runtime='auto', and "
            "save that; or save the model itself"
        )
    assert not (tmp_path / "model.t2e").exists()
    with pytest.warns(UserWarning, match="TensorRT can't run") if not torch.cuda.is_available() else _nothing():
        deployed = t2e.deploy(model, sample(4, 6), BATCH, runtime="auto")
    assert deployed.save(tmp_path / "model.t2e").exists()


def _nothing() -> Any:
    return torch.no_grad()


def test_new_weights_count_from_the_next_call_on() -> None:
    """Written in place, by `.data`, by load_state_dict and by assignment; there is nothing to refit."""
    model, module = live_mlp()
    x = sample(4, 6)
    other = Mlp()
    changes: list[Callable[[], Any]] = [
        lambda: model.first.weight.data.mul_(-2),
        lambda: setattr(model.first.weight, "data", torch.randn(5, 6)),
        lambda: setattr(model.second, "bias", nn.Parameter(torch.randn(3))),
        lambda: model.load_state_dict(other.state_dict()),
        lambda: model.load_state_dict(other.state_dict(), assign=True),
    ]
    for change in changes:
        change()
        close(module(x), model(x))
    assert not module.stale() and not module.stale(model)
    assert module.refit().changed == () and module.refit(model).changed == ()
    module.track(model)
    module.track(None)
    close(module(x), model(x))


def test_other_weights_than_the_models_are_refused() -> None:
    """The error names the weight, or what to do with another model."""
    model, module = live_mlp()
    for call in (module.refit, module.stale, module.track):
        with pytest.raises(RefitError) as caught:
            call(Mlp())
        assert str(caught.value) == (
            "LiveModule: got another model than the one that was deployed, whose weights it computes with; expected "
            "that model; load the weights into that model with load_state_dict, or deploy the other one"
        )
    old = model.second.bias
    model.second.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(RefitError) as caught:
        module(sample(4, 6))
    assert str(caught.value) == (
        "weight 'second.bias': got float32[4] on cpu; expected float32[3] on cpu, as when it was deployed: this module "
        "calls the model; put such a weight there, or deploy the model again"
    )
    model.second.register_parameter("bias", None)
    with pytest.raises(RefitError, match=r"weight 'second\.bias': got None"):
        module(sample(4, 6))
    model.second.bias = old
    close(module(sample(4, 6)), model(sample(4, 6)))


def test_training_and_autocast_of_others_do_not_matter() -> None:
    """The module computes in evaluation mode; the model trains on, and calls move none of its statistics."""
    model = seeded(Trainee)
    module = live_module(deploy(model, sample(4, 6), BATCH), model, sample(4, 6), BATCH)
    x = sample(4, 6)
    wanted = copy.deepcopy(model).eval()(x)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        close(module(x), wanted)
    assert model.training and model.drop.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model(x)  # a step of training, which moves the statistics
    close(module(x), copy.deepcopy(model).eval()(x))


def test_arguments_are_written_back() -> None:
    """A model that writes into its inputs writes into the caller's, once, and into nothing else."""
    config = t2e.BuildConfig(mutations="write_back")
    model = Accumulator()
    inputs = (torch.ones(3), torch.zeros(3))
    module = live_module(deploy(model, inputs, config=config), model, inputs, config=config)
    total = torch.zeros(3)
    close(module(torch.ones(3), total), torch.full((3,), 2.0))
    close(module(torch.ones(3), total), torch.full((3,), 4.0))
    close(total, torch.full((3,), 2.0))


def test_sizes_out_of_range_are_split_as_by_an_engine() -> None:
    """Deploy has proved that on PyTorch's answers."""
    model, module = live_mlp(out_of_range="split")
    close(module(sample(20, 6)), model(sample(20, 6)))


def test_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads and its CUDA context stay behind."""
    _, module = live_mlp()
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(DeviceError) as caught:
        module(sample(4, 6))
    assert str(caught.value) == (
        f"LiveModule: got a call in the fork {process + 1} of process {process}, which deployed it; expected the "
        "process that deployed it, since PyTorch's threads and CUDA do not survive a fork; start workers with the "
        "'spawn' method, and deploy there"
    )


def test_module_outlives_its_model() -> None:
    """It keeps the weights, not the model; warm-up and trim go through."""
    model, module = live_mlp()
    wanted = model(sample(4, 6))
    del model
    module.warmup([{"batch": 2}])
    module.trim()
    close(module(sample(4, 6)), wanted)
    with pytest.raises(RefitError):
        module.refit(Mlp())


def test_explanation_and_benchmark_are_those_of_deployed_modules() -> None:
    """They call it like any other."""
    model, module = live_mlp()
    close(copy.copy(module)(sample(4, 6)), model(sample(4, 6)))
    assert [part.runs_in for part in module.explain(sample(4, 6)).parts] == ["PyTorch"]
    report = module.benchmark(model, sizes=[{"batch": 2}], rounds=2, calls=3, warmup=1)
    assert report.parity is not None and report.parity.passed

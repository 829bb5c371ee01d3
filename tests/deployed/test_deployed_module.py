"""`torch2engine.deployed.deployed_module` as a user meets it: call contract and nn.Module surface, on an ORTModule."""

from __future__ import annotations

import copy
import importlib
import io
import itertools
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import Batch, Scores, mlp, nested, nested_inputs, pair, sample
from torch2engine.capture.torch_types import dtype_name, torch_dtype
from torch2engine.core.errors import ArtifactError, DeviceError, DtypeError, InputError, ShapeError
from torch2engine.deployed.module_access import artifact_of
from torch2engine.deployed.onnxruntime.ort_backend import OnnxRuntimeBackend
from torch2engine.deployed.onnxruntime.ort_module import ORTModule


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


def refusal(kind: type[t2e.Torch2EngineError], call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The text of exactly this error."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


# What comes back


@pytest.mark.parametrize("size", range(1, 9))
def test_answer_equals_the_models_at_every_size(size: int) -> None:
    """Sizes that deploy never looked at are answered like those that it checked."""
    model, module = mlp()
    x = sample(size, 6)
    close(module(x), model(x))


def test_answer_has_the_models_own_types() -> None:
    """NamedTuples, dicts, lists, None, strings and tensors come back as the model returns them."""
    model, module = nested()
    inputs = nested_inputs(3)
    expected, found = model(*inputs.args, **inputs.kwargs), module(*inputs.args, **inputs.kwargs)
    assert type(found) is Scores
    assert list(found.hidden) == list(expected.hidden)
    assert (found.hidden["kind"], found.hidden["nothing"]) == ("mlp", None)
    assert type(found.hidden["states"]) is list
    close(found.logits, expected.logits)
    for name in ("sum", "again", "table"):
        close(found.hidden[name], expected.hidden[name])
    for left, right in zip(found.hidden["states"], expected.hidden["states"], strict=True):
        close(left, right)


def test_answer_stays_after_later_calls() -> None:
    """No later call changes a result that was kept."""
    _, module = mlp()
    first = module(sample(3, 6))
    kept = first.clone()
    for size in (3, 3, 8):
        module(sample(size, 6) + 1)
    assert torch.equal(first, kept)


def test_answer_is_the_callers_to_write_into() -> None:
    """Writing into results reaches no input, no other result and no constant inside the engine."""
    _, module = nested()
    inputs = nested_inputs(3)
    before = copy.deepcopy(inputs.args[1][1])
    found = module(*inputs.args, **inputs.kwargs)
    again, table = found.hidden["again"].clone(), found.hidden["table"].clone()
    found.logits.zero_()
    found.hidden["states"][1].zero_()
    found.hidden["table"].fill_(7)
    assert torch.equal(found.hidden["again"], again)
    assert torch.equal(inputs.args[1][1], before)
    assert torch.equal(module(*inputs.args, **inputs.kwargs).hidden["table"], table)


def test_inputs_are_left_as_they_are() -> None:
    """A call only reads its inputs."""
    _, module = mlp()
    x = sample(4, 6)
    before, version = x.clone(), x._version
    module(x)
    assert torch.equal(x, before)
    assert x._version == version


def test_infer_takes_and_gives_flat_tensors_by_name() -> None:
    """The flat call answers like the structured one."""
    _, module = nested()
    inputs = nested_inputs(2)
    batch, states = inputs.args
    flat = module.infer([batch.image, batch.mask, *states, inputs.kwargs["extra"]["bias"]])
    names = ["logits", "hidden.sum", "hidden.states.0", "hidden.states.1", "hidden.again", "hidden.table"]
    assert list(flat) == names
    assert torch.equal(flat["logits"], module(*inputs.args, **inputs.kwargs).logits)


# Layouts

MAKERS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: sample(6, 4).t(),
    "step": lambda: sample(8, 12)[::2, ::2],
    "offset": lambda: sample(5, 7)[1:, 1:],
    "expanded": lambda: sample(1, 6).expand(4, 6),
    "expanded scalar": lambda: torch.tensor(0.5).expand(4, 6),
    "overlapping": lambda: torch.as_strided(sample(12), (4, 6), (1, 1)),
    "misaligned": lambda: sample(25)[1:].view(4, 6),
    "negative bit": lambda: torch._neg_view(sample(4, 6)),
    "negated imaginary": lambda: torch.complex(sample(4, 6), sample(6, 4).t()).conj().imag,
    "reversed": lambda: torch.from_numpy(np.ascontiguousarray(sample(4, 6).numpy()[::-1])),
    "parameter": lambda: nn.Parameter(sample(4, 6), requires_grad=False),
    "detached": lambda: (sample(4, 6).requires_grad_() * 2).detach(),
}


@pytest.mark.parametrize("how", MAKERS)
def test_pitfall_03_answer_is_right_for_every_layout(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides, offsets and lazy signs are part of a tensor's value, and no engine ever sees them."""
    model, module = mlp()
    x = MAKERS[how]()
    assert x.shape == (4, 6)
    real, seen = OnnxRuntimeBackend.run, list[torch.Tensor]()

    def spy(self: OnnxRuntimeBackend, leaves: Any, profile: int) -> Any:
        seen.extend(leaves)
        return real(self, leaves, 0)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", spy)
    close(module(x), model(x))
    assert [(leaf.is_contiguous(), leaf.is_neg(), leaf.requires_grad) for leaf in seen] == [(True, False, False)]


def test_pitfall_03_answer_is_right_for_channels_last() -> None:
    """A memory format is no other input."""
    model = nn.Conv2d(3, 2, 3).eval()
    module = deploy_models.deploy(model, sample(2, 3, 5, 5), {"input": {0: "batch"}})
    x = sample(2, 3, 5, 5).to(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    close(module(x), model(x))


def test_zero_dim_inputs_and_results_are_right() -> None:
    """A scalar tensor is an input like any other."""
    model = deploy_models.Reduced()
    module = deploy_models.deploy(model, (sample(4, 6), torch.tensor(2.0)), {"x": [0]})
    found = module(sample(3, 6), torch.tensor(-3.0))
    assert found.shape == ()
    close(found, model(sample(3, 6), torch.tensor(-3.0)))
    assert refusal(ShapeError, module, sample(3, 6), torch.ones(1)) == (
        "input 'weight': got shape [1] of 1 dimensions; expected []; pass a tensor of that shape, not [1]"
    )


# Dtypes

KINDS = {
    "float": (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    "int": (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    "bool": (torch.bool,),
}
DTYPES = [dtype for kind in KINDS.values() for dtype in kind]


@pytest.fixture(scope="module")
def every_dtype() -> ORTModule:
    """A module with an input and an output of every dtype."""
    tensors = {dtype_name(dtype): torch.tensor([0, 1, 2, 3]).to(dtype) for dtype in DTYPES}
    return deploy_models.deploy(deploy_models.EveryDtype(), tensors)


def _values(dtype: torch.dtype) -> torch.Tensor:
    """Values that a cast to anything smaller damages, extremes among them."""
    if dtype is torch.bool:
        return torch.tensor([True, False, True, True])
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        return torch.tensor([info.max, info.min, info.max - 2, info.min + 1], dtype=dtype)
    info = torch.finfo(dtype)
    return torch.tensor([info.max, info.tiny, 1 + info.eps, -info.max / 3], dtype=dtype)


def _survives(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether a cast leaves the values alone: the test's own word on what is lossless."""
    values = _values(source)
    return values.to(target).tolist() == values.tolist()


@pytest.mark.parametrize("target", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("source", [*DTYPES, torch.complex64, torch.uint16], ids=dtype_name)
def test_pitfall_11_every_pair_of_dtypes_is_cast_without_loss_or_refused(
    every_dtype: ORTModule, source: torch.dtype, target: torch.dtype
) -> None:
    """Within a kind what survives is cast; whatever would lose something, or change its kind, is a DtypeError."""
    name = dtype_name(target)
    values = _values(torch.float32).to(source) if source.is_complex else _values(source)
    inputs = {dtype_name(dtype): _values(dtype) for dtype in DTYPES} | {name: values}
    one_kind = any(source in kind and target in kind for kind in KINDS.values())
    if source == target or (one_kind and _survives(source, target)):
        found = every_dtype(**inputs)[f"{name}_out"]
        assert found.dtype == target
        assert torch.equal(found, values.to(target).flip(0))
        return
    with pytest.raises(DtypeError) as caught:
        every_dtype(**inputs)
    text = str(caught.value)
    assert text.startswith(f"input '{name}': got dtype {dtype_name(source)}; expected {name}")
    assert text.endswith(f"; cast it yourself with .to({name}) if the loss is meant")
    assert caught.value.name == name


def test_pitfall_11_refusal_lists_what_would_do() -> None:
    """The text says which dtypes are cast without loss."""
    _, module = mlp()
    assert refusal(DtypeError, module, sample(4, 6).double()) == (
        "input 'x': got dtype float64; expected float32 (or float16, bfloat16, cast without loss); "
        "cast it yourself with .to(float32) if the loss is meant"
    )


def test_dtype_names_go_both_ways() -> None:
    """A signature's dtype name is torch's own."""
    for dtype in DTYPES:
        assert torch_dtype(dtype_name(dtype)) is dtype


# What is refused before anything runs


def _grad() -> torch.Tensor:
    return sample(4, 6).requires_grad_()


def _nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own nested tensors a prototype
        return torch.nested.nested_tensor([sample(6)] * 4, layout=layout)


REFUSED: dict[str, tuple[type[InputError], Callable[[], Any], str]] = {
    "device": (
        DeviceError,
        lambda: torch.empty(4, 6, device="meta"),
        "input 'x': got device meta; expected cpu, where the module runs; move it with .to('cpu')",
    ),
    "rank": (
        ShapeError,
        lambda: sample(6),
        "input 'x': got shape [6] of 1 dimensions; expected [batch, 6]; pass a tensor of that shape, not [6]",
    ),
    "static size": (
        ShapeError,
        lambda: sample(4, 7),
        "input 'x': got dimension 1 = 7; expected [batch, 6]; add {1: 'name'} to dynamic_axes",
    ),
    "above": (
        ShapeError,
        lambda: sample(64, 6),
        "input 'x': got batch = 64; expected 1..8; redeploy with Axis('batch', 1, 4, 64)",
    ),
    "empty": (
        ShapeError,
        lambda: sample(0, 6),
        "input 'x': got batch = 0; expected 1..8; an engine can't answer empty axes",
    ),
    "grad": (
        InputError,
        _grad,
        "input 'x': got a tensor that requires grad while grad is enabled; expected a tensor without "
        "gradients, since an engine only infers; call it under torch.no_grad(), or pass the tensor's "
        ".detach()",
    ),
    "result of grad": (
        InputError,
        lambda: _grad() * 2,
        "input 'x': got a tensor that requires grad while grad is enabled; expected a tensor without "
        "gradients, since an engine only infers; call it under torch.no_grad(), or pass the tensor's "
        ".detach()",
    ),
    "sparse": (
        InputError,
        lambda: sample(4, 6).to_sparse(),
        "input 'x': got layout sparse_coo; expected a dense tensor; make it dense, e.g. with .to_dense()",
    ),
    "mkldnn": (
        InputError,
        lambda: sample(4, 6).to_mkldnn(),
        "input 'x': got layout _mkldnn; expected a dense tensor; make it dense, e.g. with .to_dense()",
    ),
    "nested": (
        InputError,
        lambda: _nested(torch.strided),
        "input 'x': got layout nested; expected a dense tensor; make it dense, e.g. with .to_dense()",
    ),
    "jagged": (
        InputError,
        lambda: _nested(torch.jagged),
        "input 'x': got layout nested; expected a dense tensor; make it dense, e.g. with .to_dense()",
    ),
    "array": (
        InputError,
        lambda: sample(4, 6).numpy(),
        "input 'x': got an ndarray; expected a torch.Tensor; pass torch.as_tensor(...) on the engine's device",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_input_is_refused_with_its_name_and_the_cure(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wrong tensor is refused before anything runs, in words that name it and mend it."""
    _, module = mlp()
    monkeypatch.setattr(OnnxRuntimeBackend, "run", lambda *_: pytest.fail("it ran"))
    kind, make, text = REFUSED[what]
    with pytest.raises(kind) as caught:
        module(make())
    assert type(caught.value) is kind
    assert str(caught.value) == text
    assert caught.value.name == "x"
    assert isinstance(caught.value, ValueError)


def _traced(module: nn.Module) -> Any:
    return torch.jit.trace(nn.Sequential(module), (sample(4, 6),))


def _in_fake_mode(module: nn.Module) -> Any:
    with FakeTensorMode() as mode:
        return module(mode.from_tensor(sample(4, 6)))


def _in_forward_mode(module: nn.Module) -> Any:
    with forward_ad.dual_level():
        return module(forward_ad.make_dual(sample(4, 6), sample(4, 6)))


def _emptied(module: nn.Module) -> Any:
    x = sample(4, 6).clone()
    x.untyped_storage().resize_(0)
    return module(x)


TRANSFORMS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "torch.export": (
        lambda module: torch.export.export(nn.Sequential(module), (sample(4, 6),)),
        "ORTModule: got a call while it is being traced or exported; expected a call that computes, "
        "since a trace would keep this answer for every input; trace or export the PyTorch module "
        "instead",
    ),
    "torch.jit.trace": (
        _traced,
        ("ORTModule: got a call while it is being traced or exported; expected a call that computes"),
    ),
    "vmap": (
        lambda module: torch.func.vmap(module)(sample(2, 4, 6)),
        "input 'x': got a stand-in without values; expected a tensor with memory of its own; call "
        "the module outside of vmap, tracing and FakeTensorMode",
    ),
    "make_fx": (
        lambda module: make_fx(module)(sample(4, 6)),
        "ORTModule: got a call under make_fx or FakeTensorMode; expected a call that computes, since "
        "a trace would keep this answer for every input; trace the PyTorch module instead",
    ),
    "emptied storage": (_emptied, "input 'x': got a stand-in without values"),
    "fake tensors": (_in_fake_mode, "input 'x': got a stand-in without values"),
    "torch.fx": (
        lambda module: torch.fx.symbolic_trace(nn.Sequential(module)),
        "input 'x': got a Proxy; expected a torch.Tensor",
    ),
    "grad": (
        lambda module: torch.func.grad(lambda x: module(x).sum())(sample(4, 6)),
        "input 'x': got a tensor that requires grad while grad is enabled",
    ),
    "forward mode": (
        _in_forward_mode,
        "input 'x': got a forward-mode tangent; expected a tensor without gradients, since an engine only infers",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch deprecates what it uses itself
@pytest.mark.parametrize("how", TRANSFORMS)
def test_transform_that_an_engine_cannot_follow_is_refused(how: str) -> None:
    """Nothing is traced, batched or differentiated through an engine by mistake."""
    _, module = mlp()
    call, text = TRANSFORMS[how]
    assert refusal(InputError, call, module).startswith(text)


def test_requires_grad_is_fine_where_grad_is_off() -> None:
    """Under no_grad and inference_mode a leaf that requires grad is an input like any other."""
    model, module = mlp()
    x = _grad()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = module(x)
            close(found, model(x))
        assert not found.requires_grad


def test_pitfall_10_axis_outside_every_profile_lists_the_ranges() -> None:
    """Several profiles leave gaps: the text has each range and the Axis that would hold them all."""
    module = pair()
    assert refusal(ShapeError, module, sample(12, 3), sample(12, 3)) == (
        "input 'a': got batch = 12; expected 4..8 or 16..32; redeploy with Axis('batch', 4, 4, 32, multiple_of=4)"
    )
    assert refusal(ShapeError, module, sample(8, 6), sample(8, 6)) == (
        "input 'a': got width = 6; expected 2..5; redeploy with Axis('width', 2, 3, 6)"
    )
    for batch, width in itertools.product((4, 8, 16, 20, 32), (2, 5)):
        close(module(sample(batch, width), sample(batch, width)), deploy_models.Pair()(*[sample(batch, width)] * 2))


def test_axis_that_is_no_multiple_is_refused() -> None:
    """The engine was promised multiples."""
    assert refusal(ShapeError, pair(), sample(6, 3), sample(6, 3)) == (
        "input 'a': got batch = 6; expected a multiple of 4; pad axis 'batch' to a multiple of 4"
    )


def test_axis_of_two_sizes_is_refused() -> None:
    """One name is one size in a call."""
    assert refusal(ShapeError, pair(), sample(8, 3), sample(4, 3)) == (
        "input 'b': got batch = 4, but 8 in input 'a'; expected [batch, width]; pass a tensor of that shape, not [4, 3]"
    )


def _with(change: Callable[[list[Any], dict[str, Any]], None]) -> t2e.Inputs:
    inputs = nested_inputs(3)
    args, kwargs = list(inputs.args), dict(inputs.kwargs)
    change(args, kwargs)
    return t2e.Inputs(*args, **kwargs)


def _reshape_extra(args: list[Any], kwargs: dict[str, Any]) -> None:
    kwargs["extra"] = {"bias": kwargs["extra"]["bias"], "more": sample(1)}


CALLS: dict[str, tuple[Callable[[list[Any], dict[str, Any]], None], str]] = {
    "missing": (
        lambda args, kwargs: kwargs.clear(),
        "argument 'extra': got no value; expected the arguments batch, states, extra; pass extra",
    ),
    "missing positional": (
        lambda args, kwargs: args.pop(),
        "argument 'states': got no value; expected the arguments batch, states, extra; pass states",
    ),
    "extra": (
        lambda args, kwargs: args.append(1),
        "call: got 3 positional arguments; expected at most 2: batch, states; leave out the rest",
    ),
    "unknown": (
        lambda args, kwargs: kwargs.update(mask=None),
        "argument 'mask': got an unknown name; expected one of batch, states, extra, scale; leave it out",
    ),
    "twice": (
        lambda args, kwargs: kwargs.update(batch=args[0]),
        "argument 'batch': got two values; expected one; pass it once",
    ),
    "other constant": (
        lambda args, kwargs: kwargs.update(scale=3.0),
        "argument 'scale': got 3.0; expected its default 2.0, since it was not in sample_input; "
        "redeploy with it in sample_input",
    ),
    "tensor for a constant": (
        lambda args, kwargs: kwargs.update(scale=torch.tensor(2.0)),
        "argument 'scale': got a tensor; expected its default 2.0, since it was not in sample_input; "
        "redeploy with it in sample_input",
    ),
    "other structure": (
        _reshape_extra,
        "argument 'extra': got a dict of 2; expected a dict of 1: bias; pass the structure that sample_input had",
    ),
    "shorter list": (
        lambda args, kwargs: args[1].pop(),
        ("argument 'states': got a list of 1; expected a list of 2: 0, 1; pass the structure that sample_input had"),
    ),
    "None for a structure": (
        lambda args, kwargs: args.__setitem__(0, None),
        "argument 'batch': got None; expected a Batch of 2: image, mask; pass the structure that sample_input had",
    ),
    "None for a tensor": (
        lambda args, kwargs: args.__setitem__(0, Batch(args[0].image, None)),
        "input 'batch.mask': got None; expected a torch.Tensor; pass torch.as_tensor(...) on the engine's device",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_call_is_refused_with_what_the_model_takes(what: str) -> None:
    """Missing, extra, unknown and repeated arguments, other constants and other structures are InputErrors."""
    _, module = nested()
    change, text = CALLS[what]
    inputs = _with(change)
    assert refusal(InputError, module, *inputs.args, **inputs.kwargs) == text


def test_call_accepts_what_the_model_would() -> None:
    """Keywords for positionals, a tuple for a list and the default spelt out are the same call."""
    _, module = nested()
    inputs = nested_inputs(3)
    batch, states = inputs.args
    expected = module(batch, states, **inputs.kwargs).logits
    assert torch.equal(module(states=tuple(states), batch=batch, scale=2.0, **inputs.kwargs).logits, expected)


def test_constant_in_the_sample_can_neither_change_nor_be_forgotten() -> None:
    """An answer with another scale than the model's own is never given."""
    model = deploy_models.Scaled()
    module = deploy_models.deploy(model, t2e.Inputs(sample(4, 6), scale=3.0), deploy_models.BATCH)
    close(module(sample(2, 6), 3.0), model(sample(2, 6), 3.0))
    assert refusal(InputError, module, sample(2, 6), scale=2.0) == (
        "argument 'scale': got 2.0; expected 3.0, a constant of the engine; redeploy with this value "
        "in sample_input, or make it a tensor"
    )
    assert refusal(InputError, module, sample(2, 6)).startswith("argument 'scale': got no value")


def test_infer_refuses_another_number_of_tensors() -> None:
    """The flat call is under the same contract."""
    _, module = mlp()
    assert refusal(InputError, module.infer, []) == "inputs: got 0; expected 1: x; pass these"
    assert (
        refusal(InputError, module.infer, [None])
        == "input 'x': got None; expected a torch.Tensor; pass torch.as_tensor(...) of it"
    )


# The surface of nn.Module


@pytest.mark.parametrize("method", ["cpu", "eval", "train", "requires_grad_", "zero_grad", "share_memory"])
def test_harmless_methods_work(method: str) -> None:
    """What changes nothing in an engine is accepted, in a parent too."""
    model, module = mlp()
    module = copy.deepcopy(module)
    parent = nn.Sequential(nn.Linear(6, 6), module)
    assert getattr(module, method)() in (module, None)
    getattr(parent, method)()
    close(module(sample(2, 6)), model(sample(2, 6)))


CASTS: dict[str, Callable[[nn.Module], Any]] = {
    "float16": lambda m: m.half(),
    "float32": lambda m: m.float(),
    "float64": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
}


@pytest.mark.parametrize("dtype", CASTS)
def test_cast_is_refused(dtype: str) -> None:
    """half() and its like would do nothing to an engine, so they say so, in a parent too."""
    _, module = mlp()
    fix = "cast the model and deploy it again"
    text = f"ORTModule: got a cast to {dtype}; expected the dtypes that the engine was built with; {fix}"
    assert refusal(InputError, CASTS[dtype], module) == text
    assert refusal(InputError, module.to, torch_dtype(dtype)) == text
    assert refusal(InputError, module.to, "cpu", torch_dtype(dtype)) == text
    assert refusal(InputError, CASTS[dtype], nn.Sequential(nn.Linear(6, 6), module)) == text


def test_move_to_meta_is_refused() -> None:
    """Where ONNX Runtime can't follow, the module doesn't pretend."""
    _, module = mlp()
    text = "ORTModule: got a move to meta; expected the CPU; deploy again with the other runtime for that device"
    assert refusal(DeviceError, module.to, "meta") == text
    assert refusal(DeviceError, module.to_empty, device="meta") == text
    assert refusal(DeviceError, nn.Sequential(module).to, "meta") == text
    assert module.device == torch.device("cpu")


def test_move_to_a_gpu_is_refused() -> None:
    """With or without a GPU in the machine, an ORTModule says that it stays on the CPU."""
    _, module = mlp()
    for move in (module.cuda, lambda: module.to("cuda:0"), nn.Sequential(module).cuda):
        text = refusal(DeviceError, move)
        assert re.fullmatch(
            r"ORTModule: got a move (to cuda:0|that PyTorch refuses \(.+\)); expected the CPU; deploy "
            r"again with the other runtime for that device",
            text,
        )


SURGERY: dict[str, Callable[[nn.Module], Any]] = {
    "register_parameter": lambda m: m.register_parameter("w", nn.Parameter(torch.ones(1))),
    "register_parameter of None": lambda m: m.register_parameter("w", None),
    "register_buffer": lambda m: m.register_buffer("w", torch.ones(1)),
    "add_module": lambda m: m.add_module("w", nn.ReLU()),
    "register_module": lambda m: m.register_module("w", nn.ReLU()),
    "set a parameter": lambda m: setattr(m, "w", nn.Parameter(torch.ones(1))),
    "set a buffer": lambda m: setattr(m, "w", nn.Buffer(torch.ones(1))),
    "set a module": lambda m: setattr(m, "w", nn.ReLU()),
}


@pytest.mark.parametrize("how", SURGERY)
def test_surgery_is_refused(how: str) -> None:
    """A parameter, buffer or submodule would have no effect, so none is taken."""
    _, module = mlp()
    assert refusal(InputError, SURGERY[how], module) == (
        "ORTModule: got an attempt to set parameter, buffer or submodule 'w'; expected none, since an engine's "
        "weights are inside its plan; "
        "change the model and deploy it again"
    )
    assert not hasattr(module, "w")
    assert not [*module.parameters(), *module.buffers(), *module.children()]


def test_plain_attributes_and_hooks_work_as_on_any_module() -> None:
    """What needs no weights is nn.Module's own."""
    _, module = mlp()
    module = copy.deepcopy(module)
    module.nickname = "digits"  # type: ignore[assignment]
    seen: list[torch.Size] = []
    module.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    module(sample(2, 6))
    assert (module.nickname, seen) == ("digits", [torch.Size([2, 3])])


def test_repr_is_the_signature() -> None:
    """Printed, a module tells how it is called."""
    _, module = mlp()
    text = "ORTModule(x: float32[batch, 6] -> output: float32[batch, 3]; batch 1..8 (opt 4); fp32, device=cpu)"
    assert repr(module) == text
    assert f"(1): {text}" in repr(nn.Sequential(nn.ReLU(), module))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (
            t2e.TRTModule,
            "model.t2e",
            "TRTModule: got 'model.t2e'; expected an EngineArtifact; "
            "use the module that torch2engine.load('model.t2e') gives",
        ),
        (
            t2e.ORTModule,
            3,
            "ORTModule: got an int; expected an OnnxArtifact; read one with torch2engine.OnnxArtifact.load(path)",
        ),
    ],
)
def test_module_of_no_artifact_is_refused_with_the_cure(kind: Any, given: object, message: str) -> None:
    """Who passes a folder learns which function reads it."""
    with pytest.raises(InputError) as caught:
        kind(given)
    assert str(caught.value) == message


def test_package_reads_the_very_artifact_that_a_module_was_made_from() -> None:
    """Diagnosis, reports and comparisons take it from there; another one would be about another graph."""
    _, module = mlp()
    assert artifact_of(ORTModule(artifact_of(module))) is artifact_of(module)
    assert artifact_of(module).signature is module.signature


def test_module_is_for_inference_from_the_start() -> None:
    """A fresh module is in eval mode and tells its signature and precision."""
    _, module = mlp()
    assert not module.training
    assert (module.precision, module.runtime) == ("fp32", "ONNX Runtime")
    assert [spec.name for spec in module.signature.inputs] == ["x"]


# Copies and states


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copies_answer_on_their_own(how: Callable[[ORTModule], ORTModule]) -> None:
    """A copy has the answers and the report, and no session in common."""
    model, module = mlp()
    module(sample(1, 6))
    twin = how(module)
    assert twin is not module
    assert twin._backend._opened is None
    assert str(twin.report) == str(module.report)
    close(twin(sample(2, 6)), model(sample(2, 6)))


def test_deepcopy_of_a_parent_copies_the_module_too() -> None:
    """A model that holds a module is copied like any model."""
    _, module = mlp()
    parent = nn.Sequential(module, nn.Linear(3, 2))
    twin = copy.deepcopy(parent)
    assert twin[0] is not module
    with torch.no_grad():
        assert torch.equal(twin(sample(2, 6)), parent(sample(2, 6)))


def saved(state: Any, **options: Any) -> Any:
    """A state as torch.save and torch.load(weights_only=True) hand it on."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True, **options)


@pytest.mark.parametrize("where", ["alone", "in a parent"])
def test_state_dict_carries_the_whole_module(where: str) -> None:
    """A state_dict through a file of weights alone makes another module answer like this one."""
    model, module = mlp()
    other = deploy_models.deploy(deploy_models.seeded(deploy_models.Pair), (sample(2, 2), sample(2, 2)))
    alone = where == "alone"
    source, target = (module, other) if alone else (nn.Sequential(nn.ReLU(), module), nn.Sequential(nn.ReLU(), other))
    other(sample(2, 2), sample(2, 2))  # its session must go
    state = saved(source.state_dict())
    assert list(state) == ["_extra_state" if alone else "1._extra_state"]
    target.load_state_dict(state)
    close(other(sample(3, 6)), model(sample(3, 6)))
    assert other.signature == module.signature
    assert other.report.verdict == "not compared", "its report was about another model"


@pytest.mark.parametrize("width", [1, 64])
def test_state_dict_of_external_weights_carries_them(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that lie beside the graph travel with it, and a file that holds none of them stays behind."""
    monkeypatch.setattr(importlib.import_module("torch2engine.exporter.export_onnx"), "EXTERNAL_ABOVE_BYTES", 0)
    model = nn.Linear(6, width).eval()
    module = deploy_models.deploy(model, sample(4, 6))
    files = ("model.onnx",) if width == 1 else ("model.onnx", "model.onnx.data")
    assert module._artifact.files == files
    if width != 1:
        assert len(module._artifact.read("model.onnx.data")) == 4 * 64 * 6
    other = copy.deepcopy(mlp()[1])
    other.load_state_dict(saved(module.state_dict()))
    close(other(sample(4, 6)), model(sample(4, 6)))


def _state(change: Callable[[dict[str, Any]], Any]) -> Any:
    state = mlp()[1].get_extra_state()
    return change(state) or state


def _flip(state: dict[str, Any]) -> None:
    state["files"]["model.onnx"][100] ^= 1


def _newer(state: dict[str, Any]) -> None:
    state["manifest"] = json.dumps(json.loads(state["manifest"]) | {"precision": "fp16"})


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no state": (lambda state: 1, "ORTModule's state: got other values than state_dict() gave (TypeError"),
    "no files": (
        lambda state: state.pop("files") and None,
        ("ORTModule's state: got other values than state_dict() gave (Key"),
    ),
    "no JSON": (
        lambda state: state.update(manifest="{"),
        ("ORTModule's state: got other values than state_dict() gave (JSON"),
    ),
    "no bytes": (
        lambda state: state.update(files={"model.onnx": torch.empty(9, device="meta")}),
        "ORTModule's state: got other values than state_dict() gave (NotImplementedError",
    ),
    "no tensors": (
        lambda state: state.update(files={"model.onnx": b"x"}),
        "ORTModule's state: got other values than state_dict() gave (AttributeError",
    ),
    "damaged bytes": (_flip, "artifact 'in memory': got other bytes in 'model.onnx' than were saved"),
    "damaged manifest": (_newer, "artifact 'in memory': got a manifest that was changed after it was written"),
    "missing file": (
        lambda state: state["files"].clear(),
        "artifact 'in memory': got no 'model.onnx'; expected every file that it needs",
    ),
    "foreign file": (
        lambda state: state["files"].update(virus=torch.ones(1, dtype=torch.uint8)),
        "artifact 'in memory': got a file 'virus'; expected files of its manifest: model.onnx",
    ),
}


@pytest.mark.parametrize("what", STATES)
def test_broken_state_is_refused_and_changes_nothing(what: str) -> None:
    """A state that is not whole is an ArtifactError, and the module answers as before."""
    model, module = mlp()
    change, text = STATES[what]
    module = copy.deepcopy(module)
    assert refusal(ArtifactError, module.set_extra_state, _state(change)).startswith(text)
    assert module.report is not None
    close(module(sample(2, 6)), model(sample(2, 6)))

"""`torch2engine.deploy_steps.request_facts`: the facts by which the engine of an earlier deploy is found.

Enters: small models and everything that deploy() is given. Leaves: proof that the same request in another process has
the same key, and that each single change has another.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.engine_cache import hash_facts
from torch2engine.builder import load_or_build
from torch2engine.capture.examples import with_examples
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.deploy_steps import request_facts as room
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deploy_steps.request_facts import graph_facts, incomparable_attribute, model_facts, request_facts
from torch2engine.exporter.export_onnx import export_onnx

BATCH = t2e.Axis("batch", 1, 4, 8)
LOOSE = t2e.Tolerance(rel_l2=1e-2, max_rel=1e-1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor, factor: float = float("nan")) -> torch.Tensor:
        return self.head(self.body(x).relu()) + self.shift


class Twin(Net):
    """The same under another name."""


def net(kind: type[nn.Module] = Net, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind().eval()


def request_for(model: nn.Module, **options: Any) -> DeployRequest:
    """A deploy with these options."""
    defaults = {
        "precision": t2e.Precision(),
        "has_calibration": False,
        "given": ModelAndSample(model),
        "tolerance": None,
        "runtime": "tensorrt",
        "config": t2e.BuildConfig(),
        "runtime_config": t2e.RuntimeConfig(),
    }
    return DeployRequest(model=model, **{**defaults, **options})


def facts_of_model(model: nn.Module, cache_key: str = "net 1") -> Any:
    """The facts of a model under a key."""
    return model_facts(request_for(model), cache_key)


def key_of_request(model: nn.Module, sample: torch.Tensor, examples: Any = None, **options: Any) -> str:
    """The key of a request, beside the model."""
    with undisturbed(model):
        captured = with_examples(capture_call(model, sample, {"x": {0: BATCH}}), examples)
        return hash_facts(request_facts(request_for(model, **options), captured))


def keys(model: nn.Module, axis: t2e.Axis = BATCH, profiles: Any = None, **options: Any) -> tuple[str, str]:
    """The keys of a deploy: by its cache_key, and by its export."""
    request = request_for(model, **options)
    with undisturbed(model):
        captured = capture_call(model, torch.ones(4, 4), {"x": {0: axis}}, profiles)
        artifact = export_onnx(captured, request.config.refittable)
    of_request = request_facts(request, captured)
    of_model = model_facts(request, "net 1")
    assert of_model is not None
    of_graph = graph_facts(artifact, request.config.refittable)
    return hash_facts({**of_request, **of_model}), hash_facts({**of_request, **of_graph})


def changed(path: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = net()
        tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[path]
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        return model

    return make


def other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_library_version", lambda library: "0.0.1")


def torch2engine_of_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_or_build, "__version__", "0.0.0")


@functools.cache
def usual() -> tuple[str, str]:
    """What `net()` is found by."""
    return keys(net())


CHANGES: dict[str, dict[str, Any]] = {
    "weight": {"model": changed("body.weight")},
    "buffer": {"model": changed("shift")},
    "opt": {"axis": t2e.Axis("batch", 1, 5, 8)},
    "max": {"axis": t2e.Axis("batch", 1, 4, 9)},
    "axis's name": {"axis": t2e.Axis("rows", 1, 4, 8)},
    "profiles": {"profiles": [{"batch": (1, 4, 8)}, {"batch": (1, 4, 8)}]},
    "precision": {"precision": t2e.Precision("fp16")},
    "keep_fp32": {"precision": t2e.Precision(keep_fp32=["head"])},
    "budget": {
        "precision": t2e.Precision("fp16", budget=t2e.Budget(tolerance=t2e.Tolerance(rel_l2=1e-2, max_rel=1e-1)))
    },
    "calibration": {"has_calibration": True},
    "tolerance": {"tolerance": LOOSE},
    "workspace": {"config": t2e.BuildConfig(workspace_bytes=1 << 28)},
    "refittable": {"config": t2e.BuildConfig(refittable=True)},
    "GPUs built for": {"config": t2e.BuildConfig(compute_capabilities=((8, 6),))},
    "libraries": {"world": other_libraries},
    "torch2engine": {"world": torch2engine_of_tomorrow},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_single_change_misses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever decides about graph and engine is in both keys, and what does not matter in neither."""
    change = dict(CHANGES[name])
    before = usual()
    make = change.pop("model", net)
    change.pop("world", lambda monkeypatch: None)(monkeypatch)
    after = keys(make(), **change)
    assert after[0] != before[0] and after[1] != before[1]


def test_sample_counts_as_far_as_lowering_takes_something_from_it() -> None:
    """Its size never, its magnitude for half precision, its values for ranges of 8 bits."""
    samples = [torch.ones(4, 4), torch.full((5, 4), 1.5), torch.full((4, 4), 1000.0)]
    full, half, eight = (
        [key_of_request(net(), sample, precision=t2e.Precision(word)) for sample in samples]
        for word in ("fp32", "fp16", "int8")
    )
    assert full[0] == full[1] == full[2]
    assert half[0] == half[1] != half[2]
    assert len(set(eight)) == 3


def test_examples_count_as_far_as_lowering_takes_something_from_them() -> None:
    """They change what is compared; a graph in float32 is the same for all of them."""
    small, large = torch.ones(2, 4), torch.full((8, 4), 1000.0)
    full, half, eight = (
        [
            key_of_request(net(), torch.ones(4, 4), examples, precision=t2e.Precision(word))
            for examples in (None, [small], [small, small], [small, large])
        ]
        for word in ("fp32", "fp16", "int8")
    )
    assert full == [full[0]] * 4
    assert half[:3] == [half[0]] * 3 and half[3] != half[0]
    assert len(set(eight)) == 4


@pytest.mark.parametrize("name", ["epsilon", "form", "table", "tensor"])
def test_settings_of_modules_are_no_part_of_the_promise(name: str) -> None:
    """Numbers, words, tuples and tensors in attributes are looked at; the training flag is not."""
    model, other = net(), net()
    for one in (model, other):
        one.norm = nn.LayerNorm(4)
        one.form, one.table, one.cut = nn.GELU(), (1, 2.5), torch.ones(2)
    if name == "epsilon":
        other.norm.eps = 1e-3
    elif name == "form":
        other.form = nn.GELU("tanh")
    elif name == "table":
        other.table = (1, 2.6)
    else:
        other.cut = torch.tensor([1.0, 1.1])
    before = facts_of_model(model)
    assert facts_of_model(model.train()) == before
    assert facts_of_model(other) != before


def odd_meta(model: Any) -> None:
    model.odd = nn.Parameter(torch.empty(2, device="meta"))


def odd_sparse(model: Any) -> None:
    model.register_buffer("odd", torch.eye(3).to_sparse())


def odd_quantized(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 deprecates them
        model.register_buffer("odd", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))


@pytest.mark.parametrize("add", [odd_meta, odd_sparse, odd_quantized])
def test_tensors_without_plain_values_have_no_key(add: Callable[[Any], None]) -> None:
    """They take the long road, which knows what to say of them."""
    model = net()
    add(model)
    assert facts_of_model(model) is None


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Options:
    scale: float
    inner: dict[str, Any]


class Slotted:
    __slots__ = ("__hidden",)

    def __init__(self, hidden: int) -> None:
        self.__hidden = hidden


class Steps(int):
    """A number of a class of the user's own."""


def scaled_by(factor: float) -> Callable[[Any], Any]:
    return lambda x: x * factor


def weight(value: float) -> nn.Module:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    nn.init.zeros_(module.bias)
    return module


REACHABLE: dict[str, Callable[[int], Any]] = {
    "dict": lambda n: {"a": {"b": n}},
    "set": lambda n: {1, n + 5},
    "dataclass": lambda n: Options(float(n), {}),
    "inside a dataclass": lambda n: Options(1.0, {"deep": [(n,)]}),
    "numpy scalar": lambda n: np.float32(n),
    "numpy array": lambda n: np.array([1, n]),
    "numpy objects": lambda n: np.array([None, n], dtype=object),
    "enum": lambda n: (Colour.RED, Colour.BLUE)[n],
    "dtype": lambda n: (torch.float32, torch.float16)[n],
    "tensors in a list": lambda n: [torch.ones(2), torch.full((2,), n)],
    "tensors in a dict": lambda n: {"a": torch.full((2,), n)},
    "module in a list": lambda n: [weight(n)],
    "setting of a module in a list": lambda n: [nn.LayerNorm(4, eps=1.0 + n)],
    "slots": lambda n: Slotted(n),
    "closure": lambda n: scaled_by(n),
    "partial": lambda n: functools.partial(torch.mul, other=n),
    "bound method": lambda n: Options(float(n), {}).__eq__,
    "number of an own class": lambda n: Steps(n),
    "bytes": lambda n: bytes([n]),
    "default factory": lambda n: collections.defaultdict((list, dict)[n]),
    "order of a dict": lambda n: ({"a": 1, "b": 2}, {"b": 2, "a": 1})[n],
    "shape of an array": lambda n: np.zeros(((2, 3), (3, 2))[n]),
}


@pytest.mark.parametrize("make", REACHABLE.values(), ids=REACHABLE)
def test_whatever_an_attribute_reaches_is_compared(make: Callable[[int], Any]) -> None:
    """Equal values have equal keys, and other values others, wherever they stand."""
    found: list[str] = []
    for number in (0, 0, 1):
        model = net()
        model.extra = make(number)
        found.append(hash_facts(facts_of_model(model)))
    assert found[0] == found[1] != found[2]


def test_attribute_that_tells_nothing_is_refused_by_name() -> None:
    """A wrong hit would be possible; what can't change an answer does not matter."""
    model = net()
    before = facts_of_model(model)
    model.lock, model.log = threading.Lock(), logging.getLogger("model")
    model.own = weakref.ref(model)
    model.missing = object()
    after = facts_of_model(model)
    assert before is not None and after is not None
    assert incomparable_attribute(model) == ""
    model.head.rows = [iter([1, 2])]
    assert facts_of_model(model) is None
    assert incomparable_attribute(model) == (
        "model attribute 'head.rows.[0]': got a value of builtins.list_iterator, whose content Python can't read; "
        "expected numbers, texts, tensors, arrays, containers and Python objects of these, which cache_key compares; "
        "take it out of the model, or leave out cache_key"
    )


def test_cycles_aliases_and_hooks_have_keys() -> None:
    """An attribute may lead back to the model; a recurrent module holds its weights twice."""
    options = {"config": t2e.BuildConfig(refittable=True)}
    found: list[Any] = []
    for seed in (0, 1):
        model = net(seed=seed)
        model.rnn = nn.GRU(2, 2)
        model.parent = {"model": model}
        model.head.register_forward_hook(print)
        found.append(model_facts(request_for(model, **options), "key"))
    assert found[0] == found[1] is not None


def test_tied_parameters_count_under_each_of_their_names() -> None:
    """The facts name what the model names, also where two names stand for one tensor."""
    tied = net()
    tied.twin = nn.Linear(4, 4)
    tied.twin.weight = tied.body.weight
    assert {"body.weight", "twin.weight"} <= facts_of_model(tied)["tensors"].keys()


def test_conjugated_parameters_have_a_key() -> None:
    """Their values are those that are seen."""
    one, other = net(), net()
    one.odd = torch.tensor([1 + 2j]).conj()
    other.odd = torch.tensor([1 - 2j])
    assert facts_of_model(one) == facts_of_model(other) is not None


def test_key_promises_no_more_than_the_code() -> None:
    """Another key and another class miss, though what they export is the same but for the class's name."""
    before = facts_of_model(net())
    assert facts_of_model(net(), cache_key="net 2") != before
    assert facts_of_model(net(Twin)) != before
    assert facts_of_model(net()) == before


def test_weights_of_refittable_engines_do_not_count() -> None:
    """Whoever takes the engine refits it; their shapes and dtypes do."""
    options = {"config": t2e.BuildConfig(refittable=True)}
    before = keys(net(), **options)
    assert keys(net(seed=1), **options) == before
    model = net()
    model.head = nn.Linear(4, 3)
    model.shift = torch.ones(3)
    wider = keys(model, **options)
    assert wider[0] != before[0] and wider[1] != before[1]


def test_another_process_asks_by_the_same_key(run_fork: Callable[[str], Any]) -> None:
    """Nothing of a process, such as an address or the order of a set, gets into them."""
    here = keys(net())
    code = "import json; from tests.deploy_steps.test_request_facts import keys, net; print(json.dumps(keys(net())))"
    assert run_fork(code) == list(here)

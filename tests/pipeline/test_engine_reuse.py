"""`torch2engine.pipeline.engine_reuse`: what a request to deploy is found by.

Enters: small models and everything that deploy() is given. Leaves: proof that the same request in another process has
the same key, that each single change has another, and that options that make no sense are refused. Whether the engine
that is found is right is seen on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.cache import CacheNote, EngineCache, hash_facts
from torch2engine.builder import engine_request
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.exporter.export import export_onnx
from torch2engine.pipeline import engine_reuse as room
from torch2engine.pipeline.engine_reuse import Recall
from torch2engine.pipeline.report import Phases

BATCH = t2e.Axis("batch", 1, 4, 8)


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


def asking(model: nn.Module, cache: EngineCache | None = None, **options: Any) -> Recall:
    """A deploy with these options."""
    asked = {
        "asked": t2e.Precision(),
        "tolerance": None,
        "config": t2e.BuildConfig(),
        "runtime_config": t2e.RuntimeConfig(),
        "calibrated": False,
        **options,
    }
    return Recall(cache, model, phases=Phases(), **asked)


def promised(model: nn.Module, cache_key: str = "net 1") -> Any:
    """What tells a model from others under a key."""
    return asking(model)._promised(cache_key)


def requested(model: nn.Module, sample: torch.Tensor, **options: Any) -> str:
    """What a request is known by, beside the model."""
    with undisturbed(model):
        captured = capture_call(model, sample, {"x": {0: BATCH}})
        return hash_facts(asking(model, **options)._request(captured))


def keys(model: nn.Module, axis: t2e.Axis = BATCH, profiles: Any = None, **options: Any) -> tuple[str, str]:
    """What a deploy is found by: under its cache_key, and by its export."""
    recall = asking(model, **options)
    with undisturbed(model):
        captured = capture_call(model, torch.ones(4, 4), {"x": {0: axis}}, profiles)
        artifact = export_onnx(captured, recall.config.refittable)
    request, own = recall._request(captured), recall._promised("net 1")
    assert own is not None
    return hash_facts({**request, **own}), hash_facts({**request, **recall._exported(artifact)})


def changed(path: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = net()
        tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[path]
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        return model

    return make


def other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_version", lambda library: "0.0.1")


def torch2engine_of_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_request, "__version__", "0.0.0")


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
    "precision": {"asked": t2e.Precision("fp16")},
    "keep_fp32": {"asked": t2e.Precision(keep_fp32=["head"])},
    "budget": {"asked": t2e.Precision("fp16", budget=t2e.Budget(tolerance=t2e.Tolerance(rel_l2=1e-2, max_rel=1e-1)))},
    "calibration": {"calibrated": True},
    "tolerance": {"tolerance": t2e.Tolerance(rel_l2=1e-2, max_rel=1e-1)},
    "workspace": {"config": t2e.BuildConfig(workspace_bytes=1 << 28)},
    "refittable": {"config": t2e.BuildConfig(refittable=True)},
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
        [requested(net(), sample, asked=t2e.Precision(word)) for sample in samples] for word in ("fp32", "fp16", "int8")
    )
    assert full[0] == full[1] == full[2]
    assert half[0] == half[1] != half[2]
    assert len(set(eight)) == 3


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
    before = promised(model)
    assert promised(model.train()) == before
    assert promised(other) != before


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
    assert promised(model) is None


def test_conjugated_parameters_have_a_key() -> None:
    """Their values are those that are seen."""
    one, other = net(), net()
    one.odd = torch.tensor([1 + 2j]).conj()
    other.odd = torch.tensor([1 - 2j])
    assert promised(one) == promised(other) is not None


def test_key_promises_no_more_than_the_code() -> None:
    """Another key and another class miss, though what they export is the same but for the class's name."""
    before = promised(net())
    assert promised(net(), cache_key="net 2") != before
    assert promised(net(Twin)) != before
    assert promised(net()) == before


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


def test_another_process_asks_by_the_same_key(run_python: Callable[[str], Any]) -> None:
    """Nothing of a process, such as an address or the order of a set, gets into them."""
    here = keys(net())
    code = "import json; from tests.pipeline.test_engine_reuse import keys, net; print(json.dumps(keys(net())))"
    assert run_python(code) == list(here)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cache_key": 7}, "cache_key: got 7; allowed: a text that names the model's code, or None"),
        ({"cache_key": ""}, "cache_key: got ''; allowed: a text"),
        ({"tolerance": 1e-3}, "tolerance: got 0.001; allowed: a Tolerance or None"),
        ({"cache_key": "a", "cache": False}, "cache_key: got 'a' without a cache; allowed: one beside cache=True"),
    ],
)
def test_key_that_is_none_is_refused(options: dict[str, Any], text: str) -> None:
    """Before any work is done."""
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(net(), torch.ones(4, 4), runtime="onnxruntime", **options)
    error = caught.value
    assert f"{error.subject}: got {error.got}; allowed: {error.allowed}".startswith(text)


# What is noted of an engine


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def test_note_is_found_until_it_is_forgotten(cache: EngineCache) -> None:
    """It says which engine it is about, and what was found out."""
    request, engine = hash_facts({"n": 1}), hash_facts({"n": 2})
    assert cache.read_note(request) is None
    cache.write_note(request, CacheNote(engine, {"notes": ["é", 1, None]}))
    assert cache.read_note(request) == CacheNote(engine, {"notes": ["é", 1, None]})
    assert [path.name for path in (cache.folder / "notes").iterdir()] == [request]
    cache.remove_note(request)
    cache.remove_note(request)
    assert cache.read_note(request) is None


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data.replace(b"1", b"2", 1)])
def test_damaged_note_is_none(damage: Callable[[bytes], bytes], cache: EngineCache) -> None:
    """A machine that lost power may leave part of one."""
    request = hash_facts({"n": 1})
    cache.write_note(request, CacheNote(hash_facts({"n": 2}), {"number": 1}))
    path = cache.folder / "notes" / request
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read_note(request) is None


def test_notes_go_with_their_engines(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning removes those whose engine is not there, once nobody can be about to store it."""
    request = hash_facts({"n": 1})
    cache.write_note(request, CacheNote(hash_facts({"n": 2}), {}))
    cache.prune()
    assert cache.read_note(request) is not None
    monkeypatch.setattr(importlib.import_module("torch2engine.artifact.cache"), "_NOTE_GRACE_S", -1.0)
    cache.prune()
    assert cache.read_note(request) is None


def test_folder_that_everybody_may_write_to_has_no_notes(cache: EngineCache) -> None:
    """They decide which code runs."""
    request = hash_facts({"n": 1})
    cache.write_note(request, CacheNote(hash_facts({"n": 2}), {}))
    cache.folder.chmod(0o777)
    assert cache.read_note(request) is None


def test_report_parts_go_through_a_note() -> None:
    """What is told of lowering and of the engine's types comes back as it was."""
    from torch2engine.precision.graph.multiply_adds import MultiplyAddNode, PrecisionReport
    from torch2engine.precision.graph.outcome import KeptModule, PrecisionOutcome

    outcome = PrecisionOutcome(
        dtype="fp16", nodes=3, low=2, kept=(KeptModule("head", 1, "asked"),), attempts=("one",), errors={"head": 0.5}
    )
    again = json.loads(json.dumps(outcome.to_json()))
    assert PrecisionOutcome.from_json(again) == outcome
    assert PrecisionOutcome.from_json(replace(outcome, errors=None).to_json()).errors is None
    report = PrecisionReport((MultiplyAddNode("a", "Conv", "body", "fp16", 7, "fp16"),), {"fp16": 2})
    assert PrecisionReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_hashes_are_there_when_they_are_asked_for(cache: EngineCache) -> None:
    """Worked out beside something else they are the same, and a file that is gone is told by who asks."""
    model = net()
    recall = asking(model, cache)
    first, second = (t2e.export(model, torch.ones(4, 4), {"x": {0: BATCH}}) for _ in range(2))
    assert recall.exported(first) is first
    assert recall._hashing is not None
    recall._hashing.join()
    assert recall._exported(first) == recall._exported(second)
    third = t2e.export(model, torch.ones(4, 4), {"x": {0: BATCH}})
    third.onnx_path.unlink()
    recall.exported(third)
    recall._hashing.join()
    with pytest.raises(t2e.ArtifactError):
        recall._exported(third)

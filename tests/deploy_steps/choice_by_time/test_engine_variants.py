"""BuildConfig(optimize="measure") without a GPU: which variants mean something for which engine, and the note."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import torch2engine as t2e
from tests.support.deploy_models import BATCH, Mlp, engine, hide_gpu, sample, seeded
from torch2engine.artifact.engine_cache import hash_facts
from torch2engine.core.errors import InputError
from torch2engine.core.precision_report import AttentionOutcome, PrecisionReport
from torch2engine.core.spec import Profile
from torch2engine.deploy_steps.choice_by_time.engine_variants import VARIANTS
from torch2engine.deploy_steps.choice_by_time.measure_variants import _choice_facts

ARGUMENTS: dict[str, Any] = {
    "config": t2e.BuildConfig(),
    "runtime_config": t2e.RuntimeConfig(),
    "profiles": None,
    "precision": "fp32",
}


def suited(module: Any, **arguments: Any) -> list[str]:
    """The names of the variants for a module."""
    return [variant.name for variant in VARIANTS if variant.suits(module, {**ARGUMENTS, **arguments})]


def test_engine_for_a_range_may_get_profiles_and_one_for_single_sizes_kernels() -> None:
    """Kernels for single shapes are compared at every shape that there is, or are no variant."""
    ranged = t2e.TRTModule(engine())
    assert suited(ranged) == ["a profile for each size"]
    assert suited(ranged, profiles=[{"batch": (1, 4, 8)}]) == []
    fixed = t2e.TRTModule(engine().replace(profiles=(Profile({"batch": (4, 4, 4)}),)))
    assert suited(fixed) == ["kernels for single shapes"]
    assert suited(fixed, runtime_config=t2e.RuntimeConfig(kernel_specialization="lazy")) == []


def test_attention_has_another_form_unless_the_engine_is_refittable() -> None:
    """In half precision; a refit can't follow the node."""
    module = t2e.TRTModule(engine())
    computed = PrecisionReport((), attention=(AttentionOutcome("", True),))
    module.report = replace(module.report, computed=computed)
    half = {"profiles": [{"batch": (1, 4, 8)}], "precision": "fp16"}
    assert suited(module, **half) == ["attention in the other form"]
    assert suited(module, **half, config=t2e.BuildConfig(refittable=True)) == []


def test_variants_change_one_option_each() -> None:
    """All other arguments of deploy() stay as they are."""
    changes = {variant.name: variant.changes(ARGUMENTS) for variant in VARIANTS}
    assert changes == {
        "attention in the other form": {"config": t2e.BuildConfig(attention="products")},
        "a profile for each size": {"profiles": "auto"},
        "kernels for single shapes": {"runtime_config": t2e.RuntimeConfig(kernel_specialization="eager")},
    }
    products = {**ARGUMENTS, "config": t2e.BuildConfig(attention="products")}
    assert VARIANTS[0].changes(products) == {"config": t2e.BuildConfig(attention="node")}


def test_nothing_is_measured_without_tensorrt() -> None:
    """ONNX Runtime has no variants; the report says so, and the module is the same."""
    config = t2e.BuildConfig(optimize="measure")
    module = t2e.deploy(seeded(Mlp), sample(4, 6), BATCH, runtime="onnxruntime", config=config)
    assert type(module) is t2e.ORTModule
    assert module.report.tried == ()
    assert module.report.notes[-1] == (
        "optimize='measure' has measured nothing: only an engine that is whole, by TensorRT, has variants"
    )
    torch.testing.assert_close(module(sample(4, 6)), seeded(Mlp)(sample(4, 6)).detach(), rtol=1e-5, atol=1e-5)


def test_one_warning_comes_where_tensorrt_cant_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the option."""
    hide_gpu(monkeypatch)
    config = t2e.BuildConfig(optimize="measure")
    with pytest.warns(UserWarning, match="because TensorRT can't run") as caught:
        t2e.deploy(seeded(Mlp), sample(4, 6), BATCH, runtime="auto", config=config)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [("optimize", "fast", "'auto', 'measure'"), ("attention", "fused", "None, 'node', 'products'")],
)
def test_unknown_word_is_refused(option: str, value: str, allowed: str) -> None:
    """The error lists the words."""
    with pytest.raises(InputError) as caught:
        t2e.BuildConfig(**{option: value})  # type: ignore[arg-type]  # that is the point
    assert str(caught.value).startswith(f"BuildConfig.{option}: got '{value}'; expected one of {allowed}; ")


def test_choice_is_found_again_whatever_memory_the_module_shares() -> None:
    """The object is no JSON value; all other options of calls belong to the key."""
    plain, shared, other = (
        t2e.RuntimeConfig(**options)
        for options in ({}, {"shared_memory": t2e.SharedMemory()}, {"kernel_specialization": "eager"})
    )
    keys = [hash_facts(_choice_facts({**ARGUMENTS, "runtime_config": one})) for one in (plain, shared, other)]
    assert keys[0] == keys[1] != keys[2]
    assert isinstance(shared.shared_memory, t2e.SharedMemory), "the caller's options stay"


def test_profiles_of_the_user_are_no_choice_of_an_earlier_deploy() -> None:
    """They may equal those that deploy() takes by itself, whose variant has a profile for each size."""
    given = {**ARGUMENTS, "profiles": [{"batch": (1, 4, 8)}]}
    assert hash_facts(_choice_facts(given)) != hash_facts(_choice_facts(ARGUMENTS))

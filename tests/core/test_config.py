"""`torch2engine.core.config`: values that are wrong never get past construction."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import torch2engine as t2e
from torch2engine.core.config import RuntimeConfig, require_instance
from torch2engine.core.errors import InputError

COUNTS = ("contexts", "max_shapes", "streams")
OPTIONS: dict[str, dict[str, Any]] = {
    "contexts": {"contexts": 1},
    "max_shapes": {"max_shapes": 3},
    "streams": {"streams": 2},
    "cuda_graphs": {"cuda_graphs": True},
    "output": {"output": "static"},
    "kernel_specialization": {"kernel_specialization": "lazy"},
    "shared_memory": {"shared_memory": t2e.SharedMemory()},
}


def test_attention_of_a_refittable_engine_is_products() -> None:
    """By itself; and the node, which no refit can follow, is refused with what to do."""
    forms = [
        t2e.BuildConfig(refittable=refittable, attention=attention).attention_form
        for refittable, attention in (
            (False, None),
            (False, "node"),
            (False, "products"),
            (True, None),
            (True, "products"),
        )
    ]
    assert forms == ["node", "node", "products", "products", "products"]
    with pytest.raises(InputError) as caught:
        t2e.BuildConfig(refittable=True, attention="node")
    assert str(caught.value) == (
        "BuildConfig.attention: got 'node'; expected 'products' or None with refittable=True, since TensorRT-RTX makes "
        "weights of its own for the node; leave attention out"
    )
    assert t2e.BuildConfig(refittable=True).attention is None


def test_runtime_config_takes_every_word_that_it_documents() -> None:
    """The values in the docstring are taken as they are."""
    for name, values in {
        "cuda_graphs": ("auto", True, False),
        "output": ("fresh", "static"),
        "kernel_specialization": ("none", "lazy", "eager"),
        "out_of_range": ("error", "split", "eager"),
    }.items():
        assert [getattr(RuntimeConfig(**{name: value}), name) for value in values] == list(values)
    assert t2e.RuntimeConfig is RuntimeConfig


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "4"])
def test_runtime_config_refuses_what_is_no_count(name: str, value: object) -> None:
    """Counts are ints of at least 1."""
    with pytest.raises(InputError) as caught:
        RuntimeConfig(**{name: value})
    assert str(caught.value) == f"RuntimeConfig.{name}: got {value!r}; expected a positive int; pass such a value"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cuda_graphs", "always", "got 'always'; expected 'auto', True or False; pass such a value"),
        ("cuda_graphs", 1, "got 1; expected 'auto', True or False; pass such a value"),
        ("cuda_graphs", None, "got None; expected 'auto', True or False; pass such a value"),
        ("output", "shared", "got 'shared'; expected one of 'fresh', 'static'; pass one of these"),
        ("kernel_specialization", True, "got True; expected one of 'none', 'lazy', 'eager'; pass one of these"),
        ("out_of_range", None, "got None; expected one of 'error', 'split', 'eager'; pass one of these"),
        ("out_of_range", [], "got []; expected one of 'error', 'split', 'eager'; pass one of these"),
        ("shared_memory", True, "got True; expected a SharedMemory; pass t2e.SharedMemory(...)"),
    ],
)
def test_runtime_config_refuses_an_unknown_word_with_the_list(name: str, value: object, text: str) -> None:
    """A word that no option has is refused with those that it has; 1 is not True."""
    with pytest.raises(InputError) as caught:
        RuntimeConfig(**{name: value})
    assert str(caught.value) == f"RuntimeConfig.{name}: {text}"


def test_runtime_config_is_a_frozen_value_by_keyword() -> None:
    """It can be compared, hashed and replaced in part, but neither changed nor given by position."""
    config = RuntimeConfig(streams=2)
    assert config == RuntimeConfig(streams=2) != RuntimeConfig()
    assert len({config, RuntimeConfig(streams=2)}) == 1
    assert dataclasses.replace(config, streams=4) == RuntimeConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.streams = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        RuntimeConfig(16)  # type: ignore[misc]


def test_every_option_but_one_is_for_the_gpu() -> None:
    """A new option is refused on the CPU until somebody says that it means something there."""
    names = {field.name for field in dataclasses.fields(RuntimeConfig)}
    assert names == {*OPTIONS, "out_of_range"}
    RuntimeConfig(out_of_range="split").check_cpu("ORTModule")
    for options in OPTIONS.values():
        config = RuntimeConfig(out_of_range="split", **options)
        assert config.on_cpu() == RuntimeConfig(out_of_range="split")
        with pytest.raises(InputError):
            config.check_cpu("ORTModule")


def test_options_that_the_cpu_lacks_are_named_together() -> None:
    """One error names them all, as they were written."""
    with pytest.raises(InputError) as caught:
        RuntimeConfig(streams=2, output="static").check_cpu("ORTModule")
    assert str(caught.value) == (
        "ORTModule: got streams=2, output='static'; expected only out_of_range: the rest of "
        "RuntimeConfig is for engines on a GPU; leave it out, or deploy with runtime='tensorrt'"
    )


@pytest.mark.parametrize("value", [(8, 6), ("86",), ((8, 6, 0),), ((8.0, 6),), ((True, 6),), None, "86", 86])
def test_compute_capabilities_are_pairs(value: Any) -> None:
    """Of ints; a list of them is taken over, so that the caller can't change the config by it."""
    with pytest.raises(InputError) as caught:
        t2e.BuildConfig(compute_capabilities=value)
    assert str(caught.value) == (
        f"BuildConfig.compute_capabilities: got {value!r}; expected pairs of ints; e.g. "
        "compute_capabilities=((8, 6), (8, 9))"
    )
    pairs: Any = [[8, 6]]
    assert hash(t2e.BuildConfig(compute_capabilities=pairs)) == hash(t2e.BuildConfig(compute_capabilities=((8, 6),)))


def test_config_of_another_class_is_refused() -> None:
    """BuildConfig and RuntimeConfig can't be taken for each other."""
    require_instance("config", t2e.BuildConfig(), t2e.BuildConfig)
    with pytest.raises(InputError) as caught:
        require_instance("runtime_config", "split", RuntimeConfig)
    assert str(caught.value) == "runtime_config: got 'split'; expected a RuntimeConfig; pass t2e.RuntimeConfig(...)"


@pytest.mark.parametrize("bound", [-1, -1e-9, float("nan"), float("inf"), "1e-3", True])
@pytest.mark.parametrize("name", ["rel_l2", "max_rel", "abs", "mismatch"])
def test_tolerance_is_finite_and_not_negative(name: str, bound: Any) -> None:
    """Each bound takes 0 and None, and refuses what would let everything or nothing pass."""
    for allowed in (0, 0.5, None):
        assert getattr(t2e.Tolerance(**{name: allowed}), name) == allowed
    with pytest.raises(InputError, match=rf"Tolerance.{name}: got .*; expected a finite number of at least 0"):
        t2e.Tolerance(**{name: bound})

"""What an import loads, and that every public name can be reached."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

import torch2engine

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx", "pycuda", "numpy", "rich")
TORCH_FREE = ("core", "artifact", "trt", "onnx_graph", "parity", "builder", "serving.processor")

Run = Callable[[str], Any]

LOADED = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
room = importlib.import_module({module!r})
for _, name, _ in pkgutil.walk_packages(getattr(room, "__path__", []) if {walk} else [], room.__name__ + "."):
    importlib.import_module(name)
print(json.dumps(sorted(name for name in set(sys.modules) - before if "." not in name)))
"""


def loaded(run_python: Run, module: str, walk: bool = False) -> set[str]:
    """Top-level names of what importing `module` (with its submodules, if `walk`) loads in a fresh interpreter."""
    return set(run_python(LOADED.format(module=module, walk=walk)))


def is_heavy(name: str, heavy: tuple[str, ...]) -> bool:
    """Tell whether `name` is one of `heavy`, or the compiled half of one."""
    return any(name == word or name.startswith((f"{word}_", f"_{word}")) for word in heavy)


def test_importing_the_package_loads_nothing_heavy(run_python: Run) -> None:
    """`import torch2engine` loads no torch, ONNX, TensorRT, CUDA or numpy."""
    names = loaded(run_python, "torch2engine")
    assert "torch2engine" in names
    assert [name for name in names if is_heavy(name, HEAVY)] == []


def test_importing_the_package_loads_three_files_of_its_own(run_python: Run) -> None:
    """`import torch2engine` is quick on any machine: it loads three small files, and little of the standard library."""
    names = run_python(
        "import json, sys; before = set(sys.modules); import torch2engine; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    own = [name for name in names if name.startswith("torch2engine")]
    assert own == ["torch2engine", "torch2engine.core", "torch2engine.core.version"]
    assert len(names) <= 50


@pytest.mark.parametrize("room", TORCH_FREE)
def test_importing_a_torch_free_room_loads_no_torch(run_python: Run, room: str) -> None:
    """Data, artifacts, TensorRT, building and serving work where torch is not installed."""
    names = loaded(run_python, f"torch2engine.{room}", walk=True)
    assert "torch2engine" in names
    assert [name for name in names if is_heavy(name, ("torch", "transformers"))] == []


@pytest.mark.parametrize("room", ["core", "artifact", "trt", "serving.processor", "deployed.trt"])
def test_importing_a_serving_room_loads_no_onnx(run_python: Run, room: str) -> None:
    """A saved engine is served without onnx, onnxruntime and onnxscript."""
    names = loaded(run_python, f"torch2engine.{room}", walk=True)
    assert [name for name in names if is_heavy(name, ("onnx", "onnxruntime", "onnxscript"))] == []


def test_importing_trt_loads_no_tensorrt(run_python: Run) -> None:
    """The resolver's room loads TensorRT when it is asked for it, not when it is imported."""
    names = loaded(run_python, "torch2engine.trt.bindings")
    assert [name for name in names if is_heavy(name, ("tensorrt",))] == []


def test_importing_deploy_loads_no_compiler_of_torch(run_python: Run) -> None:
    """It takes a third of the time, and what deploy() finds in the cache or refuses needs no torch._dynamo."""
    names = run_python("import json, sys, torch2engine.deploy; print(json.dumps(sorted(sys.modules)))")
    assert "torch2engine.fallback.deploy_in_parts" in names
    assert [name for name in names if name.startswith(("torch._dynamo", "torch._inductor"))] == []


@pytest.mark.parametrize("name", torch2engine.__all__)
def test_public_name_resolves_in_a_fresh_package(name: str) -> None:
    """Every name of `__all__` is found in its room and is listed by dir()."""
    value = getattr(torch2engine, name)
    assert name in dir(torch2engine)
    if name == "testing":
        assert isinstance(value, ModuleType)
    elif name == "__version__":
        assert isinstance(value, str)
    else:
        assert value.__name__ == name
        assert value.__module__.partition(".")[0] == "torch2engine"


def test_unknown_name_raises_attribute_error() -> None:
    """A misspelt name fails as on any module."""
    with pytest.raises(AttributeError) as caught:
        torch2engine.deplyo  # noqa: B018
    assert str(caught.value) == "module 'torch2engine' has no attribute 'deplyo'"


FORMS = ("import torch2engine.deploy", "from torch2engine import deploy")
KINDS = f"""
import json, sys

def kind_after(form):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch2engine"]:
        del sys.modules[name]
    import torch2engine
    exec(form)
    return type(torch2engine.deploy).__name__

print(json.dumps([kind_after(form) for form in {FORMS!r}]))
"""


def test_function_named_like_its_room_stays_a_function_after_import(run_fork: Run) -> None:
    """`torch2engine.deploy` is the function, whichever way its room was imported before."""
    assert run_fork(KINDS) == [FunctionType.__name__] * len(FORMS)


def test_type_checkers_see_the_same_names_in_the_same_rooms(repository: Path) -> None:
    """The TYPE_CHECKING block, `__all__` and the rooms of the lazy names agree."""
    tree = ast.parse((repository / "torch2engine" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: (node.module or "").partition(".")[2] for node in imports for alias in node.names}
    rooms = torch2engine._HOMES
    assert seen == {name: rooms.get(name, "core.errors") for name in torch2engine.__all__ if name != "__version__"}
    assert set(rooms) <= set(torch2engine.__all__)


def test_every_error_class_is_public() -> None:
    """Whatever torch2engine raises can be caught by a name of the package."""
    from torch2engine.core import errors

    names = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert {name for name in names if issubclass(getattr(errors, name), Exception)} <= set(torch2engine.__all__)

"""The exception tree: who inherits from whom, what a message looks like, and that an error crosses processes whole."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from typing import Any

import numpy as np
import pytest

import torch2engine
from torch2engine.core import errors
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import (
    ArtifactError,
    BuildError,
    DeviceError,
    DtypeError,
    DynamicAxisError,
    ExportError,
    InputError,
    InstallationError,
    ParityError,
    PrecisionError,
    RefitError,
    ShapeError,
    Torch2EngineError,
    UnsupportedNode,
    UnsupportedOperatorError,
)
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport

BASES: dict[type[Torch2EngineError], tuple[type[BaseException], ...]] = {
    Torch2EngineError: (Exception,),
    InstallationError: (Torch2EngineError,),
    ExportError: (Torch2EngineError,),
    DynamicAxisError: (ExportError,),
    UnsupportedOperatorError: (Torch2EngineError,),
    BuildError: (Torch2EngineError,),
    PrecisionError: (BuildError,),
    ParityError: (Torch2EngineError,),
    InputError: (Torch2EngineError, ValueError),
    ShapeError: (InputError,),
    DtypeError: (InputError, TypeError),
    DeviceError: (InputError,),
    ArtifactError: (Torch2EngineError,),
    RefitError: (Torch2EngineError,),
}

FACTS = {"got": "batch = 64", "allowed": "1..32", "fix": "redeploy"}
TEXT = "input 'x': got batch = 64; expected 1..32; redeploy"
NODES = (
    UnsupportedNode("NonZero", "node_nonzero", "head.pick", "model.py:12", "its shape depends on values"),
    UnsupportedNode("Det", "det", "", "", ""),
)
_ONES = np.ones(3, np.float32)
REPORT = ParityReport(
    compare({"y": _ONES}, {"y": _ONES * 2}, Tolerance(), case="min"), "PyTorch vs TensorRT", Tolerance()
)

# class -> what it takes besides the four facts, and what that adds to the text
EXTRAS: dict[type[Torch2EngineError], tuple[dict[str, Any], str]] = {
    Torch2EngineError: ({}, ""),
    InstallationError: ({}, ""),
    ExportError: ({"source": "model.py:7"}, " (at model.py:7)"),
    DynamicAxisError: ({"source": "model.py:7", "axis": "batch"}, " (at model.py:7)"),
    UnsupportedOperatorError: (
        {"nodes": NODES},
        "\n  NonZero (node_nonzero) in module 'head.pick' at model.py:12: its shape depends on values\n  Det (det)",
    ),
    BuildError: ({"log": ("first line", "second line"), "out_of_memory": True}, "\n  first line\n  second line"),
    PrecisionError: ({"log": ("first line",), "out_of_memory": False}, "\n  first line"),
    ParityError: ({"report": REPORT}, f"\n{REPORT}"),
    InputError: ({"name": "x"}, ""),
    ShapeError: ({"name": "x"}, ""),
    DtypeError: ({"name": "x"}, ""),
    DeviceError: ({"name": "x"}, ""),
    ArtifactError: ({"path": "model.t2e/model.plan"}, ""),
    RefitError: ({}, ""),
}
DEFAULTS = {"source": "", "axis": "", "log": (), "out_of_memory": False, "name": "", "path": ""}
CLASSES = list(EXTRAS)


def made(kind: type[Torch2EngineError]) -> Torch2EngineError:
    """An error with every fact given."""
    return kind("input 'x'", **FACTS, **EXTRAS[kind][0])


def family(kind: type[Torch2EngineError]) -> set[type[Torch2EngineError]]:
    """A class and everything below it."""
    return {kind}.union(*map(family, kind.__subclasses__()))


def test_every_class_of_the_package_is_tested_here() -> None:
    """A new error class can't come without its place in the tree and its text."""
    for module in pkgutil.walk_packages(torch2engine.__path__, "torch2engine."):
        if not module.name.endswith(".__main__"):  # it would run the command line
            importlib.import_module(module.name)
    found = {kind for kind in family(Torch2EngineError) if kind.__module__.partition(".")[0] == "torch2engine"}
    assert found == set(BASES) == set(EXTRAS)
    assert {kind.__module__ for kind in found} == {"torch2engine"}
    assert all(getattr(errors, kind.__name__) is kind for kind in found)
    assert {kind.__name__ for kind in found} == set(errors.__all__) - {"UnsupportedNode", "may_blame_engine"}


@pytest.mark.parametrize("kind", CLASSES)
def test_class_has_its_place_in_the_tree(kind: type[Torch2EngineError]) -> None:
    """Users may catch by Python's own classes where those fit."""
    assert kind.__bases__ == BASES[kind]
    assert kind.__doc__


def test_tree_is_drawn_as_it_is() -> None:
    """The drawing at the top of the module shows every class below its parent."""
    depths: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        stem = line.lstrip(" │├└─")
        name = stem.split(" ")[0]
        if name.endswith("Error"):
            depths.append(((len(line) - len(stem)) // 4, name))
    assert {name for _, name in depths} == {kind.__name__ for kind in BASES}
    for position, (depth, name) in enumerate(depths[1:], 1):
        parent = next(above for at, above in reversed(depths[:position]) if at == depth - 1)
        assert getattr(errors, name).__bases__[0].__name__ == parent


@pytest.mark.parametrize("kind", CLASSES)
def test_message_is_subject_got_allowed_fix(kind: type[Torch2EngineError]) -> None:
    """Every class says the same things in the same order, and the facts are attributes."""
    error = made(kind)
    extras, more = EXTRAS[kind]
    assert str(error) == TEXT + more
    assert error.args == (TEXT + more,)
    assert error.subject == "input 'x'"
    for name, value in {**FACTS, **extras}.items():
        assert getattr(error, name) == value


@pytest.mark.parametrize("kind", CLASSES)
def test_message_leaves_out_what_is_not_known(kind: type[Torch2EngineError]) -> None:
    """With the subject alone, no comma, colon or bracket stands around nothing."""
    needed = {name: value for name, value in EXTRAS[kind][0].items() if name in ("nodes", "report")}
    error = kind("build", **needed)
    assert str(error) == "build" + (EXTRAS[kind][1] if needed else "")
    for name, value in DEFAULTS.items():
        assert getattr(error, name, value) == value


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("got",), "s: got g"),
        (("allowed",), "s: expected a"),
        (("fix",), "s: f"),
        (("got", "allowed"), "s: got g; expected a"),
        (("got", "fix"), "s: got g; f"),
        (("allowed", "fix"), "s: expected a; f"),
        (("got", "allowed", "fix"), "s: got g; expected a; f"),
    ],
)
def test_message_joins_whatever_parts_there_are(parts: tuple[str, ...], text: str) -> None:
    """Every combination of facts reads as one sentence."""
    assert str(Torch2EngineError("s", **{part: part[0] for part in parts})) == text


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", CLASSES)
def test_error_crosses_processes_whole(kind: type[Torch2EngineError], copied: Any) -> None:
    """A pickled or copied error is of the same class, with the same text, args and attributes."""
    error = made(kind)
    twin = copied(error)
    twin = pickle.loads(twin) if isinstance(twin, bytes) else twin
    assert twin is not error
    assert type(twin) is kind
    assert (str(twin), twin.args) == (str(error), error.args)
    assert repr(twin) == repr(error)
    # NaN in a report is not equal to itself, so attributes are compared as text
    assert {name: repr(value) for name, value in vars(twin).items()} == {
        name: repr(value) for name, value in vars(error).items()
    }


def test_nodes_and_log_lines_are_kept_as_tuples() -> None:
    """Lists that the raiser goes on filling don't change an error."""
    nodes, log = list(NODES), ["line"]
    unsupported, failed = UnsupportedOperatorError("s", nodes=nodes), BuildError("s", log=log)
    nodes.clear()
    log.clear()
    assert unsupported.nodes == NODES
    assert failed.log == ("line",)


def test_unsupported_node_reads_as_one_line() -> None:
    """Operator, name, module, line and reason, as far as known."""
    assert [str(node) for node in NODES] == [
        "NonZero (node_nonzero) in module 'head.pick' at model.py:12: its shape depends on values",
        "Det (det)",
    ]

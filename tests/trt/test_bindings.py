"""`torch2engine.trt.bindings` with the real TensorRT-RTX, and with folders that pretend to be a broken TensorRT."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from torch2engine.core.errors import BuildError, ShapeError
from torch2engine.trt.bindings import (
    DTYPES,
    IO_DTYPES,
    Builder,
    CallLock,
    INetworkDefinition,
    Log,
    OnnxParser,
    TensorRT,
    check_return_value,
    find_tensorrt,
)


@pytest.fixture
def rt() -> TensorRT:
    """The flavour that is installed with the development requirements."""
    return find_tensorrt("tensorrt_rtx")


def found(path: Path, flavour: str | None = None) -> str:
    """What `find` says in a process that imports from `path` first."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from torch2engine.trt.bindings import find_tensorrt\n"
        "from torch2engine.core.errors import InstallationError\n"
        "try:\n    said = find_tensorrt(json.loads(sys.argv[2])).name\n"
        "except InstallationError as error:\n    said = str(error)\n"
        "print(json.dumps(said))"
    )
    command = [sys.executable, "-c", code, str(path), json.dumps(flavour)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fake(folder: Path, name: str, code: str) -> Path:
    """A package of that name."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    return folder


def test_find_tells_flavour_and_version(rt: TensorRT) -> None:
    """Name, version and flavour are the bindings' own."""
    assert (rt.name, rt.is_rtx) == ("tensorrt_rtx", True)
    assert rt.version == importlib.metadata.version("tensorrt_rtx")
    assert rt.title == f"TensorRT-RTX {rt.version}"


def test_find_gives_one_log_for_a_process(rt: TensorRT) -> None:
    """TensorRT keeps the first logger that it is given, so there is only one."""
    assert find_tensorrt("tensorrt_rtx") is rt


def test_find_names_the_extra_where_tensorrt_is_missing(tmp_path: Path) -> None:
    """The message says what is installed and the line that mends it."""
    fake(tmp_path, "tensorrt", "raise ModuleNotFoundError('none', name='tensorrt')")
    said = found(tmp_path, "tensorrt")
    version = importlib.metadata.version("tensorrt_rtx")
    assert said.startswith(f"TensorRT: got no such package (installed: tensorrt_rtx {version}, ")
    assert said.endswith("); expected an installed one; `pip install 'torch2engine[tensorrt]'`")


def test_pitfall_28_loader_message_reaches_the_error(tmp_path: Path) -> None:
    """A library that the loader can't find is quoted as the loader put it."""
    fake(tmp_path, "tensorrt", "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    said = found(tmp_path, "tensorrt")
    assert said.startswith(
        "TensorRT: got tensorrt that can't be loaded: 'libnvinfer.so.10: cannot open shared object file' (installed: "
    )


def test_find_names_a_half_installed_package(tmp_path: Path) -> None:
    """A package whose own requirement is missing is no "not installed"."""
    fake(tmp_path, "tensorrt", "import tensorrt_libs_of_nobody")
    said = found(tmp_path, "tensorrt")
    assert said.startswith(
        "TensorRT: got tensorrt without the module tensorrt_libs_of_nobody, which it needs (installed: "
    )


def test_find_sees_through_an_empty_folder(tmp_path: Path) -> None:
    """A folder that happens to be called tensorrt is not TensorRT."""
    (tmp_path / "tensorrt").mkdir()
    said = found(tmp_path, "tensorrt")
    assert said.startswith(f"TensorRT: got tensorrt at {tmp_path / 'tensorrt'} without a TensorRT (installed: ")


def test_find_prefers_tensorrt_and_falls_back(tmp_path: Path) -> None:
    """None means TensorRT where it works, else TensorRT-RTX."""
    fake(tmp_path, "tensorrt", "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    assert found(tmp_path) == "tensorrt_rtx"
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '10.0'\nclass Builder: ...\nclass ILogger: ...\n")
    assert found(tmp_path) == "tensorrt"


def test_find_names_both_flavours_where_neither_works(tmp_path: Path) -> None:
    """Each broken package gets its reason, each flavour its line."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        fake(tmp_path, name, f"raise ImportError('{name} is broken')")
    said = found(tmp_path)
    assert said.startswith(
        "TensorRT or TensorRT-RTX: got tensorrt that can't be loaded: 'tensorrt is broken'; "
        "tensorrt_rtx that can't be loaded: "
        "'tensorrt_rtx is broken'; tensorrt_rtx_bindings that can't be loaded: "
        "'tensorrt_rtx_bindings is broken' (installed: "
    )
    assert said.endswith(
        "); expected an installed one; `pip install 'torch2engine[tensorrt]'` or `pip install 'torch2engine[rtx]'`"
    )


def test_has_answers_for_classes_and_members(rt: TensorRT) -> None:
    """Features are asked for by name."""
    assert rt.has("IRuntimeCache")
    assert rt.has("IRuntimeConfig.cuda_graph_strategy")
    assert not rt.has("Builder.build_engine")
    assert not rt.has("NoSuchClass.member")


def test_dtypes_go_both_ways(rt: TensorRT) -> None:
    """Every dtype of the table exists in the bindings and comes back under its own name."""
    for name in DTYPES:
        assert rt.dtype_name(rt.dtype(name)) == name
    assert rt.dtype("float64") is None
    assert set(IO_DTYPES) < set(DTYPES)


def test_log_keeps_the_last_lines() -> None:
    """Old lines go, verbose ones are not kept, and a mark divides before from after."""
    log = Log()
    for number in range(300):
        log.record("WARNING", f"line {number}")
    mark = log.mark()
    log.record("VERBOSE", "chatter")
    log.record("ERROR", "bad")
    log.record("INFO", "by the way")
    assert log.lines(mark) == ("bad",)
    assert log.lines(mark, logging.INFO) == ("bad", "by the way")
    assert len(log.lines(level=logging.INFO)) == 200
    assert log.lines()[0] == "line 102"


def test_log_passes_lines_on_with_their_severity(caplog: pytest.LogCaptureFixture) -> None:
    """An application hears TensorRT through Python's logging; at INFO only what matters."""
    log = Log()
    with caplog.at_level(5, "torch2engine.tensorrt"):
        for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
            log.record(severity, severity.lower())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("CRITICAL", "internal_error"),
        ("ERROR", "error"),
        ("WARNING", "warning"),
        ("DEBUG", "info"),
        ("Level 5", "verbose"),
    ]


def test_logger_carries_tensorrts_own_lines(rt: TensorRT) -> None:
    """What the real library logs arrives in the log."""
    mark = rt.log.mark()
    builder: Builder = rt.api.Builder(rt.logger)
    network: INetworkDefinition = builder.create_network(0)
    parser: OnnxParser = rt.api.OnnxParser(network, rt.logger)
    assert not parser.parse(b"no model")
    assert any("ONNX" in line for line in rt.log.lines(mark))


def test_tensorrt_prints_nothing_by_itself() -> None:
    """Without logging set up, TensorRT's warnings stay off the terminal."""
    code = "from torch2engine.trt.bindings import find_tensorrt as find; "
    code += "find('tensorrt_rtx').log.record('WARNING', 'shown?')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_pitfall_09_check_turns_none_and_false_into_errors(rt: TensorRT) -> None:
    """A refusal is an error with TensorRT's own lines, and only those since the mark."""
    rt.log.record("ERROR", "an older trouble")
    mark = rt.log.mark()
    rt.log.record("ERROR", "the reason")
    rt.log.record("WARNING", "not the reason")
    with pytest.raises(BuildError) as caught:
        check_return_value(None, "create_network", rt, since=mark, fix="try this")
    assert str(caught.value) == f"create_network: got None from {rt.title}; expected success; try this\n  the reason"
    assert caught.value.log == ("the reason",)
    with pytest.raises(ShapeError) as refused:
        check_return_value(False, "shape of 'x'", rt, error=ShapeError, since=mark)
    assert str(refused.value) == f"shape of 'x': got False from {rt.title}: the reason; expected success"


def test_check_passes_everything_else(rt: TensorRT) -> None:
    """Zero and empty values are answers, not failures."""
    for value in (True, 0, "", (), object()):
        assert check_return_value(value, "anything", rt) is value


class Thing:
    """Something whose end can be seen."""


def retired(running: CallLock) -> weakref.ref[Any]:
    """Something that nobody else knows, retired."""
    thing: Any = Thing()
    seen, objects = weakref.ref(thing), {"context": thing}
    del thing
    running.release_when_idle(objects)
    return seen


@pytest.mark.parametrize("exclusive", [False, True])
def test_retired_objects_go_at_once_when_nothing_runs(exclusive: bool) -> None:
    """What is retired while no thread runs is gone on return."""
    assert retired(CallLock(exclusive))() is None


def test_objects_retired_by_the_thread_that_runs_go_when_it_is_through() -> None:
    """A destructor amid a call of TensorRT's destroys nothing there, and waits for nothing."""
    running = CallLock(exclusive=True)
    with running:
        seen = retired(running)
        assert seen() is not None
    assert seen() is None


def test_retired_objects_go_in_order() -> None:
    """First in, first out, and so within each: a context goes before its engine."""
    running, gone = CallLock(exclusive=True), list[str]()
    with running:
        for group in ("ab", "cd"):
            things: dict[str, Any] = {name: Thing() for name in group}
            for name, thing in things.items():
                weakref.finalize(thing, gone.append, name)
            running.release_when_idle(things)
            del thing
        assert gone == []
    assert gone == ["a", "b", "c", "d"]


def test_retired_objects_wait_for_a_thread_that_runs() -> None:
    """A destructor never waits: what it retires while another thread runs goes when that one is through."""
    running = CallLock(exclusive=True)
    inside, leave = threading.Event(), threading.Event()

    def run() -> None:
        with running:
            inside.set()
            leave.wait(600)

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait(600)
    seen = retired(running)
    assert seen() is not None
    leave.set()
    thread.join()
    assert seen() is None

"""`torch2engine.builder.child_process`: a builder that crashes, is killed or prints is an error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import onnx_models
from torch2engine.builder.child_process import compile_in_child
from torch2engine.builder.plan import PlanRequest
from torch2engine.builder.source import resolve_source
from torch2engine.core.errors import BuildError, InstallationError


@pytest.fixture
def request_for(tmp_path: Path) -> Iterator[Callable[[str], PlanRequest]]:
    """Requests to a pretended `tensorrt` package, whose code is run where it would be imported."""
    source = resolve_source(onnx_models.relu(tmp_path), {"batch": (1, 8, 32)}, None)
    sys.path.insert(0, str(tmp_path))

    def make(code: str) -> PlanRequest:
        (tmp_path / "tensorrt.py").write_text(code)
        return PlanRequest(
            onnx_path=str(source.artifact.onnx_path),
            plan_path=str(tmp_path / "model.plan"),
            signature=source.signature,
            profiles=source.profiles,
            precision="fp32",
            flavour="tensorrt",
        )

    yield make
    sys.path.remove(str(tmp_path))


def failure(request: PlanRequest) -> BuildError:
    """The BuildError of a request."""
    with pytest.raises(BuildError) as caught:
        compile_in_child(request, lambda phase, step, steps: None)
    return caught.value


def test_a_crash_is_a_build_error_with_what_was_printed(request_for: Callable[[str], PlanRequest]) -> None:
    """A segmentation fault in TensorRT names the signal and quotes the last words."""
    error = failure(
        request_for("import os, signal\nos.write(1, b'last words\\n')\nos.kill(os.getpid(), signal.SIGSEGV)")
    )
    assert str(error) == (
        "TensorRT build: got the end of the builder process by SIGSEGV; expected a plan; build parts "
        "of the model to find the operation that TensorRT fails on, or use another TensorRT "
        "version\n  last words"
    )
    assert not error.out_of_memory


def test_a_kill_by_the_system_is_named_as_memory(request_for: Callable[[str], PlanRequest]) -> None:
    """SIGKILL is what the kernel sends when host memory runs out."""
    error = failure(request_for("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    assert str(error) == (
        "TensorRT build: got the end of the builder process by SIGKILL; expected a plan; the system "
        "kills what takes too much host memory: give it more"
    )
    assert error.out_of_memory


def test_an_exit_is_a_build_error_with_its_status(request_for: Callable[[str], PlanRequest]) -> None:
    """A library that ends the process takes nobody else along."""
    assert str(failure(request_for("import os\nos._exit(3)"))) == (
        "TensorRT build: got the end of the builder process with status 3; expected a plan; see the "
        "lines below for the cause"
    )


def test_an_unexpected_exception_arrives_with_its_traceback(request_for: Callable[[str], PlanRequest]) -> None:
    """A bug in the builder's process is told where it happened."""
    error = failure(request_for("raise KeyError('odd')"))
    assert str(error).startswith(
        "TensorRT build: got a failure of the builder process: KeyError: 'odd'; expected a plan; "
    )
    assert error.log[-1] == "KeyError: 'odd'"
    assert any("tensorrt.py" in line for line in error.log)


def test_host_memory_that_runs_out_is_named(request_for: Callable[[str], PlanRequest]) -> None:
    """MemoryError, which std::bad_alloc becomes, is out of memory."""
    error = failure(request_for("raise MemoryError('std::bad_alloc')"))
    assert error.out_of_memory
    assert str(error).startswith(
        "TensorRT build: got a builder process out of host memory; expected a plan; give it more host memory\n"
    )


def test_prints_do_not_disturb_the_answer(request_for: Callable[[str], PlanRequest]) -> None:
    """Whatever libraries write to stdout, the typed error still arrives, and nothing on the caller's terminal."""
    code = "import os, sys\nprint('{', flush=True)\nos.write(1, b'}{')\nraise OSError('no library')"
    with pytest.raises(InstallationError) as caught:
        compile_in_child(request_for(code), lambda phase, step, steps: None)
    assert str(caught.value).startswith("TensorRT: got tensorrt that can't be loaded: 'no library' (installed: ")


def test_prints_stay_off_the_terminal(
    request_for: Callable[[str], PlanRequest], capfd: pytest.CaptureFixture[str]
) -> None:
    """TensorRT's own prints appear in errors alone."""
    failure(request_for("import os\nos.write(1, b'noise')\nos.write(2, b'noise')\nos._exit(3)"))
    assert capfd.readouterr() == ("", "")


def test_request_survives_the_way_to_the_child(request_for: Callable[[str], PlanRequest]) -> None:
    """Every field comes back as it went."""
    request = request_for("")
    assert PlanRequest.from_json(request.to_json()) == request


def test_no_interpreter_is_a_build_error(
    request_for: Callable[[str], PlanRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Python is embedded and has no executable the error says so."""
    monkeypatch.setattr(sys, "executable", "")
    assert str(failure(request_for(""))) == (
        "TensorRT build: got an empty sys.executable; expected the path of Python; build in a plain Python interpreter"
    )

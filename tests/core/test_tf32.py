"""`NVIDIA_TF32_OVERRIDE` is right where TensorRT reads it, and afterwards as the user left it."""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from torch2engine.core.tf32 import builder_environment, float32_arithmetic

VARIABLE = "NVIDIA_TF32_OVERRIDE"
USER_VALUES = [None, "0", "1"]

_getenv = ctypes.CDLL(None).getenv
_getenv.restype = ctypes.c_char_p


def c_value() -> str | None:
    """The variable as a library reads it."""
    value = _getenv(VARIABLE.encode())
    return None if value is None else value.decode()


def set_user_value(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)


@pytest.mark.parametrize("user_value", USER_VALUES)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_builder_gets_the_variable_unless_tf32_is_asked_for(
    precision: str, user_value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder's environment is this process's, with the variable that its precision needs."""
    set_user_value(monkeypatch, user_value)
    environment = builder_environment(precision)
    assert environment.pop(VARIABLE, None) == (None if precision == "tf32" else "0")
    assert environment == {name: value for name, value in os.environ.items() if name != VARIABLE}
    assert (os.environ.get(VARIABLE), c_value()) == (user_value, user_value)


@pytest.mark.parametrize("user_value", USER_VALUES)
@pytest.mark.parametrize(("precision", "value"), [("fp32", "0"), ("tf32", None), ("fp16", "0")])
def test_variable_is_set_for_a_context_and_restored(
    precision: str, value: str | None, user_value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C reads the precision's value in the body, and the user's value afterwards, also after an error."""
    set_user_value(monkeypatch, user_value)
    with float32_arithmetic(precision):
        assert (os.environ.get(VARIABLE), c_value()) == (user_value, value)
    assert (os.environ.get(VARIABLE), c_value()) == (user_value, user_value)
    with pytest.raises(ValueError, match="no context"), float32_arithmetic(precision):
        raise ValueError("no context")
    assert (os.environ.get(VARIABLE), c_value()) == (user_value, user_value)


@pytest.mark.parametrize("user_value", USER_VALUES)
def test_threads_that_create_contexts_never_see_each_others_value(
    user_value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads want both values in turn, while another one copies `os.environ`, which never changes."""
    set_user_value(monkeypatch, user_value)
    stop, copies = threading.Event(), list[str | None]()

    def copy_environment() -> None:
        while not stop.is_set():
            copies.append(dict(os.environ).get(VARIABLE))

    def create_contexts(number: int) -> list[tuple[str, str | None]]:
        answers: list[tuple[str, str | None]] = []
        for turn in range(200):
            precision = ("fp32", "tf32")[(number + turn) % 2]
            with float32_arithmetic(precision):
                answers.append((precision, c_value()))
        return answers

    reader = threading.Thread(target=copy_environment)
    reader.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            seen = [answer for answers in pool.map(create_contexts, range(8)) for answer in answers]
    finally:
        stop.set()
        reader.join()
    assert set(seen) == {("fp32", "0"), ("tf32", None)}
    assert set(copies) == {user_value}
    assert c_value() == user_value

"""The suite for hosts with two GPUs: the GPU suite's fixtures and evidence, with its own tests."""

from __future__ import annotations

from tests.gpu.conftest import (  # noqa: F401  # pytest finds fixtures and hooks by these names
    _convolves_in_float32,
    _runners_threads_are_harmless,
    _seeded,
    figure,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)

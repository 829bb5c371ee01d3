"""The suite for hosts with two GPUs: the GPU suite's fixtures and evidence, with its own tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_GPU = Path(__file__).resolve().parent.parent / "gpu"
sys.path.insert(0, str(_GPU))
_spec = importlib.util.spec_from_file_location("gpu_suite", _GPU / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
gpu_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gpu_suite)

pytest_addoption = gpu_suite.pytest_addoption
pytest_configure = gpu_suite.pytest_configure
pytest_collection_modifyitems = gpu_suite.pytest_collection_modifyitems

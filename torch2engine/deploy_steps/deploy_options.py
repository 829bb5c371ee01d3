"""The keyword arguments of deploy() that do not decide what it returns, for its overloads.

Enters: nothing. Leaves: a TypedDict for type checkers and editors. Separate so that each overload of deploy() shows
only the arguments that decide the type of its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn
from typing_extensions import TypeVar

from torch2engine.artifact.engine_cache import Cache
from torch2engine.core.config import BuildConfig, Precision, Profiles, RuntimeConfig, Tolerances
from torch2engine.core.precisions import PrecisionName
from torch2engine.core.progress import Progress
from torch2engine.core.spec import Preprocess

__all__ = ["DeployOptions", "Model"]

Model = TypeVar("Model", bound=nn.Module, default=Any)  # a recording does not tell the type of its model


class DeployOptions(TypedDict, total=False):
    """Options of `deploy`, which its docstring explains; a test compares both lists."""

    precision: PrecisionName | Precision
    calibration: Iterable[Any] | None
    profiles: Profiles | None
    examples: Iterable[Any] | None
    tolerance: Tolerances | None
    config: BuildConfig
    runtime_config: RuntimeConfig
    cache: Cache
    cache_key: str | None
    progress: Progress
    preprocess: Preprocess | Mapping[str, Preprocess] | None
    live_parameters: Sequence[str]

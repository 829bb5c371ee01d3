"""The options of torch.compile(backend="torch2engine", options={...}), checked.

Enters: the Mapping that the user gave. Leaves: `CompileOptions`, or an error that lists what is valid. Separate so that
each option exists once, and a misspelt one is never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch2engine.artifact.engine_cache import Cache
from torch2engine.core.config import (
    RUNTIMES,
    BuildConfig,
    Precision,
    Runtime,
    RuntimeConfig,
    Tolerance,
    is_count,
    require_choice,
    require_instance,
)
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import PrecisionName
from torch2engine.core.wording import did_you_mean

__all__ = ["CompileOptions"]

WEIGHT_POLICIES = ("compared", "versioned")


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """How graphs of torch.compile become engines.

    Args:
        runtime: "tensorrt", "onnxruntime", or "auto": TensorRT for tensors on a GPU, ONNX Runtime on the CPU.
        precision, tolerance, config, runtime_config, cache: as for `deploy`, for every graph.
        min_nodes: the least number of operators that are worth an engine; smaller graphs stay in PyTorch.
        weights: how new weights are seen. "compared": by all their values at every call, which reads every weight and
            waits for the GPU; nothing is missed. "versioned": by identity, address and autograd's version: as fast as
            can be, and sees optimizers, load_state_dict and new tensors, but no write through `.data`.
        only_faster: time each engine beside PyTorch, at its first call, and leave its graph in PyTorch if it is slower.
            The look at the weights is part of the engine's time; what torch.compile takes around the graphs is not:
            `compile_if_faster` times whole calls.

    Raises:
        InputError: an unknown option or value.
    """

    runtime: Runtime = "auto"
    precision: PrecisionName | Precision = "fp32"
    tolerance: Tolerance | None = None
    config: BuildConfig = BuildConfig()
    runtime_config: RuntimeConfig = RuntimeConfig()
    cache: Cache = True
    min_nodes: int = 3
    weights: str = "compared"
    only_faster: bool = False

    def __post_init__(self) -> None:
        require_choice("options['runtime']", self.runtime, RUNTIMES)
        Precision.of(self.precision)
        if self.tolerance is not None:
            require_instance("options['tolerance']", self.tolerance, Tolerance)
        require_instance("options['config']", self.config, BuildConfig)
        require_instance("options['runtime_config']", self.runtime_config, RuntimeConfig)
        require_choice("options['weights']", self.weights, WEIGHT_POLICIES)
        require_choice("options['only_faster']", self.only_faster, (False, True))
        if not is_count(self.min_nodes):
            raise InputError(
                "options['min_nodes']", got=repr(self.min_nodes), allowed="a positive int", fix="pass such a value"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any] | None) -> CompileOptions:
        """Check the options of a call of torch.compile.

        Raises:
            InputError: an unknown option, with the one that was probably meant, or an unknown value.
        """
        known = [one.name for one in fields(cls)]
        given = dict(options or {})
        for name in given:
            if name not in known:
                raise InputError(
                    f"options[{name!r}]",
                    got="no such option",
                    allowed=f"one of {', '.join(known)}",
                    fix=did_you_mean(name, known) or "use one of these names",
                )
        return cls(**given)

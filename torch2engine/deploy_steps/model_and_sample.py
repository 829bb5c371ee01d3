"""The model and the sample of one deploy(): from its arguments, or from a recording in the place of the model.

Enters: arguments as the user gave them. Leaves: a `ModelAndSample`. Separate because deploy() and its fallback read the
same arguments, and nothing after them depends on where a model and its sample come from.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.capture.examples import read_examples
from torch2engine.capture.recording import Recording
from torch2engine.core.config import Profiles
from torch2engine.core.spec import Preprocess

__all__ = ["ModelAndSample"]


@dataclass(frozen=True)
class ModelAndSample:
    """A model, and a sample of its calls, as the user gave them; apart from the examples, nothing is checked yet.

    Args:
        model: the user's model.
        sample_input, dynamic_axes, profiles, preprocess: as for deploy().
        examples: real inputs to be compared on; None for invented ones.
        live_parameters: patterns over the names of parameters and buffers.
    """

    model: Any
    sample_input: Any = None
    dynamic_axes: Mapping[str, Any] | None = None
    profiles: Profiles | None = None
    preprocess: Preprocess | Mapping[str, Preprocess] | None = None
    examples: tuple[Any, ...] | None = None
    live_parameters: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        model: Any,
        sample_input: Any,
        dynamic_axes: Mapping[str, Any] | None,
        profiles: Profiles | None,
        preprocess: Preprocess | Mapping[str, Preprocess] | None,
        examples: Iterable[Any] | None,
        live_parameters: Sequence[str] = (),
    ) -> ModelAndSample:
        """Take these arguments of deploy(); a `Recording` gives those that the user left out.

        The examples are read now, once.

        Raises:
            InputError: no example in `examples`, or a recording without a usable call.
        """
        if isinstance(model, Recording):
            return cls(
                model=model.model,
                sample_input=model.sample_input if sample_input is None else sample_input,
                dynamic_axes=model.axes_with(dynamic_axes),
                profiles=profiles,
                preprocess=preprocess,
                examples=read_examples(model.examples or None if examples is None else examples),
                live_parameters=live_parameters,
            )
        read = read_examples(examples)
        return cls(model, sample_input, dynamic_axes, profiles, preprocess, read, live_parameters)

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, Any]) -> ModelAndSample:
        """Take them from all arguments of deploy(), by name; see `of`."""
        names = inspect.signature(cls.of).parameters
        return cls.of(**{name: arguments[name] for name in names})

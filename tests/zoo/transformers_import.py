"""transformers' models by name, whatever version of it is installed.

Enters: the names of a model and of its configuration, and the configuration's values. Leaves: the model. Apart because
a version may lack a model, which is no fault of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from tests.zoo.entry import AbsentModelError
from tests.zoo.torchvision_import import import_torchvision

__all__ = ["make_config", "make_model"]


def make_config(name: str, options: Mapping[str, Any]) -> Any:
    """A configuration.

    Raises:
        AbsentModelError: transformers has none of this name.
    """
    return _named(name)(**options)


def make_model(model: str, config: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of a configuration.

    Raises:
        AbsentModelError: transformers lacks one of the two.
    """
    return _named(model)(make_config(config, options))


def _named(name: str) -> Any:
    with contextlib.suppress(ImportError):  # transformers imports it where it is installed
        import_torchvision()
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise AbsentModelError(f"transformers {transformers.__version__} has no {name}")
    return found

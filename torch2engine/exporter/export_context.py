"""torch and its libraries, changed for the time of one export.

Enters: the model, inside `undisturbed`. Leaves: a body that traces and translates it; afterwards all is as before.
Separate because both exports of this folder need the same changes, in the same order.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from torch2engine.exporter.box_suppression import suppression_without_branches
from torch2engine.exporter.composite_kernels import composite_kernels_made_once
from torch2engine.exporter.composite_operators import composite_operators_found_once
from torch2engine.exporter.fake_quant import quantizers_as_operators
from torch2engine.exporter.given_masks import masks_as_given
from torch2engine.exporter.quiet_exporters import quiet_exporters
from torch2engine.exporter.size_arithmetic import size_arithmetic_remembered

__all__ = ["export_context"]


@contextmanager
def export_context(model: nn.Module) -> Generator[str]:
    """Let the body export a model quickly and silently.

    Masks are as they are given; quantisers, and the suppression of boxes, are single operators.

    Yields:
        the precision of the model's own quantisers; "" for a model without them.
    """
    with (
        composite_operators_found_once(),
        composite_kernels_made_once(),
        size_arithmetic_remembered(),
        quiet_exporters(),
        masks_as_given(),
        suppression_without_branches(),
        quantizers_as_operators(model) as quantized_precision,
    ):
        yield quantized_precision

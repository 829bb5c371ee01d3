"""A float32 ONNX model → the same in float16 or bfloat16, by NVIDIA ModelOpt's AutoCast.

Enters: the model, how large its tensors become, and the nodes that stay in float32. Leaves: a typed model, which every
flavour builds as it is. Separate because this file chooses the nodes, and AutoCast inserts the casts.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.core.precisions import PRECISION_TYPES
from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_origins, restore_origins
from torch2engine.onnx_graph.tensor_shapes import restore_shapes
from torch2engine.precision.graph.modelopt import quiet_modelopt

__all__ = ["cast_graph", "nodes_out_of_range"]

# AutoCast (0.47) leaves branches as they are, and writes loops that no reader takes.
_CONTROL_FLOW = ("If", "Loop", "Scan")


def nodes_out_of_range(source: Path, precision: str, maxima: Mapping[str, float]) -> dict[str, float]:
    """Find the nodes that must stay in float32 because one of their tensors becomes too large.

    Args:
        source: the float32 model.
        precision: "fp16" or "bf16"; others have no limit.
        maxima: largest absolute value by tensor.

    Returns:
        node name -> the largest absolute value among its tensors.
    """
    limit = PRECISION_TYPES[precision].largest_kept
    largest_of_node: dict[str, float] = {}
    for node in load_model(source).graph.node:
        largest = max((maxima.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if largest > limit:
            largest_of_node[node.name] = largest
    return largest_of_node


def cast_graph(
    source: Path, target: Path, precision: str, *, float32_nodes: Collection[str] = (), low_io: bool = False
) -> None:
    """Write the model in a 16-bit type.

    Args:
        source: the float32 model.
        target: the file to write, under the same names; nodes keep their names and origins.
        precision: "fp16" or "bf16".
        float32_nodes: names of nodes that stay in float32, besides those whose constants don't fit.
        low_io: give float32 inputs and outputs the type too.

    Raises:
        InstallationError: no ModelOpt.
        ExportError: it failed.
    """
    original = load_model(source)
    with quiet_modelopt(f"precision '{precision}'"):
        autocast: Any = importlib.import_module("modelopt.onnx.autocast")
        typed = autocast.convert_to_mixed_precision(
            str(source),
            low_precision_type=precision,
            nodes_to_exclude=[f"{re.escape(name)}$" for name in float32_nodes],
            op_types_to_exclude=list(_CONTROL_FLOW),
            data_max=np.inf,  # `float32_nodes` come from real data already
            keep_io_types=not low_io,
        )
    restore_origins(typed, node_origins(original))
    restore_shapes(typed, original)
    save_model(typed, target, keep_shapes=True)

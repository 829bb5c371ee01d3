"""A float32 ONNX model → the same in float16 or bfloat16, by NVIDIA ModelOpt's AutoCast.

Enters: the model, how large its tensors become, and the nodes that stay in float32. Leaves: a typed model, which every
flavour builds as it stands. A room of its own because here nodes are told apart, and AutoCast puts the casts between.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torch2engine.onnx_graph.model_file import load_model, save_model
from torch2engine.onnx_graph.node_origins import node_origins, restore_origins
from torch2engine.precision.graph.modelopt import quiet_modelopt

__all__ = ["LARGEST", "cast", "out_of_range"]

# fp16: an eighth of 65504, since other data may be larger than what was seen; AutoCast's own 512 would leave the
# residual stream of trained transformers in float32, although its rounding is relative. bf16: what rounds to infinity,
# as float32's lowest value does, with which masks are made.
LARGEST = {"fp16": 8188.0, "bf16": 3.38e38}
# AutoCast (0.47) leaves branches as they are, and writes loops that no reader takes.
_CONTROL_FLOW = ("If", "Loop", "Scan")


def out_of_range(source: Path, dtype: str, maxima: Mapping[str, float]) -> dict[str, float]:
    """The nodes that must stay in float32 because a tensor of theirs becomes too large: name -> its absolute value.

    Args:
        source: the float32 model.
        dtype: "fp16" or "bf16"; with another none is.
        maxima: largest absolute value by tensor.
    """
    if dtype not in LARGEST:
        return {}
    found: dict[str, float] = {}
    for node in load_model(source).graph.node:
        largest = max((maxima.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if largest > LARGEST[dtype]:
            found[node.name] = largest
    return found


def cast(source: Path, target: Path, dtype: str, *, keep: Collection[str] = (), low_io: bool = False) -> None:
    """Write the model in a 16-bit type.

    Args:
        source: the float32 model.
        target: where the typed one goes, under the same names; nodes keep their names and origins.
        dtype: "fp16" or "bf16".
        keep: names of nodes that stay in float32, besides those whose constants don't fit.
        low_io: give float32 inputs and outputs the type too.

    Raises:
        InstallationError: no ModelOpt.
        ExportError: it failed.
    """
    known = node_origins(load_model(source))
    with quiet_modelopt(f"precision '{dtype}'"):
        autocast: Any = importlib.import_module("modelopt.onnx.autocast")
        typed = autocast.convert_to_mixed_precision(
            str(source),
            low_precision_type=dtype,
            nodes_to_exclude=[f"{re.escape(name)}$" for name in keep],
            op_types_to_exclude=list(_CONTROL_FLOW),
            data_max=np.inf,  # `keep` has been found on real data
            keep_io_types=not low_io,
        )
    restore_origins(typed, known)
    save_model(typed, target)

"""An ONNX file in the spelling that every importer of TensorRT reads.

Enters: an ONNX model. Leaves: the model to parse instead, or nothing. Separate because each known fault of an importer
is a row of one table. The file itself stays as it is, valid ONNX for every other reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.onnx_graph.walk import walk_model_nodes

__all__ = ["IMPORTER_FAULTS", "ImporterFault", "importer_form"]


@dataclass(frozen=True)
class ImporterFault:
    """An attribute whose values some importer misreads without an error.

    Args:
        operator: the ONNX operator.
        attribute: a text attribute of it.
        spellings: a value of ONNX's -> the one that every importer reads in the same sense.
        seen: the importer with its version, and what it does wrong.
    """

    operator: str
    attribute: str
    spellings: Mapping[str, str]
    seen: str


IMPORTER_FAULTS = (
    ImporterFault(
        "GridSample",
        "mode",
        {"linear": "bilinear", "cubic": "bicubic"},  # the names before opset 20
        "onnx-tensorrt 10.1 reads the names of opset 20 as nearest; TensorRT-RTX 1.6 reads both names",
    ),
)


def importer_form(model: Any, folder: Path) -> Any | None:
    """Respell the attributes that an importer may misread, in place.

    Args:
        model: a ModelProto.
        folder: where its external data lie; none are read.

    Returns:
        the model; None if every importer reads it as it was.
    """
    del folder
    changes = [_respell(node, fault) for node in walk_model_nodes(model) for fault in IMPORTER_FAULTS]
    return model if any(changes) else None


def _respell(node: Any, fault: ImporterFault) -> bool:
    """Respell a node's attribute in place; tell whether anything changed."""
    if node.op_type != fault.operator or node.domain not in ("", "ai.onnx"):
        return False
    for attribute in node.attribute:
        spelling = fault.spellings.get(attribute.s.decode()) if attribute.name == fault.attribute else None
        if spelling is not None:
            attribute.s = spelling.encode()
            return True
    return False

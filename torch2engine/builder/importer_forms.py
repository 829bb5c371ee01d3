"""An ONNX file in the spelling that every importer of TensorRT reads.

Enters: the path of an ONNX file. Leaves: the bytes to parse instead, or nothing. Separate because each known fault of
an importer is a row of one table. The file itself stays as it is, valid ONNX for every other reader.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch2engine.onnx_graph.walk import walk_nodes

__all__ = ["IMPORTER_FAULTS", "ImporterFault", "importer_form", "mentions_any"]


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


def importer_form(path: Path) -> bytes | None:
    """Respell the attributes that an importer may misread.

    Args:
        path: the ONNX file; its external data stay beside it.

    Returns:
        the model to parse in its place; None for a file that every importer reads as it is.
    """
    if not mentions_any(path, [fault.operator for fault in IMPORTER_FAULTS]):
        return None
    import onnx  # imported only here: it takes long to load, and most models don't need it

    model: Any = onnx.load(str(path), load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    changes = [_respell(node, fault) for node in walk_nodes(nodes) for fault in IMPORTER_FAULTS]
    return model.SerializeToString() if any(changes) else None


def mentions_any(path: Path, operators: Iterable[str]) -> bool:
    """Tell whether a file has one of these words anywhere."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(operator.encode()) >= 0 for operator in operators)


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

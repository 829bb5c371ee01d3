"""TensorRT's lines of a failed build → the nodes of the ONNX graph that they name.

Enters: the ONNX file and the lines. Leaves: nodes with their torch module and source line. Separate because a network
that was parsed knows nothing of the user's model, and onnx is loaded only after a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch2engine.core.errors import UnsupportedNode
from torch2engine.onnx_graph.node_origins import origin_of

__all__ = ["blamed_nodes"]

_WORD = re.compile(r"[\w./]+")


def blamed_nodes(path: Path, lines: Iterable[str]) -> list[UnsupportedNode]:
    """Find the nodes of the main graph that the lines name, by their own name or by a weight that they read.

    Args:
        path: the ONNX file.
        lines: TensorRT's.

    Returns:
        the nodes that have an origin, in the graph's order; none where the lines name no node.
    """
    import onnx  # only here: it takes long to load

    graph: Any = onnx.load(str(path), load_external_data=False).graph
    words = {word for line in lines for word in _WORD.findall(line)}
    weights = words & {weight.name for weight in graph.initializer}
    blamed = [node for node in graph.node if node.name in words or not weights.isdisjoint(node.input)]
    origins = [(node, origin_of(node)) for node in blamed]
    return [
        UnsupportedNode(node.op_type, node.name, origin.module, origin.source, "")
        for node, origin in origins
        if origin.source
    ]

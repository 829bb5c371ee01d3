"""What Triton's Python backend runs in `triton_server`: the model.onnx beside this file, by ONNX Runtime.

Enters: the requests that Triton has merged. Leaves: their answers. Separate because Triton loads it as a file of its
own, by a Python that looks for packages in its own places alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402  # pyright: ignore[reportMissingImports]  # Triton brings it


class TritonPythonModel:
    """By this name, Triton finds it."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Open the graph."""
        path = Path(__file__).with_name("model.onnx")
        self._session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests in one run of the graph."""
        # By DLPack: the backend's own conversion, built for numpy 1, loses all bytes with numpy 2.
        parts = [
            [np.from_dlpack(triton.get_input_tensor_by_name(one, name)) for name in self._inputs] for one in requests
        ]
        whole = [np.concatenate(column) for column in zip(*parts, strict=True)]
        answers = self._session.run(self._outputs, dict(zip(self._inputs, whole, strict=True)))
        responses = []
        first = 0
        for part in parts:
            rows = slice(first, first + len(part[0]))
            first = rows.stop
            own = zip(self._outputs, answers, strict=True)
            tensors = [triton.Tensor.from_dlpack(name, array[rows].copy()) for name, array in own]
            responses.append(triton.InferenceResponse(tensors))
        return responses

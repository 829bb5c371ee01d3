"""A fresh process's first answer without PyTorch: `python -m benchmarks.processor_start BEGAN FOLDER INPUT ANSWER`.

Enters: when its parent started it, by time.time(); an artifact's folder; an input as .npy. Leaves: seconds of each step
as JSON on the last line, and the answer as .npy, for the parent to judge. Apart because only a process that has done
nothing yet can be timed. PyTorch and ONNX can't be imported in it.
"""

from __future__ import annotations

import sys
import time

STARTED = time.time()


class _Block:
    """Makes imports fail."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("torch", "onnx", "onnxruntime", "onnxscript"):
            raise ImportError(f"{name} is not to be imported here")


sys.meta_path.insert(0, _Block())  # type: ignore[arg-type]  # a finder needs no more than find_spec

import json  # noqa: E402

import numpy as np  # noqa: E402

import torch2engine as t2e  # noqa: E402
from torch2engine.trt.bindings import find_tensorrt  # noqa: E402


def main(began: str, folder: str, given: str, answer: str) -> None:
    kind = t2e.Processor  # imports its room
    find_tensorrt()  # imports TensorRT
    imported = time.time()
    x = np.load(given)
    processor = kind(folder)
    loaded = time.time()
    (result,) = processor.infer(x).values()
    done = time.time()
    np.save(answer, result)
    steps = {"python_s": STARTED - float(began), "import_s": imported - STARTED, "load_s": loaded - imported}
    print(json.dumps({**steps, "first_answer_s": done - loaded, "start_s": done - float(began)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

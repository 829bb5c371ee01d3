"""A fresh process's first answer from a saved engine: `python -m benchmarks.start FOLDER INPUTS ANSWER`.

Enters: an artifact's folder and a file of inputs by name. Leaves: seconds of each step as JSON on the last line, and
the answer in a file, for the parent to judge. Apart because only a process that has done nothing yet can be timed.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402

import torch2engine as t2e  # noqa: E402
from torch2engine.trt.bindings import find_tensorrt  # noqa: E402


def main(folder: str, inputs: str, answer: str) -> None:
    load = t2e.load  # imports its room
    find_tensorrt()  # imports TensorRT
    imported = time.perf_counter()
    asked = torch.load(inputs, weights_only=True, map_location="cuda")
    torch.cuda.synchronize()
    ready = time.perf_counter()
    with torch.no_grad():
        y = load(folder)(**asked)
    torch.cuda.synchronize()
    done = time.perf_counter()
    torch.save(y.cpu(), answer)
    print(json.dumps({"import_s": imported - STARTED, "cuda_init_s": ready - imported, "start_s": done - ready}))


if __name__ == "__main__":
    main(*sys.argv[1:])

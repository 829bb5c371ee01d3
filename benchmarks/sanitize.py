"""A short run of a saved engine for compute-sanitizer: `python -m benchmarks.sanitize FOLDER EXAMPLES`.

Enters: an artifact's folder, and inputs with their answers in a file. Leaves: the number of calls and of wrong answers
as JSON on the last line. Apart because the sanitizer slows every kernel down: here the engine's are nearly the only
ones, answers are judged on the CPU, and the parent has done the rest.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading

import torch

import torch2engine as t2e

BOUNDS = {"rtol": 2e-2, "atol": 2e-2}
CALLS = 8  # of each thread
CONFIGS = (
    t2e.RuntimeConfig(cuda_graphs=True, contexts=2),
    t2e.RuntimeConfig(cuda_graphs=True, output="static"),
    t2e.RuntimeConfig(cuda_graphs=False, streams=1),
)


def main(folder: str, examples: str) -> None:
    known = torch.load(examples, weights_only=True)
    wrong: list[bool] = []

    def work(module: t2e.TRTModule, stream: torch.cuda.Stream, seed: int) -> None:
        with torch.cuda.stream(stream), torch.no_grad():
            for x, y in itertools.islice(itertools.cycle(known[seed:] + known[:seed]), CALLS):
                wrong.append(not torch.allclose(module(x.cuda()).cpu(), y, **BOUNDS))

    for config in CONFIGS:
        module = t2e.load(folder, runtime_config=config)
        streams = (torch.cuda.default_stream(), torch.cuda.Stream())
        threads = [threading.Thread(target=work, args=(module, stream, seed)) for seed, stream in enumerate(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps({"calls": len(wrong), "wrong": sum(wrong)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

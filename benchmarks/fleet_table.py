"""The figures of docs/fleet.md, made from the evidence by `python -m benchmarks.table`.

Enters: processor.json, models.json and refit.json. Leaves: the text between the page's marks; nothing where one of them
does not exist. Separate because this is arithmetic on figures, where `table` shows them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import TableError, origin_of, read_evidence

__all__ = ["generate"]

BATCH = 32
IMAGE_BYTES = 224 * 224 * 3
LOAD = 0.7  # of what an engine can do, so that queues stay short
RATES = (20_000, 100_000, 500_000)


def generate(results: Path) -> str:
    """The text between the marks; "" without the evidence.

    Raises:
        TableError: evidence is there, but not the figure that is needed.
    """
    found = {name: read_evidence(results / f"{name}.json") for name in ("processor", "models", "refit")}
    if None in found.values():
        return ""
    figures = {name: evidence["figures"] for name, evidence in found.items() if evidence is not None}
    origins = [origin_of(evidence) for evidence in found.values() if evidence is not None]
    try:
        item_s = figures["processor"]["infer_stream_uint8.b32.ms"] / 1e3
        start_s = figures["processor"]["cold_start_s"]
        cold_s, warm_s, plan_mib = (
            figures["models"][f"resnet50.{name}"] for name in ("cold_start_s", "warm_start_s", "plan_mib")
        )
        refit_ms, deploy_s = (figures["refit"][f"resnet50.{name}"] for name in ("refit_ms", "deploy_s"))
    except KeyError as error:
        raise TableError(f"{error} is missing") from None
    rate = BATCH / item_s
    sentences = (
        f"ResNet-50 in half precision, images of {IMAGE_BYTES} bytes (224×224, uint8), batches of {BATCH}; measured "
        f"with {' and '.join(dict.fromkeys(origins))}:",
        "",
        f"- **One GPU** answers {rate:.0f} images a second, numpy in and numpy out. Its images are "
        f"{rate * IMAGE_BYTES / 1e9:.1f} GB/s to the GPU, and as many through the network of its host.",
        f"- **A process** without PyTorch has its first answer {start_s:.1f} s after its start. One with PyTorch has "
        f"it {cold_s:.1f} s after its imports or, with the kernels that `save` keeps, {warm_s:.1f} s. The plan has "
        f"{plan_mib:.0f} MiB.",
        f"- **New weights** by a refit take {refit_ms:.0f} ms for each engine; a deploy takes {deploy_s:.0f} s.",
        "",
    )
    return "\n".join([*sentences, *_sizes(rate)])


def _sizes(rate: float) -> Sequence[str]:
    rows = ["| images a second | GPUs, and a spare one | images alone | network |", "|--:|--:|--:|--:|"]
    for wanted in RATES:
        gpus = math.ceil(wanted / (LOAD * rate))
        gigabytes = wanted * IMAGE_BYTES / 1e9
        rows.append(f"| {wanted} | {gpus} + 1 | {gigabytes:.1f} GB/s | {8 * gigabytes:.0f} Gbit/s |")
    return rows

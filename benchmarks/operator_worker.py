"""One operator at a time: exported, compared on ONNX Runtime, built by TensorRT; what came of it.

Enters: lines of JSON on stdin, each an operator and whether its case is dynamic. Leaves: a line of JSON for each. Apart
because a case may crash its process or never end: `operators` starts another one then.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import torch

import torch2engine as t2e
from benchmarks.evidence import REPOSITORY
from benchmarks.operator_samples import OperatorCase, load_operators, make_case
from torch2engine.core.errors import DynamicAxisError, Torch2EngineError, UnsupportedOperatorError

__all__ = ["outcome_of"]

_LONGEST_DETAIL = 600
# Errors that repeat what another library said name no operator.
_OTHERS_ERROR = re.compile(r"\b\w+(Error|Exception):")
_OTHERS = ("ONNX Runtime", "TensorRT")


def outcome_of(case: OperatorCase) -> dict[str, str]:
    """Send a case down the road.

    Returns:
        "outcome": "right", "wrong", "refused" (a typed error that names operator or axis), or "untyped".
        "step": where it ended. "detail": what was said.
    """
    step = "export"
    try:
        with torch.no_grad():
            artifact = t2e.export(case.module, case.inputs, case.axes)
            step = "parity"
            report = t2e.check(case.module, artifact, case.inputs)
        if not report.passed:
            return _outcome("wrong", step, str(report))
        step = "build"
        t2e.build(artifact, cache=False)
    except (UnsupportedOperatorError, DynamicAxisError) as error:
        return _outcome("refused", step, str(error))
    except Torch2EngineError as error:
        repeats_others = error.subject.startswith(_OTHERS) or _OTHERS_ERROR.search(error.got)
        return _outcome("untyped" if repeats_others else "refused", step, f"{type(error).__name__}: {error}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _outcome("untyped", step, f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})")
    return _outcome("right", "", "")


def _outcome(outcome: str, step: str, detail: str) -> dict[str, str]:
    """An outcome; paths begin at the repository."""
    return {"outcome": outcome, "step": step, "detail": detail.replace(f"{REPOSITORY}/", "")[:_LONGEST_DETAIL]}


def _answer(operators: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    case = make_case(operators[request["operator"]], request["dynamic"])
    if case is None:
        return _outcome("none", "", "PyTorch has no sample that fits")
    return outcome_of(case)


def main() -> None:
    """Answer every line of stdin on what stdout was at the start; other prints go to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    operators = load_operators()
    answers.write(json.dumps({"operators": sorted(operators)}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(operators, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()

"""`benchmarks/operators.py`: its cases, its verdicts, and its figures, each on a few operators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import operator_table
from benchmarks.operator_samples import LOW, OperatorCase, load_operators, make_case, reason_to_refuse
from benchmarks.operator_worker import outcome_of
from benchmarks.operators import figures_of

X = torch.randn(4, 3)


class _Reading(nn.Module):
    """Looks into a tensor in Python."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float(x.sum()) > 0 else x


class _Failing(nn.Module):
    """Fails while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor:
            raise KeyError("lost")
        return x * 3.0


class _Drifting(nn.Module):
    """Answers otherwise while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (3.0 if type(x) is torch.Tensor else 2.0)


class _Function(nn.Module):
    """Calls one function of a tensor."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(torch, self.name)(x)


@pytest.mark.parametrize(
    ("module", "outcome", "step"),
    [
        (_Function("tanh"), "right", ""),
        (_Drifting(), "wrong", "parity"),
        (_Function("geqrf"), "refused", "export"),
        (_Reading(), "refused", "export"),
        (_Failing(), "untyped", "export"),
    ],
)
def test_outcome_of_a_case_is_what_the_road_says(module: nn.Module, outcome: str, step: str) -> None:
    """An engine, a wrong answer, a refusal by name, and a refusal that names no operator are told apart."""
    found = outcome_of(OperatorCase(module, (X,), {}))
    assert (found["outcome"], found["step"]) == (outcome, step)


# One of each family: what any of them needs from the exporter, from ONNX Runtime and from the builder.
PINNED = [
    "bitwise_xor",
    "cdist",
    "cummax",
    "fft.rfft2",
    "linalg.inv",
    "masked.var",
    "nn.functional.adaptive_max_pool2d",
    "nn.functional.avg_pool2d",
    "nn.functional.embedding_bag",
    "scatter_reduce.mean",
]


@pytest.mark.parametrize("operator", PINNED)
def test_operator_that_was_mended_stays_right(operator: str) -> None:
    """With a dynamic leading size, from PyTorch's sample to a plan."""
    case = make_case(load_operators()[operator], True)
    assert case is not None
    assert outcome_of(case) == {"outcome": "right", "step": "", "detail": ""}


def test_figures_count_what_can_never_pass_apart() -> None:
    """A factorisation lowers no share of passes, but its untyped error counts."""
    outcomes = {
        "add (static)": "right",
        "add (dynamic)": "right",
        "sum.dim (static)": "wrong",
        "cdist (static)": "refused",
        "median (static)": "timeout",
        "linalg.svd (static)": "refused",
        "linalg.qr (static)": "untyped",
    }
    figures = figures_of({name: {"outcome": outcome} for name, outcome in outcomes.items()})
    assert figures == {
        "operators.cases": 5,
        "operators.names": 4,
        "operators.pass_share": 0.4,
        "operators.refused": 1,
        "operators.never": 2,
        "operators.untyped": 2,
        "operators.wrong": 1,
    }


def test_cases_are_pytorchs_own_samples() -> None:
    """There are hundreds of operators; a dynamic case has an axis that PyTorch itself answers at other sizes."""
    operators = load_operators()
    assert len([name for name in operators if not reason_to_refuse(name)]) > 500
    case = make_case(operators["add"], True)
    assert case is not None
    axis = case.axes["tensors.0"][0]
    smaller = [tensor[:LOW] if f"tensors.{index}" in case.axes else tensor for index, tensor in enumerate(case.inputs)]
    assert case.module(*smaller).shape[0] == LOW == axis.min
    assert make_case(operators["linalg.tensorinv"], True) is None


def test_document_is_the_evidences_table(repository: Path) -> None:
    """docs/operators.md is the one that the committed JSON gives."""
    evidence = json.loads((repository / "benchmarks" / "results" / "operators.json").read_text(encoding="utf-8"))
    document = (repository / "docs" / "operators.md").read_text(encoding="utf-8")
    assert document == operator_table.generate(evidence)


def test_table_tells_what_is_refused_and_why() -> None:
    """In one row for an operator, and without the error's advice."""
    refused = {"outcome": "refused", "detail": "torch.onnx: got no | ONNX\n form; expected one; write another"}
    evidence = {
        "versions": {"torch": "2.13.0+cpu", "tensorrt_rtx": "1.6"},
        "figures": {"operators.cases": 3, "operators.pass_share": 0.5},
        "samples": {
            "outcomes": {"abs (static)": {"outcome": "right"}, "abs (dynamic)": refused, "qr (static)": refused},
            "never": {"qr": "an iterative factorisation"},
        },
    }
    assert operator_table.generate(evidence).splitlines()[-2:] == [
        "| `abs` | yes | refused | no \\| ONNX form |",
        "| `qr` | refused | – | an iterative factorisation |",
    ]

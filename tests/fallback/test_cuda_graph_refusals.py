"""Which operators in PyTorch let a CUDA graph hold a whole program; read from graphs, without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.support.fallback_models import raise_by, split
from torch2engine.fallback.cuda_graph_refusals import reason_against_capture


@torch.library.custom_op("torch2engine_test::unsafe", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def unsafe(x: torch.Tensor) -> torch.Tensor:
    """An operator that says that no CUDA graph may hold it."""
    return x.clone()


unsafe.register_fake(torch.empty_like)


class _Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def reason(function: Callable[[torch.Tensor], torch.Tensor], is_forced: bool = True) -> str:
    """The reason against a function of a [4, 4] of floats."""
    program = torch.export.export(_Function(function), (torch.rand(4, 4),)).run_decompositions({})
    return reason_against_capture(program.graph.nodes, is_forced)


def raised(x: torch.Tensor) -> torch.Tensor:
    """The operator writes into its argument."""
    y = x * 2
    raise_by(y, 0.5)
    return y


def in_place(x: torch.Tensor) -> torch.Tensor:
    """A write at numbers."""
    return x.clone().index_put((torch.tensor([0, 2]),), torch.tensor(1.0))


CAPTURED: list[Callable[[torch.Tensor], torch.Tensor]] = [
    in_place,
    lambda x: torch.nextafter(x, x + 1),
    lambda x: x[torch.tensor([2, 0])].sort(0).values,
    lambda x: torch.fft.fft(x).abs(),
    lambda x: x / torch.linalg.vector_norm(x, dim=0),
    lambda x: x.view(2, 8).cumsum(0).reshape(x.shape),
]


@pytest.mark.parametrize("is_forced", [False, True], ids=["auto", "graphs"])
@pytest.mark.parametrize("function", CAPTURED)
def test_operators_of_pytorch_that_only_launch_kernels_are_captured(
    function: Callable[[torch.Tensor], torch.Tensor], is_forced: bool
) -> None:
    """No tag speaks against them, and indices are numbers."""
    assert reason(function, is_forced) == ""


@pytest.mark.parametrize("function", [lambda x: split(x)[1] + 1, raised], ids=["two results", "writes"])
def test_operators_of_other_libraries_are_captured_where_the_user_wishes(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Nobody knows what they do on the host, so "auto" leaves them alone; True holds those without a tag against it."""
    assert reason(function, is_forced=False).endswith("may do more on the host than launch kernels")
    assert reason(function, is_forced=True) == ""


REFUSED: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("torch2engine_test.unsafe is marked as unsafe in CUDA graphs", unsafe),
    ("aten.nonzero has a result whose size depends on values", lambda x: torch.nonzero(x)),
    ("aten.index.Tensor has a result whose size depends on values", lambda x: x[x > 0.5]),
    ("aten.index_put has a result whose size depends on values", lambda x: x.index_put((x > 0.5,), x.new_tensor(1.0))),
    ("aten.rand_like draws random numbers", lambda x: x + torch.rand_like(x)),
    (
        "cond is control flow, which the host decides",
        lambda x: torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,)),
    ),
]


@pytest.mark.parametrize(("text", "function"), REFUSED, ids=[row[0].partition(" ")[0] for row in REFUSED])
def test_operators_of_which_a_replay_would_be_wrong_are_refused_always(
    text: str, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Whatever the user wishes: sizes from values, random numbers, the host's decisions, and what says so itself."""
    assert reason(function, is_forced=True) == text
    assert reason(function, is_forced=False) == text


def test_operator_that_may_wait_is_tried_only_where_the_user_wishes() -> None:
    """Factorisations look at the GPU's results; an attempt that fails is the user's decision."""
    assert reason(lambda x: torch.linalg.qr(x).Q, is_forced=False) == "aten.linalg_qr may wait for the GPU"
    assert reason(lambda x: torch.linalg.qr(x).Q, is_forced=True) == ""

"""Which operators may end a CUDA context, and that a call with one of them is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from torch2engine.capture.device_asserts import WatchedCall, is_on_gpu, may_assert, watch
from torch2engine.core.errors import ExportError

TABLE = torch.arange(12.0).reshape(4, 3)
ONE = torch.tensor([1])

# Words in the names of tensors that say where to read or write, and of those that must be a class or a probability.
_WORDS = ("index", "indices", "target", "offset", "repeats", "lengths", "sorter", "idx", "ptr", "cum_seq", "offs")
# Operators with such a tensor that neither read by it nor check it: losses whose targets are any numbers, helpers that
# only write indices, and kernels for the CPU.
_HARMLESS = {
    *("binary_cross_entropy_with_logits", "cosine_embedding_loss", "hinge_embedding_loss", "huber_loss", "kl_div"),
    *("l1_loss", "margin_ranking_loss", "mse_loss", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss"),
    *("_cummax_helper", "_cummin_helper", "_pack_sequence", "fbgemm_linear_int8_weight"),
    *("fbgemm_linear_int8_weight_fp32_activation", "quantized_gru_cell", "quantized_lstm_cell"),
    *("quantized_rnn_relu_cell", "quantized_rnn_tanh_cell", "value_selecting_reduction_backward"),
}


def test_every_operator_that_takes_indices_is_in_the_table() -> None:
    """A new operator of PyTorch's with an index is found missing here, before it ends anyone's CUDA context."""
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]
    with_index = {
        schema.name
        for schema in schemas
        for argument in schema.arguments
        if "Tensor" in str(argument.type) and not argument.is_out and any(word in argument.name for word in _WORDS)
    }
    assert len(with_index) > 100
    assert {name for name in with_index if not may_assert(name)} <= {f"aten::{name}" for name in _HARMLESS}


@pytest.mark.parametrize(
    ("operator", "asserts"),
    [
        ("aten::embedding", True),
        ("aten::index.Tensor", True),
        ("aten::index_put_", True),
        ("aten::_index_put_impl_", True),
        ("aten::_assert_async.msg", True),
        ("aten::binary_cross_entropy", True),
        ("aten::multinomial", True),
        ("aten::_nested_from_padded", True),
        ("torchvision::roi_align", True),
        ("my_library::my_operator.default", True),
        ("cond", True),
        ("aten::convolution", False),
        ("aten::addmm", False),
        ("aten::_softmax", False),
        ("aten::slice.Tensor", False),
        ("aten::where.self", False),
    ],
)
def test_operator_may_assert_if_its_values_name_places(operator: str, asserts: bool) -> None:
    """Indices, labels and probabilities are checked on the GPU; operators of unknown libraries may be."""
    assert may_assert(operator) is asserts


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "embedding": (lambda: F.embedding(ONE, TABLE), "aten::embedding"),
    "indexing": (lambda: TABLE[ONE], "aten::index.Tensor"),
    "assignment": (lambda: TABLE.clone().index_fill_(0, ONE, 0.0), "aten::index_fill_.int_Scalar"),
    "one-hot": (lambda: F.one_hot(ONE, 3), "aten::scatter_.value"),
    "cross entropy": (lambda: F.cross_entropy(TABLE[:1], ONE), "aten::nll_loss_forward"),
    "take along": (lambda: torch.take_along_dim(TABLE, ONE[:, None], 1), "aten::gather"),
    "bag": (lambda: F.embedding_bag(ONE, TABLE, torch.tensor([0])), "aten::_embedding_bag_forward_only"),
    "float as index": (lambda: TABLE[torch.ones(1).long()], "aten::index.Tensor"),
    "branch": (lambda: torch.cond(torch.tensor(True), torch.sin, torch.cos, (TABLE,)), "cond"),
    "compiled": (lambda: torch.compile(lambda: TABLE[ONE], backend="eager")(), "aten::index.Tensor"),
}


@pytest.mark.parametrize(("call", "operator"), CALLS.values(), ids=CALLS)
def test_asserting_operator_of_a_call_is_found(call: Callable[[], object], operator: str) -> None:
    """The operators that run decide, however the model calls them."""
    assert operator in watch(call, on_gpu=lambda tensor: True).asserting


def test_branch_works_after_it_was_watched() -> None:
    """Watching leaves nothing in Dynamo that a later torch.cond of the user's would trip over."""
    call, _ = CALLS["branch"]
    torch._dynamo.reset()
    assert watch(call, on_gpu=lambda tensor: True).asserting == {"cond"}
    torch.testing.assert_close(call(), torch.sin(TABLE))


def test_call_without_asserting_operators_has_none() -> None:
    """A convolution, a norm and attention never assert: their models need no trial on the CPU."""

    def call() -> None:
        F.batch_norm(F.conv2d(torch.ones(1, 1, 4, 4), torch.ones(3, 1, 3, 3)), torch.ones(3), torch.ones(3))
        F.scaled_dot_product_attention(*[torch.ones(1, 2, 3, 8)] * 3)
        F.interpolate(torch.ones(1, 1, 4, 4), scale_factor=2, mode="bicubic")

    assert watch(call, on_gpu=lambda tensor: True) == WatchedCall(frozenset(), follows_floats=False)


def test_operators_on_the_cpu_do_not_count() -> None:
    """There a wrong index is an exception already."""
    assert not is_on_gpu(TABLE)
    assert watch(lambda: TABLE[ONE]).asserting == frozenset()


def test_call_that_cannot_be_watched_counts_as_asserting() -> None:
    """What is not known is tried on the CPU."""

    def call() -> None:
        raise ExportError("model", got="no operator runs under a watcher")

    assert watch(call) == WatchedCall(frozenset({"unknown"}), follows_floats=True)


@pytest.mark.parametrize(
    ("call", "follows"),
    [
        (lambda: TABLE[TABLE[0].long()], True),
        (lambda: torch.bucketize(TABLE, TABLE[0]), True),
        (lambda: TABLE[ONE.float().argmax(0)], False),
        (lambda: TABLE[TABLE > 1], False),
        (lambda: TABLE.topk(2).indices, False),
        (lambda: F.embedding(ONE, TABLE), False),
    ],
    ids=["cast", "bucketize", "argmax", "comparison", "top-k", "embedding"],
)
def test_index_that_follows_a_float_is_found(call: Callable[[], object], follows: bool) -> None:
    """Rounding a float otherwise may lead to another index; a place among floats is in range by itself."""
    assert watch(call).follows_floats is follows

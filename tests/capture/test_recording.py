"""Recorded calls: what varied becomes an axis, and nothing of the model or its calls is changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch2engine as t2e


class Attention(nn.Module):
    """Two inputs that share an axis, one of their own, and a constant."""

    def forward(self, query: torch.Tensor, keys: list[torch.Tensor], scale: float = 1.0) -> torch.Tensor:
        """Query [B, 4] and keys [B, N, 4] → weights [B, N]."""
        return (keys[0] @ query[..., None]).squeeze(-1) * scale


def recorded(*sizes: tuple[int, int]) -> t2e.Recording:
    """Calls of these batches and lengths."""
    model = Attention().eval()
    with t2e.record(model) as recording:
        for batch, length in sizes:
            model(torch.rand(batch, 4), keys=[torch.rand(batch, length, 4)])
    return recording


def test_sizes_that_varied_are_axes_of_what_was_met() -> None:
    """Dimensions that were always equal are one axis; the opt is what was met most often."""
    axes = recorded((2, 3), (5, 3), (5, 3), (7, 9)).dynamic_axes
    assert axes["query"][0] is axes["keys.0"][0]
    assert axes["query"][0].range == (2, 5, 7)
    assert axes["keys.0"][1].range == (3, 3, 9)
    assert recorded((2, 3), (2, 3)).dynamic_axes == {}


def test_recorded_tensors_are_copies_and_the_model_is_as_before() -> None:
    """A later write into an input reaches no example, and no hook is left."""
    model = Attention().eval()
    x = torch.ones(2, 4)
    with t2e.record(model) as recording:
        model(x, [torch.ones(2, 3, 4)])
        x.zero_()
    model(x, [torch.ones(2, 3, 4)])
    assert len(recording.shapes) == 1
    assert recording.sample_input.args[0].min() == 1
    assert not model._forward_pre_hooks


def test_deploy_of_a_recording_needs_no_sample_and_no_axes() -> None:
    """The module answers all sizes between those that were met, and others that the user declares."""
    recording = recorded((2, 3), (5, 4), (7, 9))
    module = t2e.deploy(recording, runtime="onnxruntime")
    query, keys = torch.rand(6, 4), [torch.rand(6, 5, 4)]
    torch.testing.assert_close(module(query, keys), recording.model(query, keys))
    assert module.report is not None
    assert {row.case for row in module.report.parity[0].rows} == {"sample", "example 0", "example 1"}
    with pytest.raises(t2e.ShapeError, match=r"got query_0 = 8; expected 2\.\.7"):
        module(torch.rand(8, 4), [torch.rand(8, 5, 4)])


def test_recording_that_is_no_one_call_is_refused() -> None:
    """The errors say what to record."""
    with pytest.raises(t2e.InputError, match="recorded calls: got none; expected at least one call"):
        t2e.deploy(recorded(), runtime="onnxruntime")
    model = Attention().eval()
    with t2e.record(model) as recording:
        model(torch.rand(2, 4), [torch.rand(2, 3, 4)])
        model(torch.rand(2, 4), [torch.rand(2, 3, 4)], scale=2.0)
    with pytest.raises(t2e.InputError, match="got calls that differ in their arguments, constants or dtypes"):
        t2e.deploy(recording, runtime="onnxruntime")
    with pytest.raises(t2e.InputError, match="model: got a builtin_function_or_method"), t2e.record(torch.relu):  # type: ignore[arg-type]
        pass

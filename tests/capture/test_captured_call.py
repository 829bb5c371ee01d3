"""The sample of a captured call at other sizes."""

from __future__ import annotations

import torch

from torch2engine.capture.captured_call import resized

X = torch.arange(12.0).reshape(4, 3)


def test_resized_cuts_and_repeats() -> None:
    """Every dimension is cut or repeated in order, into fresh contiguous memory."""
    assert resized(X, (2, 3)).tolist() == X[:2].tolist()
    assert resized(X, (9, 3)).tolist() == torch.cat([X, X, X[:1]]).tolist()
    assert resized(X, (1, 4)).tolist() == [[0.0, 1.0, 2.0, 0.0]]
    same = resized(X.t(), (3, 4))
    assert same.is_contiguous()
    assert torch.equal(same, X.t())
    same.zero_()
    assert X[3, 2] == 11
    assert resized(torch.tensor(3.0), ()).shape == ()
    assert resized(torch.tensor([[True]]), (2, 2)).all()

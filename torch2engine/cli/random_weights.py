"""A model on the command line whose answers differ from a candidate's → advice, where its weights are random.

Enters: the text that names a model, such as `net.py:make`, and the model that it gave. Leaves: a sentence, or "".
Separate because every command that compares answers gives this advice, and making the model again takes time: it is
done after a difference only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from torch2engine.capture.fingerprint import fingerprints
from torch2engine.cli.arguments import read_model
from torch2engine.core.constants import RANDOM_SEED

__all__ = ["advice_on_random_weights"]


def advice_on_random_weights(text: str, model: nn.Module) -> str:
    """Say how to give a model the candidate's weights, where another seed gives the model other weights.

    Args:
        text: as for `read_model`.
        model: what that returned.
    """
    try:
        after = _fingerprints_of(read_model(text, seed=RANDOM_SEED + 1))
        before = _fingerprints_of(model)
    except Exception:  # the user's own code, which may work only once; the difference is what counts
        return ""
    changed = [name for name in before if before[name] != after.get(name)]
    if not changed:
        return ""
    return (
        f"load the candidate's weights in '{text}', e.g. by model.load_state_dict(torch.load('weights.pt')); it draws "
        f"random ones: a second call changed {len(changed)} of {len(before)} tensors, first '{changed[0]}'"
    )


def _fingerprints_of(model: nn.Module) -> Mapping[str, int]:
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    return fingerprints(tensors)

"""Every trap that a refit can step into, on engines.

Enters: the models of `tests.support.weight_models`. Leaves: proof that an engine follows each of them. Apart from
`test_refit` so that the builds, which take seconds each, run side by side.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch

import torch2engine as t2e
from tests.gpu.test_refit import BATCH, BOUNDS, change, deployed, error
from tests.support.weight_models import MODELS
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.capture.signature import capture_call
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.exporter.export_onnx import export_onnx

CASES = [(name, "fp16") for name in MODELS] + [("norms", "fp32"), ("transformer", "bf16"), ("parametrized", "fp32")]


@pytest.mark.parametrize(("name", "precision"), CASES, ids=[".".join(case) for case in CASES])
def test_traps_are_followed(name: str, precision: str, figure: Callable[[str, float], None]) -> None:
    """Wrong by far before the refit, right after it, with all weights changed; on inputs nobody has checked."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model, x = model.cuda().eval(), x.cuda()
    if name == "gru":  # of whose biases TensorRT's parser makes others
        with pytest.raises(t2e.RefitError, match=r"weights 'tmp_weight_\d+'.* that follow from nothing in the module"):
            deployed(model, x, precision, tolerance=t2e.Tolerance.default("bf16"))
        return
    module = deployed(model, x, precision, tolerance=t2e.Tolerance.default("bf16"))
    assert error(model, module, x) < BOUNDS[precision]
    change(model)
    assert module.stale() and error(model, module, x) > 2 * BOUNDS[precision]
    assert module.refit().parity is not None
    unseen = torch.roll(x, 1, 0) if not x.is_floating_point() else torch.randn_like(x)
    found = error(model, module, unseen)
    figure(f"refit.{name}.{precision}.rel_l2", found)
    assert found < BOUNDS[precision] and not module.stale()


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_wherever_they_are_worked_out(name: str) -> None:
    """To the last bit: a deploy works them out on the CPU and a refit on the GPU, and halves amplify differences."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    model.eval()
    parameter = next(iter(inspect.signature(model.forward).parameters))
    with undisturbed(model):
        program = WeightProgram.from_json(export_onnx(capture_call(model, x, {parameter: BATCH}), True).read(WEIGHTS))
    for _ in range(8):
        change(model)
        here = program.run(program.tensors(model))
        there = program.run({path: tensor.cuda() for path, tensor in program.tensors(model).items()})
        assert not [weight for weight, value in here.items() if not torch.equal(value, there[weight].cpu())]

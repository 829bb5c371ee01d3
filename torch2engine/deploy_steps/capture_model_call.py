"""The arguments of one deploy() + the live model → the captured call of the model.

Enters: a `DeployRequest`. Leaves: a `CapturedCall`. Separate because the names that deploy() was given have to suit
several stages: the captured call, the precision, the tolerance, and the deployed module.
"""

from __future__ import annotations

from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.live_parameters import find_live_parameters
from torch2engine.capture.signature import capture_call
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.live_tensors import require_free_names
from torch2engine.parity.tolerance_bounds import Bounds
from torch2engine.precision.validate import require_precision_of_live_parameters

__all__ = ["capture_model_call"]


def capture_model_call(request: DeployRequest) -> CapturedCall:
    """Run the model on the sample, and capture the call; run it inside `undisturbed`.

    All arguments that name inputs, outputs, axes, parameters or buffers of the model are checked here.

    Raises:
        InputError, DynamicAxisError, ExportError: as `capture_call`.
        InputError: also for a tolerance of an output that the model does not have. Also for live parameters that the
            model does not have, or that can't be live.
    """
    given = request.given
    live = find_live_parameters(request.model, given.live_parameters)
    require_precision_of_live_parameters(request.precision, live)
    require_free_names(live)
    captured = capture_call(
        request.model,
        given.sample_input,
        given.dynamic_axes,
        given.profiles,
        given.preprocess,
        given.examples,
        request.config.mutations,
        live,
    )
    names = [spec.name for spec in captured.signature.outputs]
    Bounds.of(request.tolerance, captured.precision).check_names(names)
    return captured

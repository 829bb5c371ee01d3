"""`refit`, `stale` and `track`, on ONNX Runtime: the same road as on a GPU but for the last step.

Enters: models with every trap that a refit can step into. Leaves: proof that a deployed module follows its model
exactly, that it tells when it does not, and that what can't be followed is refused with the old weights in place.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.lowered_models import module_of_export
from tests.support.weight_models import MODELS, RefittableExport, refittable_export
from torch2engine.artifact.saved_folder import WEIGHTS
from torch2engine.builder.onnx_fingerprint import engine_fingerprint
from torch2engine.capture.fingerprint import fingerprints
from torch2engine.capture.undisturbed import undisturbed
from torch2engine.capture.weight_program import WeightProgram
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.module_access import attach_model
from torch2engine.deployed.weight_sync import Refit
from torch2engine.precision.retype_weights import retype_weight_program
from torch2engine.testing import assert_parity

CONFIG = t2e.BuildConfig(refittable=True)
BATCH = {0: t2e.Axis("batch", 1, 8, 32)}


def test_repr_of_a_refit_is_short() -> None:
    """Of many changed weights it shows a few."""
    text = "Refit(5 changed: layer0, layer1, layer2 and 2 more; 0.250 s; not compared)"
    assert repr(Refit(tuple(f"layer{number}" for number in range(5)), 0.25)) == text
    assert repr(Refit((), 0.001)) == "Refit(0 changed; 0.001 s; not compared)"


class Net(nn.Module):
    """A convolution with its BatchNorm, and a linear layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def net(width: int = 4) -> Net:
    torch.manual_seed(0)
    model = Net(width)
    with torch.no_grad():
        model(3 * torch.randn(64, 1, 8, 8) + 1)  # running statistics that are not 0 and 1
    return model.eval()


X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def once() -> t2e.ORTModule:
    module = t2e.deploy(net(), X, {"x": BATCH}, runtime="onnxruntime", config=CONFIG)
    assert isinstance(module, t2e.ORTModule)
    return module


def deployed(model: nn.Module, x: torch.Tensor = X, precision: str = "fp32") -> t2e.ORTModule:
    """The model, deployed; for those of `net()` as deploy() leaves them, without an export for each."""
    if type(model) is Net and x is X and precision == "fp32" and model.conv.out_channels == 4:
        module = t2e.ORTModule(once()._artifact)
        attach_model(module, model, [("opt", [X])], None)
        return module
    name = next(iter(inspect.signature(model.forward).parameters))
    tolerance = t2e.Tolerance.default("bf16") if precision != "fp32" else None
    module = t2e.deploy(
        model, x, {name: BATCH}, precision=precision, runtime="onnxruntime", config=CONFIG, tolerance=tolerance
    )
    assert isinstance(module, t2e.ORTModule)
    return module


def lowered(export: RefittableExport, precision: str) -> t2e.ORTModule:
    """The model as `deploy(..., runtime="onnxruntime")` makes it."""
    request = DeployRequest.from_arguments(
        given=ModelAndSample(export.model),
        precision=precision,
        calibration=None,
        tolerance=t2e.Tolerance.default("bf16") if precision != "fp32" else None,
        runtime="onnxruntime",
        config=CONFIG,
        runtime_config=t2e.RuntimeConfig(),
    )
    return module_of_export(export.artifact, export.parity_cases, request, calibration=None)


@torch.no_grad()
def change(model: nn.Module, by: float = 1.0) -> None:
    for tensor in {id(part): part for part in (*model.parameters(), *model.buffers())}.values():
        if tensor.is_floating_point():
            tensor.mul_(1 + by * 0.3 * torch.rand_like(tensor)).add_(by * 0.2 * torch.rand_like(tensor))


def error(model: nn.Module, module: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        wanted, got = model(x), module(x)
    if not isinstance(wanted, torch.Tensor):
        wanted, got = wanted[0], got[0]
    return float((got - wanted).norm() / wanted.norm())


# Traps: BatchNorm, tied and doubled weights, parametrisations, transposes, sums of parameters, ...


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_traps_are_followed(name: str, precision: str) -> None:
    """Wrong by far before the refit, right after it, with all weights changed; on inputs nobody has checked."""
    export = refittable_export(name)
    model, x = export.model, export.sample
    module = lowered(export, precision)
    torch.manual_seed(0)
    bound = 1e-5 if precision == "fp32" else 1e-2
    assert error(model, module, x) < bound
    is_large = name in ("resnet", "llama") and precision == "fp16"
    change(model, by=0.1 if is_large else 1.0)  # changed by more, these overflow float16, as their engines would
    assert error(model, module, x) > 1e-3
    assert module.refit().parity is not None
    fresh = torch.roll(x, 1, 0) if not x.is_floating_point() else torch.randn_like(x)
    assert error(model, module, fresh) < bound


def test_half_model_and_bfloat16_parameters() -> None:
    """A model in float16, and one whose parameters are rounded from bfloat16, are followed in their own dtypes."""
    for dtype in (torch.float16, torch.bfloat16):
        model = net().to(dtype)
        module = deployed(model, X.to(dtype))
        change(model)
        module.refit()
        assert error(model, module, X.to(dtype)) < 2e-2
    model = net()
    module = deployed(model, precision="fp16")
    model.load_state_dict({name: value.bfloat16() for name, value in net().state_dict().items()})
    change(model)
    module.refit()
    assert error(model, module, X) < 5e-3


def test_training_loop_is_followed() -> None:
    """Fifty steps in training mode, running statistics included: equal to a module deployed afresh."""
    model = net()
    module = deployed(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(50):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(16, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        module.refit()
        model.eval()
        assert error(model, module, X) < 1e-5
    assert_parity(deployed(model), module, X)
    assert model.training is False


# Stale


def _step(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    model(X).sum().backward()
    optimizer.step()


def _load(model: nn.Module) -> None:
    other = net()
    change(other)
    model.load_state_dict(other.state_dict())


def _average(model: nn.Module) -> None:
    for part in model.parameters():
        part.data.mul_(0.999).add_(torch.ones_like(part.data), alpha=0.001)


def _assign(model: nn.Module) -> None:
    part = next(model.parameters())
    part.data = part.data + 1e-7


def _statistics(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(X)
    model.eval()


def _behind(model: nn.Module) -> None:
    next(model.parameters()).detach().numpy().reshape(-1)[0] += 1


def _swapped(model: Net) -> None:
    with torch.no_grad():
        model.head.bias.copy_(model.head.bias.flip(0))


def _replaced(model: Net) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach() * 2)


CHANGES = (_step, _load, _average, _assign, _statistics, _behind, _swapped, _replaced)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_stale_sees_every_change(changes: Callable[[Net], None]) -> None:
    """However values change, the module is stale until it is refitted, and then right."""
    model = net()
    module = deployed(model)
    assert not module.stale()
    changes(model)
    assert module.stale()
    assert module.refit().changed
    assert not module.stale()
    assert error(model, module, X) < 1e-5


def test_what_is_the_same_is_not_stale() -> None:
    """Values decide, not who wrote them when: equal ones are not new, and a refit to them does nothing."""
    model = net()
    module = deployed(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    for part in model.parameters():
        part.grad = torch.ones_like(part)
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    model.norm.num_batches_tracked.add_(1)
    assert not module.stale()
    assert not module.stale(copy.deepcopy(model))
    assert module.refit().changed == ()
    assert module.refit(verify=True).parity is not None


def test_changed_parameters_are_named() -> None:
    """And nothing else."""
    model = net()
    module = deployed(model)
    _swapped(model)
    found = module.refit()
    assert isinstance(found, Refit) and found.changed == ("head.bias",)
    assert found.seconds > 0 and found.parity is not None and found.parity.passed
    _statistics(model)
    again = module.refit()
    assert again.changed == ("norm.running_mean", "norm.running_var")
    assert again.parity is None  # it was verified before
    assert module.refit(verify=True).parity is not None


# Tracking


def test_tracked_model_is_followed_at_every_call() -> None:
    """Without a word from the caller, until tracking ends."""
    model = net()
    module = deployed(model)
    module.track(model)
    for _ in range(3):
        change(model)
        assert error(model, module, X) < 1e-5
    module.track(None)
    change(model)
    assert error(model, module, X) > 1e-3
    with pytest.raises(t2e.InputError, match=r"torch.nn.Module"):
        module.track("model")  # type: ignore[arg-type]


def test_copies_follow_nothing() -> None:
    """A copy of a tracking module has the weights of the moment and keeps them."""
    model = net()
    module = deployed(model)
    module.track(model)
    change(model)
    module(X)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    before = copy.deepcopy(model)
    change(model)
    for twin in twins:
        assert error(before, twin, X) < 1e-5
        assert twin.stale(model) and not twin.stale(before)
        twin.refit(model)
        assert error(model, twin, X) < 1e-5


def test_wrapped_models_are_reached() -> None:
    """DataParallel around the model changes nothing."""
    model = net()
    module = deployed(model)
    change(model)
    module.refit(nn.DataParallel(model))
    assert error(model, module, X) < 1e-5


# Refusals


def test_other_structures_are_refused() -> None:
    """Each is named, and the old weights stay."""
    model = net()
    module = deployed(model)
    before = module(X)
    half = net()
    half.head.half()
    less = net()
    del less.head
    less.register_module("head", None)
    for other, text in (
        (net(5), r"'\w+\.\w+': got torch.float32 \[\d.*\]; expected torch.float32 \[\d.*\], as it was deployed"),
        (half, "'head.bias': got torch.float16"),
        (less, "'head.bias': got no such parameter or buffer"),
    ):
        with pytest.raises(t2e.RefitError, match=text):
            module.refit(other)
        with pytest.raises(t2e.RefitError, match=text):
            module.stale(other)
        with pytest.raises(t2e.RefitError, match=text):
            module.track(other)
    assert torch.equal(module(X), before)
    with pytest.raises(t2e.InputError, match=r"torch.nn.Module"):
        module.refit(3)  # type: ignore[arg-type]


def test_untied_weights_are_refused() -> None:
    """Two tensors where there was one: the engine has one weight."""
    torch.manual_seed(0)
    model, x = MODELS["tied"]()
    module = deployed(model.eval(), x)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(t2e.RefitError, match=r"'words.weight' and 'head.weight': got different tensors"):
        module.refit()


def test_weights_that_are_not_finite_are_refused() -> None:
    """NaN, and what float16 can't hold; the old weights stay, unless they were asked for."""
    model = net()
    module = deployed(model, precision="fp16")
    before = module(X)
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with pytest.raises(t2e.RefitError, match=r"'head.weight': got NaN or infinity in the engine's type"):
        module.refit()
    assert torch.equal(module(X), before) and module.stale()
    module.refit(verify=False)
    assert not module(X).isfinite().all()


def test_wrong_answers_after_a_refit_are_never_given(tmp_path: Path) -> None:
    """If the comparison fails every call, copy and save says so, until a refit that is right."""

    class Forgetful(Net):
        bonus = 1.0  # no parameter: the graph holds it as it was

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.bonus

    model = Forgetful().eval()
    module = deployed(model)
    change(model)
    model.bonus = 1.5
    with pytest.raises(t2e.RefitError, match=r"answers that differ from the model's"):
        module.refit()
    for attempt in (
        lambda: module(X),
        lambda: pickle.dumps(module),
        lambda: module.save(tmp_path / "a.t2e"),
        module.state_dict,
    ):
        with pytest.raises(t2e.RefitError, match=r"answers after a refit that differ from the model's"):
            attempt()
    assert module.stale() and not list(tmp_path.iterdir())
    model.bonus = 1.0
    assert module.refit().parity is not None
    assert error(model, module, X) < 1e-5


def test_modules_without_a_program_are_refused() -> None:
    """With what to ask for."""
    module = t2e.deploy(net(), X, {"x": BATCH}, runtime="onnxruntime")
    for attempt in (module.refit, module.stale, lambda: module.track(net())):
        with pytest.raises(t2e.RefitError, match=r"deploy\(\.\.\., config=BuildConfig\(refittable=True\)\)"):
            attempt()


def test_model_that_is_gone_must_be_given() -> None:
    """The deployed model is not kept alive."""
    model = net()
    module = deployed(model)
    twin = copy.deepcopy(model)
    del model
    with pytest.raises(t2e.RefitError, match=r"got no model, and"):
        module.refit()
    change(twin)
    module.refit(twin)
    assert error(twin, module, X) < 1e-5


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ("int8", "True with 'int8'"),
        ("fp8", "True with 'fp8'"),
        (t2e.Precision("fp16", weights="int4"), "True with 'int4'"),
        (t2e.Precision("fp16", low_io=True), "True with low_io=True"),
    ],
    ids=["int8", "fp8", "int4", "low_io"],
)
def test_precisions_that_have_no_weights_of_their_own_are_refused(precision: str, text: str) -> None:
    """Before anything is exported."""
    with pytest.raises(t2e.InputError, match=text):
        t2e.deploy(net(), X, precision=precision, calibration=[X], runtime="onnxruntime", config=CONFIG)


def test_engines_are_refittable_on_a_gpu_only() -> None:
    """The real TensorRT-RTX builder, on this machine, says so before it starts."""
    artifact = t2e.export(net(), X, {"x": BATCH}, refittable=True)
    with pytest.raises(t2e.InstallationError, match=r"refittable engines are built on one only"):
        t2e.build(artifact, config=CONFIG)
    plain = t2e.build(artifact)
    assert WEIGHTS not in plain.files
    for source in (t2e.export(net(), X, {"x": BATCH}), artifact.onnx_path):
        with pytest.raises(t2e.InputError, match=r"export\(\.\.\., refittable=True\)"):
            t2e.build(source, {"batch": (1, 8, 32)}, config=CONFIG)


class Gate(nn.Module):
    """Rows are independent until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.fc = nn.Parameter(torch.zeros(1)), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x + self.gate * x.mean(0, keepdim=True))


def test_split_is_proved_anew_for_new_weights() -> None:
    """Rows that are seen to influence each other with the new weights are not split any more."""
    torch.manual_seed(0)
    model, x = Gate().eval(), torch.randn(16, 4)
    axes = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
    # The pretence that no operator mixes rows leaves the examples alone to show it.
    artifact = t2e.export(model, x[:4], axes, refittable=True).replace(influences={"batch": None})
    module = t2e.ORTModule(artifact, runtime_config=t2e.RuntimeConfig(out_of_range="split"))
    assert error(model, module, x) < 1e-5
    with torch.no_grad():
        model.gate.fill_(1.0)
    module.refit(model)
    with pytest.raises(t2e.ParityError, match=r"influence each other"):
        module(x)


def test_sizes_out_of_range_are_answered_with_the_refitted_weights() -> None:
    """Under "eager" too, if it was another model than the one deployed."""
    first, second = net(), net()
    change(second)
    config = t2e.RuntimeConfig(out_of_range="eager")
    axes = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
    module = t2e.deploy(first, X, axes, runtime="onnxruntime", config=CONFIG, runtime_config=config)
    module.refit(second)
    with pytest.warns(UserWarning, match=r"PyTorch"):
        assert error(second, module, torch.randn(20, 1, 8, 8)) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_tracking_survives_compilation() -> None:
    """A compiled caller's calls are followed like others."""
    model = net()
    module = deployed(model)
    module.track(model)
    compiled = torch.compile(lambda x: module(x) + 0, backend="eager")
    for _ in range(3):
        change(model)
        with torch.no_grad():
            wanted = model(X)
            assert (compiled(X) - wanted).norm() < 1e-5 * wanted.norm()


def test_callers_arithmetic_is_not_taken() -> None:
    """Weights that are products of parameters are worked out in their own dtype under autocast."""

    class Lora(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.a, self.b = (nn.Parameter(torch.randn(*size)) for size in ((32, 32), (32, 4), (4, 32)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.w + self.a @ self.b)

    torch.manual_seed(0)
    model, x = Lora().eval(), torch.randn(8, 32)
    module = deployed(model, x)
    change(model)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        module.refit()
    assert error(model, module, x) < 1e-6


def test_new_parameter_is_refused() -> None:
    """What the deployed graph knows nothing of can't be followed."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).eval()
    module = deployed(model, torch.randn(8, 4))
    model[0].bias = nn.Parameter(torch.ones(3))
    for attempt in (module.refit, module.stale):
        with pytest.raises(t2e.RefitError, match=r"'0.bias': got a new parameter"):
            attempt()


def test_model_without_values_is_refused() -> None:
    """Parameters on the meta device."""
    module = deployed(net())
    for attempt in (module.refit, module.stale):
        with pytest.raises(t2e.RefitError, match=r"'conv.bias': got a tensor on the meta device"):
            attempt(net().to("meta"))


def test_infinite_masks_may_stay() -> None:
    """A buffer's own infinities are meant; a weight's are not."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.fc(x).unsqueeze(-1) + self.mask, -1).sum(1)

    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(8, 4)
    module = deployed(model, x)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    module.refit()
    assert error(model, module, x) < 1e-5
    with torch.no_grad():
        model.fc.weight[0] = torch.inf
    with pytest.raises(t2e.RefitError, match=r"^weights 'fc.weight'"):
        module.refit()


def test_comparison_that_did_not_end_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry after an interruption compares, though nothing has changed since."""
    model = net()
    module = deployed(model)
    change(model)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(t2e.ORTModule, "infer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            module.refit()
    again = module.refit()
    assert again.changed == () and again.parity is not None
    assert module.refit().parity is None


def test_full_disk_leaves_the_old_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is typed, and the module answers as before."""
    model = net()
    module = deployed(model)
    before = module(X)
    change(model)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch2engine.deployed.onnxruntime.ort_backend.replace_weights", full)
        with pytest.raises(t2e.ArtifactError, match=r"No space left on device"):
            module.refit()
    assert torch.equal(module(X), before) and module.stale()
    module.refit()
    assert error(model, module, X) < 1e-5


def test_refits_of_a_judged_model_are_compared_within_bounds() -> None:
    """A budget's metric leaves no bounds of its own; the precision's are taken."""

    class Scaled(Net):
        bonus = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.bonus

    model = Scaled().eval()
    budget = t2e.Budget(metric=lambda outputs, batch: 1.0, floor=0.5)
    module = t2e.deploy(
        model,
        X,
        {"x": BATCH},
        precision=t2e.Precision("fp16", budget=budget),
        calibration=[X],
        runtime="onnxruntime",
        config=CONFIG,
    )
    change(model)
    model.bonus = 5.0
    with pytest.raises(t2e.RefitError, match=r"answers that differ"):
        module.refit()


def test_two_locks_are_taken_in_one_order() -> None:
    """A tracked module called inside another model's verification, beside one that refits: nobody waits for ever."""

    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.__dict__["inner"] = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    models = [net(), net()]
    inner = deployed(models[0])
    inner.track(models[0])
    outer = Outer(inner)
    weights = threading.Lock()  # a refit whose weights change meanwhile is an error, as it should be

    def calls() -> None:
        for _ in range(20):
            with weights:
                change(models[0])
            inner(X)

    def verifies() -> None:
        for _ in range(20):
            with undisturbed(outer), weights:
                outer(X)

    threads = [threading.Thread(target=target, daemon=True) for target in (calls, verifies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()


def test_split_answers_are_of_one_set_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit between two chunks of a call has the call answered anew."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(32, 4)
    config = t2e.RuntimeConfig(out_of_range="split")
    axes = {"input": {0: t2e.Axis("batch", 1, 4, 8)}}
    module = t2e.deploy(model, x[:4], axes, runtime="onnxruntime", config=CONFIG, runtime_config=config)
    real, done = module._backend.run, []

    def between(*args: object) -> list[torch.Tensor]:
        if len(done) == 2:
            change(model)
            worker = threading.Thread(target=lambda: module.refit(model, verify=False))
            worker.start()
            worker.join(600)
        done.append(1)
        return real(*args)

    monkeypatch.setattr(module._backend, "run", between)
    with torch.no_grad():
        answer, wanted = module(x), model(x)
    assert (answer - wanted).norm() < 1e-6 * wanted.norm()
    assert len(done) > 4


def test_eager_answers_with_the_model_that_was_given_last() -> None:
    """Also if its weights are the module's already."""
    model = net()
    config = t2e.RuntimeConfig(out_of_range="eager")
    axes = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
    module = t2e.deploy(model, X, axes, runtime="onnxruntime", config=CONFIG, runtime_config=config)
    average = copy.deepcopy(model)
    change(model)
    assert module.refit(average).changed == ()
    with pytest.warns(UserWarning, match=r"PyTorch"):
        assert error(average, module, torch.randn(20, 1, 8, 8)) < 1e-5


def test_tolerance_of_a_refit_may_be_given(tmp_path: Path) -> None:
    """A loaded module knows no other than its precision's."""
    model = net()
    module = t2e.load(deployed(model).save(tmp_path / "m.t2e"))
    change(model)
    with pytest.raises(t2e.RefitError, match=r"answers that differ"):
        module.refit(model, tolerance=t2e.Tolerance(rel_l2=0, max_rel=0, abs=0))
    assert module.refit(model, tolerance=t2e.Tolerance(rel_l2=1e-3)).parity is not None
    with pytest.raises(t2e.InputError, match=r"tolerance"):
        module.refit(model, tolerance=0.1)  # type: ignore[arg-type]


def test_model_without_parameters_may_not_get_one() -> None:
    """Buffers alone: a parameter is new all the same."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False)).eval()
    module = deployed(model, torch.randn(8, 4))
    model[0].register_parameter("extra", nn.Parameter(torch.ones(1)))
    with pytest.raises(t2e.RefitError, match=r"'0.extra': got a new parameter"):
        module.refit()


# Fingerprints


def test_fingerprints_see_what_cancels_out() -> None:
    """Signs, powers of two, permutations, in every dtype; pieces and strides don't matter."""
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int8):
        x = torch.randn(64, 6).mul(50).to(dtype)
        others = [x, -x, x * 2, x.flip(0), x.roll(1, 1), x.t(), torch.zeros_like(x)]
        others.append(torch.cat([-x[:2], x[2:]]))
        found = fingerprints({str(index): other for index, other in enumerate(others)})
        assert len(set(found.values())) == len(others)
        assert fingerprints({"": x.t().contiguous().t()})[""] == found["0"]
    flags = {"yes": torch.tensor([True]), "no": torch.tensor([False]), "none": torch.empty(0)}
    assert len(set(fingerprints(flags).values())) == 2
    assert fingerprints({}) == {}


def test_fingerprints_of_large_tensors_see_every_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a tensor comes in pieces, and pieces of several tensors together."""
    monkeypatch.setattr("torch2engine.capture.fingerprint._PIECE_SIZE", 16)
    torch.manual_seed(0)
    tensors = {"a": torch.randn(70), "b": torch.randn(3), "c": torch.randn(33).half(), "d": torch.randn(17)}
    before = fingerprints(tensors)
    for name, tensor in tensors.items():
        for index in range(len(tensor)):
            kept = tensor[index].clone()
            tensor[index] += 1
            after = fingerprints(tensors)
            assert [key for key in before if before[key] != after[key]] == [name]
            tensor[index] = kept
    assert fingerprints(tensors) == before


# Cache


def test_only_who_refits_may_be_given_other_weights() -> None:
    """The key of a refittable engine leaves weights out for deploy() alone."""
    first, second, third = net(), net(), net(5)
    change(second)
    artifacts = [t2e.export(model, X, {"x": BATCH}, refittable=True) for model in (first, second, third)]
    whole = [engine_fingerprint(one) for one in artifacts]
    blank = [engine_fingerprint(one, accepts_other_weights=True) for one in artifacts]
    assert whole[0] != whole[1] and blank[0] == blank[1] and blank[0] != blank[2]


# Types


def test_program_of_another_graph_is_refused(tmp_path: Path) -> None:
    """A typed graph whose weights are not the old ones, rounded, and one that lacks one."""
    import onnx

    artifact = t2e.export(net(), X, {"x": BATCH}, refittable=True)
    program = WeightProgram.from_json(artifact.read(WEIGHTS))
    model = onnx.load(artifact.onnx_path)
    changed, lacking = copy.deepcopy(model), copy.deepcopy(model)
    index = next(i for i, tensor in enumerate(model.graph.initializer) if tensor.name == "head.weight")
    values = onnx.numpy_helper.to_array(model.graph.initializer[index]) + 1
    changed.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(values, "head.weight"))
    lacking.graph.initializer[index].name = "folded"
    for graph, text in ((changed, "got other values"), (lacking, "got a part of a constant")):
        onnx.save(graph, tmp_path / "other.onnx")
        with pytest.raises(t2e.RefitError, match=f"'head.weight': {text}"):
            retype_weight_program(program, artifact.onnx_path, tmp_path / "other.onnx")


def test_rounding_of_tiny_weights_is_known() -> None:
    """AutoCast rounds what float16 can't hold away from zero, and so does a refit, to the bit."""
    import onnx

    model, small = net(), torch.tensor([1e-9, -1e-9, 5e-8, -5e-8])
    with torch.no_grad():
        model.head.weight[0] = small
    module = deployed(model, precision="fp16")
    change(model)
    with torch.no_grad():
        model.head.weight[1] = small.flip(0)
    module.refit()
    assert error(model, module, X) < 5e-3
    held, built = (
        {tensor.name: tensor.raw_data for tensor in onnx.load(one._artifact.onnx_path).graph.initializer}
        for one in (module, deployed(model, precision="fp16"))
    )
    assert held == built


def test_copies_of_a_weight_are_followed(tmp_path: Path) -> None:
    """AutoCast gives a weight that is read in two types a copy."""
    import onnx

    artifact = t2e.export(net(), X, {"x": BATCH}, refittable=True)
    program = WeightProgram.from_json(artifact.read(WEIGHTS))
    model = onnx.load(artifact.onnx_path)
    tensor = next(one for one in model.graph.initializer if one.name == "head.weight")
    half = onnx.numpy_helper.to_array(tensor).astype("float16")
    model.graph.initializer.append(onnx.numpy_helper.from_array(half, "head.weight_1"))
    onnx.save(model, tmp_path / "typed.onnx")
    found = retype_weight_program(program, artifact.onnx_path, tmp_path / "typed.onnx")
    weights = found.run(found.tensors(net()))
    assert torch.equal(weights["head.weight_1"], weights["head.weight"].half())
    assert found.fixed == program.fixed


# Files and threads


def test_saved_modules_hold_the_new_weights(tmp_path: Path) -> None:
    """Saved, loaded, from a state_dict: the weights of the last refit, which can be refitted on."""
    model = net()
    module = deployed(model)
    change(model)
    module.refit()
    loaded = t2e.load(module.save(tmp_path / "m.t2e"))
    assert isinstance(loaded, t2e.ORTModule)
    assert error(model, loaded, X) < 1e-6 and not loaded.stale(model)
    other = deployed(net())
    other.track(model)
    other.load_state_dict(module.state_dict())
    before = copy.deepcopy(model)
    change(model)
    assert error(before, other, X) < 1e-6 and other.stale(model)
    assert loaded.refit(model).parity is not None
    assert error(model, loaded, X) < 1e-5


def test_threads_get_old_or_new_answers() -> None:
    """Never a mixture, while another thread refits between two sets of weights."""
    models = [net(), net()]
    change(models[1])
    module = deployed(models[0])
    with torch.no_grad():
        wanted = [model(X) for model in models]
    stop = threading.Event()

    def calls() -> list[bool]:
        found: list[bool] = []
        while not stop.is_set():
            answer = module(X)
            found.append(any(torch.allclose(answer, want, atol=1e-6) for want in wanted))
        return found

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(calls) for _ in range(3)]
        for turn in range(20):
            module.refit(models[(turn + 1) % 2], verify=False)
        stop.set()
        assert all(all(result.result()) and result.result() for result in results)


class Rotary(nn.Module):
    """Positions that are complex numbers in a buffer, and a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(6, 2), torch.rand(6, 2)))
        self.gain = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(self.linear(x).unflatten(-1, (2, 2)))
        return torch.view_as_real(pairs * self.turns * self.gain).flatten(-2)


def test_complex_weights_are_followed_with_both_parts() -> None:
    """A complex buffer and parameter change real and imaginary parts: stale, refit, state_dict and track see both."""
    torch.manual_seed(0)
    model, x = Rotary().eval(), torch.randn(3, 6, 4)
    module = deployed(model, x)
    with torch.no_grad():
        model.turns.mul_(torch.polar(torch.tensor(1.0), torch.tensor(0.5)))
        model.gain.copy_(model.gain.conj() * 1j)
    assert module.stale(model)
    assert set(module.refit(model, verify=True).changed) == {"turns", "gain"}
    assert not module.stale(model)
    fresh = deployed(Rotary().eval(), x)
    fresh.load_state_dict(module.state_dict())
    assert not fresh.stale(model)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x))
        torch.testing.assert_close(fresh(x), model(x))
        fresh.track(model)
        model.turns.copy_(torch.view_as_complex(torch.randn(6, 2, 2)))
        torch.testing.assert_close(fresh(x), model(x))


class Looked(nn.Module):
    """Reads a row by a length that a made-up input can't have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert torch.compiler.is_compiling() or (lengths > 0).all(), "no row has the length 0"
        return self.linear(x[torch.arange(x.shape[0]), lengths - 1])


def looked_inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 5, 3), torch.randint(1, 6, (rows,))


def test_loaded_module_compares_on_real_inputs(tmp_path: Path) -> None:
    """Where made-up inputs are not valid, a loaded module's refit and benchmark take examples, as their errors say."""
    model = Looked().eval()
    axes = {"x": {0: t2e.Axis("rows", 1, 2, 4)}, "lengths": {0: "rows"}}
    given = [looked_inputs(rows) for rows in (1, 2, 4)]
    t2e.deploy(model, given[1], axes, runtime="onnxruntime", examples=given, config=CONFIG).save(tmp_path / "looked")
    module = t2e.load(tmp_path / "looked")
    with torch.no_grad():
        model.linear.weight.mul_(2)
    with pytest.raises(t2e.Torch2EngineError):
        module.refit(model, verify=True)
    found = module.refit(model, examples=given)
    assert found.changed == ()  # the first try has put the weights in place
    assert found.parity is not None
    assert list(dict.fromkeys(row.case for row in found.parity.rows)) == ["rows 1", "rows 2", "rows 4"]
    report = module.benchmark(model, examples=iter([looked_inputs(3), looked_inputs(3)]), rounds=1, calls=1, warmup=1)
    assert list(dict.fromkeys(row.case for row in report.rows)) == ["rows 3", "rows 3 (1)"]
    with pytest.raises(t2e.ShapeError, match=r"examples\[0\], "):
        module.refit(model, examples=[looked_inputs(9)])

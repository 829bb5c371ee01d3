"""Live parameters on ONNX Runtime: a change of value costs nothing, and everything else is as without them.

Enters: a model with an adapter whose scale an exporter would fold into a weight. Leaves: proof that each call reads the
present values, that copies and files have their own, and that other tensors are refused.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.core.live_parameter_data import LiveParameter
from torch2engine.deployed.live_tensors import TAKEN_NAMES, require_free_names
from torch2engine.serving.array_runner import OrtRunner

PATTERNS = ["*.lora_scale", "temperature"]
PATHS = ["temperature", "layers.0.lora_scale", "layers.1.lora_scale"]
Deployed = t2e.ORTModule[Any]


class Adapter(nn.Module):
    """A linear layer with an adapter; without live parameters its whole weight is one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6)
        self.down = nn.Parameter(torch.randn(2, 6))
        self.up = nn.Parameter(torch.randn(6, 2))
        self.register_buffer("lora_scale", torch.tensor(0.5))
        self.lora_scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.base.weight + self.lora_scale * (self.up @ self.down)
        return nn.functional.linear(x, weight, self.base.bias).tanh()


class Net(nn.Module):
    """Two adapters, in a list whose name is that of a method of TRTModule, and a parameter of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Adapter(), Adapter()])
        self.temperature = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x[:, :3] / self.temperature


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    """A module whose model is gone; each test takes a copy."""
    return t2e.deploy(
        net(),
        torch.randn(4, 6),
        {"x": {0: "batch"}},
        live_parameters=PATTERNS,
        runtime="onnxruntime",
        config=t2e.BuildConfig(refittable=True),
    )


@pytest.fixture
def module(deployed: Deployed) -> Deployed:
    """A copy with live parameters of its own."""
    return copy.deepcopy(deployed)


@torch.no_grad()
def require_equal(module: nn.Module, model: nn.Module) -> None:
    """Both answer the same at another size than the sample's."""
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def change(model: Net) -> Net:
    """Give the model other values of all live parameters."""
    model.temperature.copy_(torch.tensor([4.0, 0.5, -1.0]))
    model.layers[0].lora_scale.fill_(-2.0)
    model.layers[1].lora_scale.fill_(0.0)
    return model


def test_live_parameters_are_parameters_and_buffers_of_the_model_kind(deployed: Deployed) -> None:
    """Their names and kinds are the model's, they need no gradients, and the report compares other values, too."""
    assert list(deployed.live_parameters) == [PATHS[1], PATHS[2], PATHS[0]]
    assert dict(deployed.named_parameters()).keys() == {"temperature"}
    assert dict(deployed.named_buffers()).keys() == set(PATHS[1:])
    assert not deployed.temperature.requires_grad
    assert [row.case for row in deployed.report.parity[0].rows] == ["min", "opt", "random", "live"]


def test_values_written_in_place_are_read_by_the_next_call(module: Deployed) -> None:
    """The adapter's scale is no constant of the graph, although it is only added to weights."""
    model = net()
    require_equal(module, model)
    change(model)
    with torch.no_grad():
        for path, value in module.live_parameters.items():
            value.copy_(model.state_dict()[path])
    require_equal(module, model)


def test_values_assigned_by_attribute_are_read_by_the_next_call(module: Deployed) -> None:
    """A parameter takes another parameter, and a buffer another tensor, below a list as in the model."""
    model = change(net())
    module.temperature = nn.Parameter(model.temperature.detach().clone(), requires_grad=False)
    layers: Any = module.layers
    for index in (0, 1):
        layers[index].lora_scale = model.layers[index].lora_scale.clone()
    require_equal(module, model)


def test_state_dict_of_the_model_gives_the_live_values(module: Deployed) -> None:
    """load_state_dict finds the model's own names."""
    model = change(net())
    found = module.load_state_dict(model.state_dict(), strict=False)
    assert found.missing_keys == ["_extra_state"]
    require_equal(module, model)


def test_state_dict_of_another_module_carries_the_live_values(deployed: Deployed, module: Deployed) -> None:
    """A strict load_state_dict gives engine and values."""
    changed = copy.deepcopy(deployed)
    changed.load_state_dict(change(net()).state_dict(), strict=False)
    module.load_state_dict(changed.state_dict())
    require_equal(module, change(net()))


def test_memory_is_the_models_own_until_the_module_is_copied() -> None:
    """A model that an engine replaces in a pipeline still moves its engine; a copy of the engine does not follow."""
    model = net()
    module = t2e.deploy(model, torch.randn(4, 6), live_parameters=["layers.0.lora_scale"], runtime="onnxruntime")
    copied = copy.deepcopy(module)
    with torch.no_grad():
        model.layers[0].lora_scale.fill_(3.0)
        x = torch.randn(4, 6)
        torch.testing.assert_close(module(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(copied(x), net()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("carry", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_present_values_and_their_own_memory(carry: Callable[[Any], Any], module: Deployed) -> None:
    """What is changed before the copy comes along; what is changed later does not."""
    module.load_state_dict(change(net()).state_dict(), strict=False)
    copied = carry(module)
    module.load_state_dict(net().state_dict(), strict=False)
    require_equal(copied, change(net()))
    require_equal(module, net())


def test_saved_module_names_its_live_parameters_and_has_their_values(module: Deployed, tmp_path: Path) -> None:
    """The manifest has both; what is loaded has parameters and buffers of its own."""
    module.load_state_dict(change(net()).state_dict(), strict=False)
    module.save(tmp_path / "net.t2e")
    manifest = t2e.OnnxArtifact.load(tmp_path / "net.t2e").manifest()
    assert [one["live"]["path"] for one in manifest["signature"]["inputs"] if "live" in one] == PATHS[1:] + PATHS[:1]
    loaded: Any = t2e.load(tmp_path / "net.t2e")
    require_equal(loaded, change(net()))
    loaded.load_state_dict(net().state_dict(), strict=False)
    require_equal(loaded, net())


def test_arrays_are_answered_with_the_saved_values_or_others(module: Deployed, tmp_path: Path) -> None:
    """Without PyTorch a live parameter has its saved value, unless the call gives another one."""
    runner = OrtRunner(t2e.OnnxArtifact.load(module.save(tmp_path / "net.t2e")))
    x = torch.randn(2, 6)
    others = {path: value.detach().numpy() for path, value in change(net()).state_dict().items() if path in PATHS}
    with torch.no_grad():
        np.testing.assert_allclose(runner.infer(x.numpy())["output"], net()(x), rtol=1e-4, atol=1e-6)
        answer = runner.infer({"x": x.numpy(), **others})["output"]
        np.testing.assert_allclose(answer, change(net())(x), rtol=1e-4, atol=1e-6)


def test_refit_leaves_live_parameters_out(module: Deployed) -> None:
    """New weights come from the model, and the module's own live values stay."""
    model = change(net())
    with torch.no_grad():
        model.layers[1].base.weight.mul_(2)
    assert module.refit(model, verify=True).changed == ("layers.1.base.weight",)
    module.load_state_dict(model.state_dict(), strict=False)
    require_equal(module, model)
    assert not module.stale(model)


def test_benchmark_times_the_present_values(module: Deployed) -> None:
    """It compares with a model that has the same values before it times."""
    model = change(net())
    module.load_state_dict(model.state_dict(), strict=False)
    assert module.benchmark(model, rounds=1, calls=1, warmup=0).parity is not None


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (
            lambda module: setattr(module, "temperature", None),
            t2e.InputError,
            "live parameter 'temperature': got no tensor; expected float32[3], as it was deployed; assign such a "
            "tensor, or write the new value into the old one, e.g. with .copy_(...)",
        ),
        (
            lambda module: setattr(module.layers[0], "lora_scale", torch.tensor(1.0, dtype=torch.float16)),
            t2e.DtypeError,
            "live parameter 'layers.0.lora_scale': got dtype float16; expected float32[], as it was deployed; assign "
            "such a tensor, or write the new value into the old one, e.g. with .copy_(...)",
        ),
        (
            lambda module: setattr(module.layers[0], "lora_scale", torch.ones(1)),
            t2e.ShapeError,
            "live parameter 'layers.0.lora_scale': got shape [1]; expected float32[], as it was deployed; assign such "
            "a tensor, or write the new value into the old one, e.g. with .copy_(...)",
        ),
        (
            lambda module: setattr(module.layers[0], "lora_scale", torch.ones((), device="meta")),
            t2e.DeviceError,
            "live parameter 'layers.0.lora_scale': got device meta; expected cpu, where the module runs; move it with "
            ".to('cpu')",
        ),
        (
            lambda module: setattr(module, "temperature", nn.Parameter(torch.ones(3))),
            t2e.InputError,
            "live parameter 'temperature': got a tensor that requires grad while grad is enabled; expected one without "
            "gradients, since an engine only infers; call its requires_grad_(False), or call the module under "
            "torch.no_grad()",
        ),
    ],
)
def test_call_refuses_another_tensor_than_was_deployed(
    spoil: Callable[[Any], None], kind: type[Exception], text: str, module: Deployed
) -> None:
    """dtype, shape and device are those of the model, before anything runs."""
    spoil(module)
    with pytest.raises(kind) as caught:
        module(torch.randn(2, 6))
    assert str(caught.value) == text


def test_module_takes_no_other_parameters_buffers_or_submodules(module: Deployed) -> None:
    """What would have no effect is refused, also below the submodules on the way."""
    layers: Any = module.layers
    for owner, name, value in [
        (module, "bias", nn.Parameter(torch.ones(1))),
        (layers[0], "lora_scale", nn.Parameter(torch.ones(()))),
        (module, "layers", nn.Linear(1, 1)),
    ]:
        with pytest.raises(t2e.InputError, match=f"got an attempt to set parameter, buffer or submodule '{name}'"):
            setattr(owner, name, value)
    require_equal(module, net())


def test_module_without_live_parameters_has_none() -> None:
    """Its calls read nothing more than before."""
    module = t2e.deploy(nn.Linear(3, 2), torch.randn(1, 3), runtime="onnxruntime")
    assert module.live_parameters == {}
    assert list(module.state_dict()) == ["_extra_state"]


def test_taken_names_are_all_that_a_module_writes_itself(deployed: Deployed) -> None:
    """A live parameter of another name can't hide an attribute that the module writes."""
    written = {name for name in vars(deployed) if not name.startswith("_")} - set(vars(nn.Module()))
    assert written | {"training"} == set(TAKEN_NAMES)
    with pytest.raises(t2e.InputError) as caught:
        require_free_names([LiveParameter("report.scale", "buffer")])
    assert str(caught.value) == (
        "live parameter 'report.scale': got the name 'report'; expected other names than report and training, which a "
        "deployed module has itself; rename it in the model"
    )

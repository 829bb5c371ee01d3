"""Submodules of a pipeline in engines: recorded, compared, swapped, restored, saved and loaded."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e


class Decoder(nn.Module):
    """A module with an attribute that its pipeline reads."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.inner = nn.Linear(8, 3)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, N, 8] → [B, N, 3]."""
        return self.inner(latent).tanh()


class Pipeline:
    """No nn.Module: an object with modules, as a pipeline of diffusers is one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()
        self.decoder = Decoder().eval()
        self.unused = nn.Linear(2, 2).eval()

    @torch.no_grad()
    def __call__(self, length: int) -> dict[str, Any]:
        """Random words of a length → an image as an array, and a text."""
        latent = self.encoder(torch.randn(2, length, 4))
        image = self.decoder(latent) * self.decoder.scale
        return {"images": [image.numpy()], "text": f"{length} words"}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline()


def run(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Two calls of other sizes."""
    return [pipeline(length) for length in (3, 7)]


@pytest.fixture(scope="module")
def deployed(pipeline: Pipeline) -> Iterator[t2e.DeployedSubmodules]:
    """The pipeline with engines in the place of two modules, and its random numbers as they were."""
    with t2e.deploy_submodules(
        pipeline, lambda: run(pipeline), ["*coder", "unused"], runtime="onnxruntime"
    ) as submodules:
        yield submodules


def image_of(pipeline: Pipeline, length: int) -> torch.Tensor:
    """An image from fixed random numbers."""
    torch.manual_seed(1)
    return torch.from_numpy(pipeline(length)["images"][0])


def test_submodules_answer_at_sizes_between_those_that_were_recorded(
    deployed: t2e.DeployedSubmodules, pipeline: Pipeline
) -> None:
    """The whole call was compared; a module that was never called is named and left alone."""
    assert sorted(deployed.modules) == ["decoder", "encoder"]
    assert [report.passed for report in deployed.parity] == [True]
    assert {row.name for row in deployed.parity[0].rows} == {"result.0.images.0", "result.1.images.0"}
    assert deployed.notes == ["'unused' was never called, and is as it was"]
    torch.testing.assert_close(image_of(pipeline, 5), image_of(Pipeline(), 5))
    with pytest.raises(t2e.ShapeError, match=r"got input_1 = 8; expected 3\.\.7"):
        pipeline(8)
    assert pipeline.decoder.scale == 2.0
    assert list(pipeline.decoder.state_dict()) == ["inner.weight", "inner.bias"]


def test_saved_submodules_answer_in_another_pipeline_and_are_restored_exactly(
    deployed: t2e.DeployedSubmodules, tmp_path: Path
) -> None:
    """Loading replaces forward alone, and restoring gives the very answer of before."""
    folder = deployed.save(tmp_path / "pipeline")
    other = Pipeline()
    before = image_of(other, 5)
    attributes = dict(vars(other.decoder))
    loaded = t2e.load_submodules(other, folder)
    assert "forward" in vars(other.decoder)
    torch.testing.assert_close(image_of(other, 5), before)
    loaded.restore()
    assert dict(vars(other.decoder)) == attributes
    assert torch.equal(image_of(other, 5), before)
    with pytest.raises(t2e.InputError, match=r"submodule 'encoder': got a Linear without it"):
        t2e.load_submodules(nn.Linear(2, 2), folder)
    (folder / "submodules.json").write_text(json.dumps({"encoder": 1}))
    with pytest.raises(t2e.ArtifactError, match=r"got no readable submodules\.json"):
        t2e.load_submodules(Pipeline(), folder)


def test_restored_pipeline_is_untouched_after_a_whole_call_that_differs() -> None:
    """Code whose text depends on rounding is refused, and PyTorch answers as before."""
    pipeline = Pipeline()
    seen: list[str] = []

    def call() -> str:
        seen.append(("forward" in vars(pipeline.encoder) and "engines") or "PyTorch")
        pipeline(3)
        return seen[-1]

    with pytest.raises(t2e.ParityError, match="the whole call: got result = 'engines', where PyTorch gives 'PyTorch'"):
        t2e.deploy_submodules(pipeline, call, ["encoder"], runtime="onnxruntime")
    assert seen == ["PyTorch", "engines"]
    assert "forward" not in vars(pipeline.encoder)


def test_declared_axis_and_live_parameter_hold_for_the_submodule_of_the_call() -> None:
    """Sizes reach beyond those of the calls, and what is written into the pipeline's own buffer holds at once."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 3)
            self.register_buffer("lora_scale", torch.tensor(0.5))

        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return self.inner(latent) * self.lora_scale

    pipeline = Pipeline()
    pipeline.decoder.inner = Adapted().eval()
    axes = {"latent": {1: t2e.Axis("length", 1, 3, 16)}}
    with t2e.deploy_submodules(
        pipeline,
        lambda: pipeline(3),
        ["decoder.inner"],
        runtime="onnxruntime",
        dynamic_axes=axes,
        live_parameters=["lora_scale"],
    ):
        before = image_of(pipeline, 9)
        pipeline.decoder.inner.lora_scale.fill_(2.0)
        engine = image_of(pipeline, 9)
    assert not torch.allclose(engine, before, atol=1e-2)
    torch.testing.assert_close(engine, image_of(pipeline, 9))


def test_submodule_whose_children_alone_are_called_names_them() -> None:
    """A pipeline that calls a method of a module, as diffusers calls vae.decode(), hears what to name instead."""

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(2, 2), Decoder()

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return self.decoder(latent)

    pipeline = Pipeline()
    pipeline.vae = Autoencoder().eval()
    pipeline.components = [pipeline.vae]  # not a pipeline of diffusers, where this is a mapping
    deployed = t2e.deploy_submodules(pipeline, lambda: pipeline.vae.decode(torch.ones(1, 2, 8)), ["vae"])
    assert deployed.notes == ["'vae' was never called, and is as it was; name what is called in it: vae.decoder"]
    assert not deployed.modules
    assert not pipeline.vae.decoder._forward_pre_hooks


def test_refit_takes_the_weights_that_the_submodules_have_now() -> None:
    """The reference keeps its own forward, so that no engine is compared with itself."""
    pipeline = Pipeline()
    config = t2e.BuildConfig(refittable=True)
    with t2e.deploy_submodules(
        pipeline, lambda: pipeline(3), ["encoder"], runtime="onnxruntime", config=config
    ) as deployed:
        with torch.no_grad():
            pipeline.encoder[0].weight.mul_(2)
        with pytest.raises(t2e.InputError, match="got a Sequential whose calls an engine answers"):
            deployed.modules["encoder"].refit(pipeline.encoder)
        refit = deployed.refit(verify=True)["encoder"]
        assert refit.changed == ("0.weight",)
        assert refit.parity is not None
        engine = image_of(pipeline, 3)
    torch.testing.assert_close(engine, image_of(pipeline, 3))


def test_pipeline_is_deployed_with_gradients_enabled_and_keeps_them() -> None:
    """A call whose inputs require gradients is PyTorch's, with one warning; all other calls are the engines'."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Decoder()).eval()
    x = torch.rand(2, 3, 4)
    expected = model(x)
    deployed = t2e.deploy_submodules(model, lambda: model(x), ["1"], runtime="onnxruntime")
    assert inspect.signature(model[1].forward) == inspect.signature(Decoder().forward)
    with pytest.warns(UserWarning, match="gradients are needed, so PyTorch itself answers"):
        answer = model(x)
    assert torch.equal(answer, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).sum().backward()
        from_engine = model[1](model[0](x).detach())
    assert not from_engine.requires_grad  # which PyTorch's answer would, as the parameters do
    torch.testing.assert_close(from_engine, expected.detach())
    assert model[0].weight.grad is not None
    deployed.restore()
    assert torch.equal(model(x), expected)


def test_pattern_that_names_nothing_is_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(t2e.InputError, match=r"patterns, 'encodr': got no such .* did you mean 'encoder'\?"):
        t2e.deploy_submodules(Pipeline(), lambda: None, ["encodr"], runtime="onnxruntime")
    with pytest.raises(t2e.InputError, match="patterns: got 'encoder'; expected a list of names"):
        t2e.deploy_submodules(Pipeline(), lambda: None, "encoder", runtime="onnxruntime")

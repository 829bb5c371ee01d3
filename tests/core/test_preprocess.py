"""`deploy(..., preprocess=...)`: bytes in, and the answers of the model behind the same arithmetic in PyTorch.

Enters: images of uint8 in either layout. Leaves: proof that whatever deploys, judges, refits or answers for a model
does so behind its preprocessing, and that what is no such image is refused.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.models import captured, graph_of
from tests.support.sample_artifacts import sealed
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import make_parity_cases
from torch2engine.core.errors import ArtifactError, DtypeError, ExportError, InputError, RefitError, ShapeError
from torch2engine.core.preprocess import ORIGIN, Preprocess
from torch2engine.core.spec import TensorSpec
from torch2engine.deployed.module_access import attach_model

CONFIG = t2e.BuildConfig(refittable=True)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocess(mean=MEAN, std=STD)
AXES = {"x": {0: t2e.Axis("batch", 1, 4, 8), 1: t2e.Axis("height", 8, 12, 16)}}


class Net(nn.Module):
    """A convolution with its BatchNorm, and two linear layers; not indifferent to the order of dimensions."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, (3, 2), padding=1), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


def net(channels: int = 3) -> Net:
    torch.manual_seed(0)
    model = Net(channels)
    with torch.no_grad():
        model(2 * torch.randn(64, channels, 8, 8) + 1)  # running statistics that are not 0 and 1
    return model.eval()


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(256, shape or (4, 12, 10, 3), generator=generator, dtype=torch.uint8)


def formula(x: torch.Tensor, layout: str = "NHWC", mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    """What a data loader would do, in float64 and in the formula's own order."""
    planes = x.permute(0, 3, 1, 2) if layout == "NHWC" else x
    sides = [torch.tensor(value, dtype=torch.float64).reshape(-1, 1, 1) for value in (mean, std)]
    return ((planes.double() / 255 - sides[0]) / sides[1]).float()


def on_cpu(model: nn.Module, x: Any, axes: Any = None, preprocess: Any = IMAGENET, **options: Any) -> t2e.ORTModule:
    module = t2e.deploy(model, x, axes, preprocess=preprocess, runtime="onnxruntime", **options)
    assert isinstance(module, t2e.ORTModule)
    return module


@functools.cache
def once() -> t2e.ORTModule:
    """`net()`, deployed to be refitted."""
    return on_cpu(net(), images(), AXES, config=CONFIG)


def fresh(model: nn.Module) -> t2e.ORTModule:
    """`once()` anew, as deploy leaves it for this model of the same weights."""
    module = t2e.ORTModule(once()._artifact)
    attach_model(module, model, [("opt", [images()])], None)
    return module


def error(model: nn.Module, module: nn.Module, x: torch.Tensor, **layout: Any) -> float:
    with torch.no_grad():
        wanted, got = model(formula(x, **layout)), module(x)
    return float((got - wanted).norm() / wanted.norm())


def refusal(kind: type[Exception], call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert type(caught.value) is kind
    return str(caught.value)


def lying(artifact: OnnxArtifact, wrong: Preprocess) -> OnnxArtifact:
    """The same graph under a signature that says something else of it."""
    spec = artifact.signature.inputs[0]
    return OnnxArtifact(
        artifact.folder,
        signature=replace(artifact.signature, inputs=(replace(spec, preprocess=wrong),)),
        profiles=artifact.profiles,
        precision=artifact.precision,
        versions=artifact.versions,
        owner=artifact,
    )


# The arithmetic


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), (0.5, 0.25), (MEAN, 1.0), (0.0, STD)])
def test_every_byte_becomes_what_the_formula_says(layout: str, mean: Any, std: Any) -> None:
    """One product and one sum are the formula up to float32's rounding, for all bytes in all channels."""
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, 3)
    x = every if layout == "NHWC" else every.permute(0, 3, 1, 2)
    made = Preprocess(mean=mean, std=std, layout=layout)(x)
    assert (made.dtype, made.shape, made.is_contiguous()) == (torch.float32, (2, 3, 16, 16), True)
    torch.testing.assert_close(made, formula(x, layout, mean, std), rtol=0, atol=1e-6)


def test_preprocess_takes_arrays_and_tensors_and_is_a_value() -> None:
    """Numbers from wherever they come make equal, hashable values that survive JSON."""
    first = Preprocess(mean=np.array(MEAN), std=torch.tensor(STD, dtype=torch.float64), scale=np.float64(1 / 255))
    assert first == IMAGENET
    assert hash(first) == hash(IMAGENET)
    assert Preprocess.from_json(first.to_json()) == first == t2e.Preprocess(mean=list(MEAN), std=list(STD))
    assert (first.channels, Preprocess(mean=0.5).channels) == (3, None)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_deployed_module_takes_bytes(layout: str) -> None:
    """Sample, axes and calls are uint8 in the stated layout; the answer is the model's behind the formula."""
    model = net()
    turned = (lambda x: x) if layout == "NHWC" else (lambda x: x.permute(0, 3, 1, 2).contiguous())
    axes = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}
    module = on_cpu(model, turned(images()), axes, replace(IMAGENET, layout=layout))
    assert module.signature.inputs[0].dtype == "uint8"
    assert error(model, module, turned(images(3, 12, 10, 3)), layout=layout) < 1e-6


def test_graph_casts_first_and_says_where_its_nodes_come_from() -> None:
    """Behind an input of uint8 TensorRT takes a Cast alone; no module of the model's is blamed for these nodes."""
    nodes = list(graph_of(once()._artifact).node)
    assert [node.op_type for node in nodes[:4]] == ["Cast", "Transpose", "Mul", "Add"]
    modules = [next(p.value for p in node.metadata_props if p.key == "torch2engine.module") for node in nodes]
    assert modules[:4] == [ORIGIN] * 4
    assert ORIGIN not in modules[4:]
    without_mean = t2e.export(net(), images(), preprocess=Preprocess())
    assert [node.op_type for node in graph_of(without_mean).node][:4] == ["Cast", "Transpose", "Mul", "Conv"]


def test_model_without_preprocess_is_untouched() -> None:
    """Its manifest has no word of it, and its nodes have the origins that they had."""
    artifact = t2e.export(net(), torch.rand(2, 3, 8, 8))
    assert "preprocess" not in str(artifact.signature.to_json())
    assert all(ORIGIN not in str(node.metadata_props) for node in graph_of(artifact).node)


# Calls of any form


class Pair(nn.Module):
    """Two images and a weight, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, batch: dict[str, torch.Tensor], *, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.net(batch["left"]) + weight * self.net(batch["right"])}


def test_inputs_are_named_as_in_dynamic_axes() -> None:
    """A mapping names the inputs by their paths; others, keywords and results stay what they are."""
    model, weight = Pair().eval(), torch.rand(4, 1)
    sample = t2e.Inputs({"left": images(), "right": images(4, 9, 9, 3)}, weight=weight)
    plain = Preprocess(mean=0.5, std=0.25)
    axes = {name: {0: t2e.Axis("batch", 1, 4, 8)} for name in ("batch.left", "batch.right", "weight")}
    module = on_cpu(model, sample, axes, {"batch.left": IMAGENET, "batch.right": plain})
    left, right, weight = images(2, 12, 10, 3), images(2, 9, 9, 3), torch.rand(2, 1)
    answer = module({"left": left, "right": right}, weight=weight)
    with torch.no_grad():
        wanted = model({"left": formula(left), "right": formula(right, mean=0.5, std=0.25)}, weight=weight)
    torch.testing.assert_close(answer, wanted, rtol=1e-5, atol=1e-6)


def test_model_is_left_as_it_was_and_its_hooks_see_floats() -> None:
    """Preprocessing lies before the model's own hooks, training flags stay, and the model still takes floats."""
    model, seen = net().train(), set[tuple[torch.dtype, int]]()
    model.norm.eval()
    handle = model.register_forward_pre_hook(lambda _, args: seen.add((args[0].dtype, args[0].shape[1])))
    module = on_cpu(model, images())
    assert seen == {(torch.float32, 3)}
    assert (model.training, model.norm.training, model.conv.training) == (True, False, True)
    assert list(model._forward_pre_hooks) == [handle.id]
    handle.remove()
    assert error(model.eval(), module, images()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_gets_its_own_dtype(dtype: torch.dtype) -> None:
    """Normalised in float32, then cast to what the model's first layer works in."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(dtype).eval()
    module = on_cpu(model, images())
    with torch.no_grad():
        wanted = model(formula(images()).to(dtype))
    bound = 2e-3 if dtype == torch.float16 else 2e-2
    torch.testing.assert_close(module(images()), wanted, rtol=bound, atol=bound)


def test_call_with_floats_is_refused() -> None:
    """What was normalised already is not normalised again."""
    text = (
        "input 'x': got dtype float32; expected uint8; pass the image's bytes as they were decoded: "
        "the engine normalises them"
    )
    assert refusal(DtypeError, once(), formula(images()).permute(0, 2, 3, 1)) == text


# Judged


@pytest.mark.parametrize("wrong", [replace(IMAGENET, mean=0.5), replace(IMAGENET, scale=1 / 256), Preprocess()])
def test_judge_finds_another_preprocessing(wrong: Preprocess) -> None:
    """A graph that normalises otherwise than PyTorch does not pass, so the comparison goes through it."""
    artifact = once()._artifact
    assert t2e.check(net(), artifact, images()).passed
    assert not t2e.check(net(), lying(artifact, wrong), images()).passed


def test_cases_are_bytes_of_all_values() -> None:
    """The random case has any byte, though the sample is black; a repeated sample gets noise within its range."""
    settled = captured(net(), torch.zeros(1, 8, 8, 3, dtype=torch.uint8), AXES, preprocess=IMAGENET)
    found = {case.name: case.inputs[0] for case in make_parity_cases(settled)[0]}
    assert len(found["random"].unique()) == 256
    dim = images(2, 12, 10, 3) // 2
    grown = {
        case.name: case.inputs[0] for case in make_parity_cases(captured(net(), dim, AXES, preprocess=IMAGENET))[0]
    }["max"]
    assert grown.dtype == torch.uint8
    assert len(grown.flatten(1).unique(dim=0)) == 8
    assert int(grown.max()) <= int(dim.max())


# Precision


@pytest.mark.parametrize("precision", ["fp16", "bf16", t2e.Precision("int8", keep_fp32=["conv"])])
def test_low_precisions_hold_and_build(precision: Any) -> None:
    """Calibrated on bytes, normalised in float32, judged, and built by TensorRT-RTX."""
    model, data = net(), [images(4, 12, 10, 3), images(3, 9, 10, 3)]
    module = on_cpu(model, images(), AXES, precision=precision, calibration=data)
    assert module.report is not None
    assert error(model, module, images(5, 16, 10, 3)) < t2e.Tolerance.default(module.precision).rel_l2
    assert f"float32 in '{ORIGIN}' (4 nodes): makes the input of bytes" in str(module.report.lowering)
    engine = t2e.build(module._artifact)
    assert engine.signature.inputs[0] == module.signature.inputs[0]


def test_engines_are_built_from_bytes() -> None:
    """TensorRT-RTX takes the graph of float32 and of a half model, with its input of uint8."""
    for model in (net(), net().half()):
        engine = t2e.build(t2e.export(model, images(), AXES, preprocess=IMAGENET))
        assert engine.signature.inputs == (TensorSpec("x", "uint8", ("batch", "height", 10, 3), IMAGENET),)


def test_sensitivity_is_measured_through_it() -> None:
    """What each module costs is found on bytes too."""
    found = t2e.sensitivity(net(), images(), AXES, precision="fp16", preprocess=IMAGENET)
    assert {"hidden", "head", ORIGIN} <= found.errors.keys()
    assert max(found.errors.values()) < 1e-2


# Refit, and PyTorch in the engine's place


def test_refit_takes_the_bare_model() -> None:
    """Paths are the model's own; stale sees its weights, and the answers are compared behind the preprocessing."""
    model = net()
    module = fresh(model)
    assert not module.stale()
    with torch.no_grad():
        model.conv.weight.mul_(1.5)
        model.norm.running_mean.add_(0.5)
    assert module.stale()
    assert error(model, module, images()) > 1e-2
    done = module.refit(model, verify=True)
    assert set(done.changed) == {"conv.weight", "norm.running_mean"}
    assert done.parity is not None
    assert done.parity.passed
    assert error(model, module, images(2, 9, 10, 3)) < 1e-6


def test_tracked_model_is_followed() -> None:
    """A step is in the next answer."""
    model = net()
    module = fresh(model)
    module.track(model)
    for _ in range(2):
        with torch.no_grad():
            model.head.weight.mul_(2).add_(1)
        assert error(model, module, images()) < 1e-6


def test_loaded_module_knows_its_preprocessing(tmp_path: Path) -> None:
    """It is in the manifest: a bare model refits, is compared on random bytes, and answers out of range."""
    model = net()
    eager = t2e.RuntimeConfig(out_of_range="eager")
    loaded = t2e.load(once().save(tmp_path / "net.t2e"), runtime_config=eager, reference=model)
    assert loaded.signature == once().signature
    assert loaded.signature.preprocess == (IMAGENET,)
    with torch.no_grad():
        model.head.bias.add_(1)
    assert loaded.refit(model, verify=True).changed == ("head.bias",)
    with pytest.warns(UserWarning, match="PyTorch answers such calls"):
        assert error(model, loaded, images(20, 12, 10, 3)) < 1e-6


def test_copies_know_it_too() -> None:
    """Pickled, deep-copied and by state_dict."""
    for module in (copy.deepcopy(once()), pickle.loads(pickle.dumps(once()))):
        assert module.signature.preprocess == (IMAGENET,)
        assert module.refit(net(), verify=True).parity.passed


@pytest.mark.parametrize("policy", ["eager", "split"])
def test_sizes_out_of_range_are_preprocessed(policy: str) -> None:
    """PyTorch answers behind the same arithmetic; chunks are chunks of bytes."""
    model = net()
    module = on_cpu(model, images(), AXES, runtime_config=t2e.RuntimeConfig(out_of_range=policy))
    if policy == "split":
        assert error(model, module, images(20, 12, 10, 3)) < 1e-6
        return
    with pytest.warns(UserWarning, match="PyTorch answers such calls"):
        assert error(model, module, images(20, 12, 10, 3)) < 1e-6


def test_wrong_reference_is_found_by_a_refit() -> None:
    """A module whose preprocessing lies breaks its comparison, not silently its answers."""
    module = t2e.ORTModule(lying(once()._artifact, replace(IMAGENET, std=0.3)))
    assert "answers that differ from the model's" in refusal(RefitError, module.refit, net(), verify=True)


def test_benchmark_times_eager_with_its_preprocessing() -> None:
    """Both candidates start from the same bytes, and their answers are compared."""
    report = once().benchmark(net(), rounds=2, calls=1, warmup=1)
    assert report.parity is not None
    assert report.parity.passed
    assert {row.candidate for row in report.rows} == {once().runtime, "PyTorch eager"}


# Refused

LISTS = "; pass a float, or a list of floats"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"std": 0.0}, "Preprocess.std: got 0.0; expected a finite number above 0, or one for each channel" + LISTS),
        (
            {"std": (1.0, 0.0)},
            "Preprocess.std: got (1.0, 0.0); expected a finite number above 0, or one for each channel" + LISTS,
        ),
        ({"mean": float("nan")}, "Preprocess.mean: got nan; expected a finite number, or one for each channel" + LISTS),
        ({"mean": ()}, "Preprocess.mean: got (); expected a finite number, or one for each channel" + LISTS),
        ({"mean": "0.5"}, "Preprocess.mean: got '0.5'; expected a finite number, or one for each channel" + LISTS),
        ({"mean": True}, "Preprocess.mean: got True; expected a finite number, or one for each channel" + LISTS),
        ({"mean": None}, "Preprocess.mean: got None; expected a finite number, or one for each channel" + LISTS),
        ({"mean": {0.5}}, "Preprocess.mean: got {0.5}; expected a finite number, or one for each channel" + LISTS),
        (
            {"mean": {0: 0.5}},
            "Preprocess.mean: got {0: 0.5}; expected a finite number, or one for each channel" + LISTS,
        ),
        ({"mean": b"a"}, "Preprocess.mean: got b'a'; expected a finite number, or one for each channel" + LISTS),
        ({"mean": ["0.5"]}, "Preprocess.mean: got ['0.5']; expected a finite number, or one for each channel" + LISTS),
        (
            {"std": [True]},
            "Preprocess.std: got [True]; expected a finite number above 0, or one for each channel" + LISTS,
        ),
        (
            {"std": 10**400},
            f"Preprocess.std: got {10**400}; expected a finite number above 0, or one for each channel" + LISTS,
        ),
        (
            {"mean": (123.7, 116.3, 103.5), "std": 58.0},
            "Preprocess.mean: got 123.7, while x * scale is at most 1; expected a mean in units of x "
            "* scale; pass scale=1 for a mean and std of bytes",
        ),
        (
            {"scale": 0},
            (
                "Preprocess.scale: got 0; expected a finite number above 0; pass 1 / 255 for floats of 0 "
                "to 1, or 1 for bytes"
            ),
        ),
        (
            {"scale": (1, 2)},
            (
                "Preprocess.scale: got (1, 2); expected a finite number above 0; pass 1 / 255 for floats "
                "of 0 to 1, or 1 for bytes"
            ),
        ),
        (
            {"layout": "HWC"},
            "Preprocess.layout: got 'HWC'; expected one of 'NHWC', 'NCHW'; say where the images have "
            "their channels; a decoder gives 'NHWC'",
        ),
        (
            {"mean": (0, 0, 0), "std": (1, 1)},
            "Preprocess: got 3 means and 2 stds; expected one number for all channels, or one for "
            "each; give as many of both as the images have channels",
        ),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, Any], text: str) -> None:
    """A wrong value never gets past construction."""
    assert refusal(InputError, lambda: Preprocess(**options)) == text


@pytest.mark.parametrize(
    ("sample", "kind", "text"),
    [
        (
            torch.rand(2, 8, 8, 3),
            DtypeError,
            "input 'x': got dtype float32; expected uint8, since preprocess= takes bytes; pass the "
            "image's bytes, (batch, height, width, channels)",
        ),
        (
            images(8, 8, 3),
            ShapeError,
            "input 'x': got shape [8, 8, 3] of 3 dimensions; expected NHWC, (batch, height, width, "
            "channels), which Preprocess takes; unsqueeze(0) adds a batch, unsqueeze(-1) channels",
        ),
        (
            images(2, 3, 8, 8),
            ShapeError,
            "input 'x': got shape [2, 3, 8, 8] of 8 channels in the order NHWC; expected 3 channels, "
            "one for each number of mean and std; pass layout='NCHW'",
        ),
        (
            images(2, 8, 8, 4),
            ShapeError,
            "input 'x': got shape [2, 8, 8, 4] of 4 channels in the order NHWC; expected 3 channels, "
            "one for each number of mean and std; give as many numbers as there are channels, or one",
        ),
    ],
)
def test_sample_that_is_no_such_image_is_refused(sample: torch.Tensor, kind: type[Exception], text: str) -> None:
    """Before anything runs, with what came, what is allowed and how to mend it."""
    assert refusal(kind, t2e.export, net(), sample, preprocess=IMAGENET) == text


@pytest.mark.parametrize(
    ("preprocess", "text"),
    [
        (
            IMAGENET,
            "preprocess: got one Preprocess for several inputs; expected one for an input of "
            "batch.left, batch.right, weight; say which, e.g. {'batch.left': Preprocess(...)}",
        ),
        (
            {"left": IMAGENET},
            (
                "preprocess['left']: got no such input; expected one of batch.left, batch.right, weight; "
                "did you mean 'batch.left'?"
            ),
        ),
        (
            {"weight": 0.5},
            "preprocess['weight']: got a float; expected a Preprocess; leave the input out if it has none",
        ),
        (
            nn.Identity(),
            "preprocess: got an Identity; expected a Preprocess, or a dict of them by input; for "
            "another computation, deploy a module that makes it before it calls the model",
        ),
    ],
)
def test_preprocess_that_fits_no_input_is_refused(preprocess: Any, text: str) -> None:
    """The message lists the inputs."""
    sample = t2e.Inputs({"left": images(), "right": images()}, weight=torch.rand(4, 1))
    assert refusal(InputError, t2e.export, Pair(), sample, preprocess=preprocess) == text


def test_image_with_too_many_channels_fails_in_the_model() -> None:
    """One number for all channels says nothing of their count; the model does."""
    text = refusal(ExportError, t2e.export, net(), images(2, 8, 8, 4), preprocess=Preprocess())
    assert "a failure of PyTorch itself on inputs of shape [2, 8, 8, 4], of which preprocess= made [2, 4, 8, 8]" in text


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def test_artifact_of_another_models_inputs_is_told_by_their_names() -> None:
    """The message speaks of what check() was given."""
    text = refusal(InputError, t2e.check, Renamed(), once()._artifact, images())
    assert text.startswith("sample_input: got one of images; expected the artifact's inputs [('x', 'uint8')]")


class Turned(Preprocess):
    """Does something else, which an engine that was loaded would not know of."""


def test_subclass_is_refused() -> None:
    """What is saved is a Preprocess, so nothing else may be computed."""
    text = refusal(InputError, t2e.export, net(), images(), preprocess=Turned())
    assert text.startswith("preprocess: got a Turned; expected a Preprocess, or a dict of them by input")


def test_calibration_data_are_bytes_too() -> None:
    """Floats of an old loader are refused by name, whatever asks for them."""
    text = refusal(
        DtypeError,
        t2e.deploy,
        net(),
        images(),
        precision="fp16",
        preprocess=IMAGENET,
        calibration=[formula(images())],
        runtime="onnxruntime",
    )
    assert text.startswith(
        "calibration item 0: got dtype float32 for input 'x'; expected uint8; pass the image's bytes"
    )


def test_numbers_of_bytes_have_a_scale_of_one() -> None:
    """The formula is the same as with numbers of 0 to 1."""
    of_bytes = Preprocess(mean=[255 * one for one in MEAN], std=[255 * one for one in STD], scale=1)
    torch.testing.assert_close(of_bytes(images()), IMAGENET(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"std": 0.0}, {"mean": "0.5"}, {"layout": "HWC"}, {"gamma": 2.2}])
def test_manifest_with_a_wrong_preprocess_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Numbers in a manifest are checked like a user's."""
    manifest = once().save(tmp_path / "net.t2e") / "manifest.json"
    data = json.loads(manifest.read_bytes())
    assert data["signature"]["inputs"][0]["preprocess"] == IMAGENET.to_json()
    data["signature"]["inputs"][0]["preprocess"].update(change)
    manifest.write_bytes(sealed(data))
    assert "signature.inputs[0].preprocess" in refusal(ArtifactError, t2e.load, tmp_path / "net.t2e")

"""Low precisions as engines: right, and verified layer by layer.

Enters: small networks with random weights, in float32. Leaves: proof that the engine answers like the model in every
precision, that TensorRT's own account says so, and that an engine which quietly computes in float32, or overflows, is
refused. Apart because what TensorRT makes of a graph shows on a GPU only.
"""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support import precision_networks as networks
from torch2engine.parity.parity_report import ParityReport
from torch2engine.precision import lower_graph
from torch2engine.testing import assert_parity

BATCH = {0: t2e.Axis("batch", 1, 8, 32)}
DEPLOY = importlib.import_module("torch2engine.deploy")  # which the function of that name hides
LOOSE = t2e.Tolerance(rel_l2=0.3, max_rel=3.0)  # for random weights in 8 bits and less
Maker = Callable[[int], dict[str, torch.Tensor]]


def tensor(*shape: int) -> Maker:
    return lambda batch: {"x": torch.randn(batch, *shape, device="cuda")}


def tokens(batch: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(networks.CLASSES, networks.VOCABULARY, (batch, 16), device="cuda")
    mask = torch.ones_like(ids)
    mask[-1, 10:] = 0
    return {"input_ids": ids, "attention_mask": mask}


NETWORKS: dict[str, tuple[type[nn.Module], Maker]] = {
    "resnet": (networks.ResNet, tensor(1, 16, 16)),
    "vit": (networks.Vit, tensor(1, 8, 8)),
    "bert": (networks.Bert, tokens),
    "lstm": (networks.Lstm, tensor(8, 8)),
    "rmsnorm": (networks.Llama, tensor(8, 8)),
}


def deployed(model: nn.Module, sample: dict[str, torch.Tensor], precision: Any, **options: Any) -> t2e.TRTModule:
    """On TensorRT, with a dynamic batch."""
    axes = dict.fromkeys(sample, BATCH)
    module = t2e.deploy(model, sample, axes, precision=precision, **options)
    assert isinstance(module, t2e.TRTModule)
    return module


def made(name: str) -> tuple[nn.Module, Maker]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    return make().cuda().eval(), inputs


CASES = [(name, dtype) for name in NETWORKS for dtype in ("fp16", "bf16")]
# In int8 TensorRT-RTX builds no convolution.
CASES += [("bert", "int8"), ("rmsnorm", "int8"), ("lstm", "int8"), *((name, "fp8") for name in NETWORKS)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[".".join(case) for case in CASES])
def test_engine_computes_as_asked(name: str, dtype: str, figure: Callable[[str, float], None]) -> None:
    """Like the model at all sizes and on new data; every product in the type that the graph has it in."""
    model, inputs = made(name)
    tolerance = LOOSE if dtype == "fp8" else t2e.Tolerance.default(dtype)
    module = deployed(model, inputs(8), dtype, tolerance=tolerance)
    assert module.precision == dtype
    assert module.report is not None
    computed = module.report.computed
    assert computed is not None
    assert {one.name: one.engine for one in computed.products} == {one.name: one.precision for one in computed.products}
    graph = sum(one.multiply_adds for one in computed.products if one.precision == dtype)
    assert computed.share(dtype) == graph / sum(one.multiply_adds for one in computed.products)
    assert computed.layers[dtype] > 0
    assert f"in {dtype}" in str(module.report)
    figure(f"precision.{name}.{dtype}.mac_share", computed.share(dtype))
    figure(f"precision.{name}.{dtype}.rel_l2", max(row.rel_l2 for row in module.report.parity[-1].rows))
    for batch in (1, 5, 32):
        fresh = inputs(batch)
        assert next(iter(module(**fresh).unbind())).dtype == torch.float32
        assert_parity(model, module, fresh, tolerance=tolerance)


@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_engine_of_several_profiles_computes_as_asked(name: str) -> None:
    """TensorRT's account of profiles that hold one another is read right, and each of them answers like the model."""
    model, inputs = made(name)
    profiles = [{"batch": (1, 8, 32)}, *({"batch": (size, size, size)} for size in (1, 8, 32))]
    module = deployed(model, inputs(8), "fp16", profiles=profiles)
    assert module.report is not None
    computed = module.report.computed
    assert computed is not None
    assert {one.name: one.engine for one in computed.products} == {one.name: one.precision for one in computed.products}
    assert any(row.case == "profile 0 own" for row in module.report.parity[-1].rows)
    for batch in (1, 5, 8, 32):
        assert_parity(model, module, inputs(batch), precision="fp16")


def test_engine_that_quietly_stays_in_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph was lowered and judged, but the builder is given the float32 one: parity passes, the layers tell."""
    model, inputs = made("vit")
    sample = inputs(8)
    exact = t2e.export(model, sample, dict.fromkeys(sample, BATCH))

    real = DEPLOY.load_or_build

    def load_or_build(
        source: t2e.OnnxArtifact, precision: str | None, config: t2e.BuildConfig, *_: Any, **__: Any
    ) -> Any:
        pending_engine = real(exact, config=config)
        (Path(pending_engine.artifact.folder) / "model.onnx").write_bytes(source.onnx_path.read_bytes())
        return pending_engine

    monkeypatch.setattr(DEPLOY, "load_or_build", load_or_build)
    with pytest.raises(t2e.PrecisionError) as caught:
        deployed(model, sample, "fp16")
    assert isinstance(caught.value, t2e.BuildError)
    text = str(caught.value)
    assert "computes 0.0 % of the multiply-adds that the graph has in fp16 in it" in text
    assert "'blocks.0.mlp.fc1' (in fp32)" in text


class Passed(ParityReport):
    """One that lets everything pass."""

    def raise_if_failed(self) -> ParityReport:
        return self


def test_overflow_is_seen_on_the_engine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ranges hidden and the CPU's judge silenced, the engine's own answers are not finite, and refused."""
    model, inputs = made("vit")
    model.blocks[2].mlp.fc2 = networks.Detour(model.blocks[2].mlp.fc2.cpu(), 2e7).cuda()
    monkeypatch.setattr(lower_graph, "nodes_out_of_range", lambda *args: {})
    monkeypatch.setattr(
        lower_graph, "judge", lambda module, examples, bounds, **options: Passed((), "PyTorch vs nobody", bounds)
    )
    with pytest.raises(t2e.ParityError) as caught:
        deployed(model, inputs(8), "fp16")
    worst = caught.value.report.worst
    assert worst.nonfinite_candidate > 0 == worst.nonfinite_reference
    assert "TensorRT" in caught.value.report.subject


def test_planted_overflow_stays_in_float32() -> None:
    """Its module is named, all others are low, and the engine's layers say both."""
    model, inputs = made("vit")
    model.blocks[2].mlp.fc2 = networks.Detour(model.blocks[2].mlp.fc2.cpu(), 2e7).cuda()
    module = deployed(model, inputs(8), "fp16")
    assert module.report is not None and module.report.lowering is not None and module.report.computed is not None
    kept = {part.module for part in module.report.lowering.kept}
    assert kept == {"blocks.2.mlp.fc2.wide", "blocks.2.mlp.fc2.narrow"}
    wide = {one.module for one in module.report.computed.products if one.engine == "fp32"}
    assert wide == kept
    assert module.report.lowering.low >= 0.9 * module.report.lowering.nodes
    assert_parity(model, module, inputs(3), precision="fp16")


def test_budget_is_held_by_the_engine() -> None:
    """A metric is asked of the engine as well, on the calibration data, on the GPU."""
    model, inputs = made("vit")
    data = [inputs(8) for _ in range(3)]
    seen: list[torch.device] = []

    def top1(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> float:
        seen.append(outputs.device)
        return (outputs.argmax(1) == model(**batch).argmax(1).to(outputs.device)).float().mean().item()

    budget = t2e.Budget(metric=top1, floor=0.95)
    module = deployed(model, data[0], t2e.Precision("bf16", budget=budget), calibration=data)
    assert module.report is not None and module.report.lowering is not None
    assert module.report.lowering.attempts[-1].endswith("which holds the budget")
    assert [device.type for device in seen[-3:]] == ["cuda"] * 3
    assert any(note.startswith(f"Budget.metric of {module.runtime}") for note in module.report.notes)


class Stem(nn.Module):
    """ResNet-50's first convolution, for which TensorRT-RTX 1.6 has no fp8 kernel, and larger ones behind it."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.behind = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(behind)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.behind(self.stem(x).relu())


def test_what_fp8_kernels_are_missing_for_is_told() -> None:
    """A small part is a note, a large one an error that says what to keep; keeping it is taken."""
    torch.manual_seed(0)
    sample = {"x": torch.randn(8, 3, 224, 224, device="cuda")}
    module = deployed(Stem(4).cuda().eval(), sample, "fp8", tolerance=LOOSE)
    assert module.report is not None
    assert any("not 'stem' (in fp32)" in note for note in module.report.notes)
    alone = Stem(1).cuda().eval()
    with pytest.raises(t2e.PrecisionError, match=r"not 'stem' \(in fp32\).*keep_fp32=\['stem'\]"):
        deployed(alone, sample, "fp8", tolerance=LOOSE)
    kept = deployed(alone, sample, t2e.Precision("fp8", keep_fp32=["stem"]), tolerance=LOOSE)
    assert kept.report is not None and kept.report.computed is not None
    assert {one.module: one.engine for one in kept.report.computed.products} == {"stem": "fp32", "behind.0": "fp8"}


def test_transposed_convolutions_stay_out_of_fp8() -> None:
    """TensorRT-RTX builds them and can't run them: the graph leaves them in float32 and says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.ConvTranspose2d(64, 16, 2, stride=2), nn.ReLU())
    sample = {"input": torch.randn(8, 16, 12, 12, device="cuda")}
    module = deployed(model.cuda().eval(), sample, "fp8", tolerance=LOOSE)
    assert module.report is not None and module.report.computed is not None
    assert {one.module: one.engine for one in module.report.computed.products} == {"0": "fp8", "1": "fp32"}
    assert any("'1': stays in float32, a transposed convolution" in note for note in module.report.notes)


def test_low_io_on_the_engine() -> None:
    """Inputs and outputs take the low type too, and the engine is called with it."""
    model, inputs = made("resnet")
    module = deployed(model, inputs(8), t2e.Precision("fp16", low_io=True))
    x = inputs(4)["x"]
    with torch.no_grad():
        expected, answer = model(x), module(x.half())
    assert answer.dtype == torch.float16
    assert float((answer.float() - expected).norm() / expected.norm()) < 1e-2


def test_half_model_is_verified_too() -> None:
    """Nothing was lowered here, and still the report has what TensorRT says."""
    model, inputs = made("resnet")
    x = inputs(8)["x"].half()
    module = deployed(model.half(), {"x": x}, "fp16")
    assert module.report is not None and module.report.lowering is None and module.report.computed is not None
    assert module.report.computed.share("fp16") == 1.0


@pytest.mark.parametrize("axes", [None, {"x": BATCH}], ids=["static", "dynamic"])
def test_attention_is_fused_with_and_without_dynamic_axes(axes: dict[str, Any] | None) -> None:
    """In float16 one kernel computes it; in float32 none does, and the report says why. Layers are told by module."""
    torch.manual_seed(0)
    model = SelfAttention().cuda().eval()
    x = torch.randn(8, 32, 64, device="cuda")
    half = t2e.deploy(model, x, axes, precision="fp16").report.computed
    assert half is not None
    assert [(one.module, one.is_fused, one.reason) for one in half.attention] == [("", True, "")]
    assert half.layers_of_modules
    wide = t2e.deploy(model, x, axes).report.computed
    assert wide is not None
    assert (wide.share("fp32"), [one.is_fused for one in wide.attention]) == (1.0, [False])
    assert wide.attention[0].reason == "it is not in float16 or bfloat16, for which alone there are fused kernels"


class SelfAttention(nn.Module):
    """Attention with two heads of 32 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (layer(x).unflatten(-1, (2, 32)).transpose(1, 2) for layer in self.project)
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def test_report_of_an_engine_travels(tmp_path: Path) -> None:
    """Asked again of a saved engine the layers say the same; the report survives pickling."""
    model, inputs = made("bert")
    module = deployed(model, inputs(8), "fp16")
    assert module.report is not None
    found = t2e.precision_report(module)
    assert found == module.report.computed
    assert t2e.precision_report(t2e.load(module.save(tmp_path / "bert.t2e"))) == found
    assert pickle.loads(pickle.dumps(module.report)) == module.report
    assert "graph  engine" in str(found)
    assert '"Layers"' in module.layers()


def test_int8_convolution_on_rtx_is_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is there, and what to take instead; with the convolution kept the rest is int8."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10))
    model.cuda().eval()
    sample = {"input": torch.randn(8, 1, 8, 8, device="cuda")}
    module = deployed(model, sample, t2e.Precision("int8", keep_fp32=["0"]))
    assert module.report is not None and module.report.computed is not None
    engine = {one.module: one.engine for one in module.report.computed.products}
    assert engine == {"0": "fp32", "2": "int8", "4": "int8"}

    def build(*args: Any, **options: Any) -> None:
        raise AssertionError("something was built")

    monkeypatch.setattr(DEPLOY, "load_or_build", build)
    with pytest.raises(
        t2e.UnsupportedOperatorError, match=r"1 convolution that it can't build in int8.*take precision='fp8'"
    ):
        deployed(model, sample, "int8")


def test_int4_weights_on_the_engine() -> None:
    """Weights alone in four bits, the arithmetic in float16."""
    model, inputs = made("rmsnorm")
    module = deployed(model, inputs(8), t2e.Precision("fp16", weights="int4"), tolerance=LOOSE)
    assert module.report is not None and module.report.computed is not None
    assert module.report.computed.share("fp16") == 1.0


def test_fake_quantised_model_is_an_int8_engine() -> None:
    """A model with ModelOpt's quantisers keeps its scales on the engine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what ModelOpt uses is deprecated in torch
        import modelopt.torch.quantization as mtq

        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).cuda().eval()
        x = torch.randn(64, 64, device="cuda")
        model = mtq.quantize(model, mtq.INT8_DEFAULT_CFG, lambda calibrated: calibrated(x)).eval()
    module = deployed(model, {"input": x[:8]}, "fp32")
    assert module.precision == "int8"
    assert module.report is not None and module.report.computed is not None
    assert module.report.computed.share("int8") == 1.0
    with torch.no_grad():
        expected, answer = model(x[:32]), module(x[:32])
    assert float((answer - expected).norm() / expected.norm()) < 1e-3

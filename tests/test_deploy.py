"""`torch2engine.deploy` end to end on ONNX Runtime: what comes back, what is reported, what must never come back."""

from __future__ import annotations

import copy
import gc
import importlib
import json
import logging
import re
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

import torch2engine as t2e
from tests.support import deploy_models
from tests.support.deploy_models import (
    BATCH,
    ONNXRUNTIME_TOLERANCE,
    Baked,
    Mlp,
    Trainee,
    deploy,
    mlp,
    nested,
    pair,
    sample,
    seeded,
)
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import BuildConfig, RuntimeConfig, Tolerance
from torch2engine.core.errors import (
    DynamicAxisError,
    ExportError,
    InputError,
    InstallationError,
    ParityError,
    Torch2EngineError,
)
from torch2engine.deployed.deploy_report import DeployReport
from torch2engine.deployed.module_access import prove_split_axes
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.trt.gpu import CUDA_LIBRARIES

ROOM: Any = importlib.import_module("torch2engine.deploy")


def close(left: Any, right: Any) -> None:
    """Equal up to rounding, in values, dtypes and shapes."""
    torch.testing.assert_close(left, right.detach(), rtol=1e-5, atol=1e-6)


def reported(module: ORTModule) -> DeployReport:
    """The report that deploy left."""
    assert module.report is not None
    return module.report


# What comes back


@pytest.fixture(scope="module")
def bert() -> tuple[BertModel, ORTModule]:
    """A tiny Hugging Face BERT with dynamic batch and sequence, deployed from a Mapping."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=40, **sizes))
    axes = {0: t2e.Axis("batch", 1, 2, 4), 1: t2e.Axis("sequence", 4, 8, 16)}
    return model, deploy(model, words(2, 8), {"input_ids": axes, "attention_mask": axes})


def words(batch: int, sequence: int) -> dict[str, torch.Tensor]:
    """Token ids with the padding that a tokenizer would add."""
    generator = torch.Generator().manual_seed(batch + sequence)
    ids = torch.randint(1, 50, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    mask[batch // 2 :, sequence // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_mapping_of_keywords_deploys_a_hugging_face_model(bert: tuple[BertModel, ORTModule]) -> None:
    """`module(**batch)` answers in the model's own ModelOutput, at sizes between the corners of both axes."""
    model, module = bert
    assert model.training
    reference = copy.deepcopy(model).eval()
    for batch, sequence in ((1, 5), (3, 11), (4, 16)):
        found, expected = module(**words(batch, sequence)), reference(**words(batch, sequence))
        assert type(found) is BaseModelOutputWithPoolingAndCrossAttentions
        assert list(found) == list(expected)
        close(found.last_hidden_state, expected.last_hidden_state)
        close(found["pooler_output"], expected[1])
        assert found.hidden_states is None


def test_batch_of_a_transformer_is_seen_to_be_independent(bert: tuple[BertModel, ORTModule]) -> None:
    """Heads, masks and reshapes keep sentences apart; words are added to by their positions."""
    influences = bert[1]._artifact.influences
    assert influences["batch"] is None
    assert influences["sequence"] is not None


def test_mapping_of_keywords_reports_both_axes(bert: tuple[BertModel, ORTModule]) -> None:
    """The table has both outputs at min, opt, max and at a random input, all of one size in both axes."""
    rows = [(row.case, row.name, row.shape[:2]) for row in reported(bert[1]).parity[0].rows]
    sizes = {"min": (1, 4), "opt": (2, 8), "max": (4, 16), "random": (3, 10)}
    expected = [
        (case, name, size if name == "last_hidden_state" else (size[0], 16))
        for case, size in sizes.items()
        for name in ("last_hidden_state", "pooler_output")
    ]
    assert rows == expected


def test_weights_are_those_of_the_moment() -> None:
    """Training goes on; what was deployed does not move."""
    model = seeded(Mlp).eval()
    module = deploy(model, sample(4, 6))
    before = model(sample(4, 6)).detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    close(module(sample(4, 6)), before)


def test_bare_axis_name_ranges_from_one_to_the_sample() -> None:
    """torch.onnx.export's own form of dynamic_axes means min 1, opt and max the sample's size."""
    model = seeded(Mlp).eval()
    module = deploy(model, sample(4, 6), {"x": {0: "batch"}, "output": {0: "batch"}})
    assert module.signature.axes == (t2e.Axis("batch", 1, 4, 4),)
    close(module(sample(2, 6)), model(sample(2, 6)))


@pytest.mark.parametrize("wrap", ["torch.compile", "compiled in place", "DataParallel"])
def test_wrapped_model_is_deployed_like_the_model(wrap: str) -> None:
    """What torch.compile or DataParallel made of a model is the same model."""
    model = wrapped = seeded(Mlp).eval()
    if wrap == "torch.compile":
        wrapped = torch.compile(model, backend="eager")
    elif wrap == "compiled in place":
        model.compile(backend="eager")
    else:
        wrapped = nn.DataParallel(model)
    close(deploy(wrapped, sample(4, 6), BATCH)(sample(3, 6)), model(sample(3, 6)))
    torch._dynamo.reset()


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_surroundings_of_the_call_make_no_difference(around: Callable[[], Any]) -> None:
    """Grad mode, inference mode, autocast and the default device change neither dtypes nor answers."""
    model, x, given = seeded(Mlp).eval(), sample(3, 6), sample(4, 6)
    expected = model(x)
    with around():
        module = deploy(model, given, BATCH)
        found = module(x)
    close(found, expected)


def test_arguments_are_left_as_they_are() -> None:
    """deploy changes nothing that it is given."""
    x, axes = sample(4, 6), {"x": {0: "batch"}}
    profiles, before = [{"batch": (1, 2, 4)}], x.clone()
    deploy(seeded(Mlp), x, axes, profiles=profiles)
    assert (axes, profiles) == ({"x": {0: "batch"}}, [{"batch": (1, 2, 4)}])
    assert torch.equal(x, before)
    assert x._version == 0


# The report


def test_report_has_a_row_per_output_and_case() -> None:
    """Every output was compared at min, opt, max and at a random input of a size between."""
    _, module = nested()
    report = reported(module)
    (table,) = report.parity
    names = [spec.name for spec in module.signature.outputs]
    cases = ("min", "opt", "max", "random")
    assert [(row.case, row.name) for row in table.rows] == [(case, name) for case in cases for name in names]
    assert [row.shape for row in table.rows if row.name == "logits"] == [(1, 3), (4, 3), (8, 3), (5, 3)]
    assert table.subject == "PyTorch vs ONNX Runtime"
    assert table.tolerance == ONNXRUNTIME_TOLERANCE
    assert report.passed
    assert all(row.rel_l2 < 1e-6 for row in table.rows)


def test_report_has_the_cases_of_every_profile() -> None:
    """With several profiles, each is compared at its own corners, in steps of multiple_of."""
    (table,) = reported(pair()).parity
    shapes = {row.case: row.shape for row in table.rows}
    assert shapes == {
        "profile 0 min": (4, 2),
        "profile 0 opt": (4, 3),
        "profile 0 max": (8, 5),
        "profile 0 random": (8, 4),
        "profile 1 min": (16, 2),
        "profile 1 opt": (16, 3),
        "profile 1 max": (32, 5),
        "profile 1 random": (24, 4),
    }
    assert table.passed


def test_report_of_a_static_model_has_the_sample_and_a_random_input() -> None:
    """Without axes there is one size, and still a second input."""
    (table,) = reported(deploy(seeded(Mlp), sample(4, 6))).parity
    assert [(row.case, row.shape) for row in table.rows] == [("sample", (4, 3)), ("random", (4, 3))]


def test_report_prints_phases_table_and_notes() -> None:
    """The text starts with precision and seconds and goes on with the table."""
    report = reported(mlp()[1])
    first, title, head, *rows = str(report).splitlines()
    assert re.fullmatch(r"fp32; capture \d+\.\d s, export \d+\.\d s, reference \d+\.\d s, check \d+\.\d s", first)
    assert title.startswith("PyTorch vs ONNX Runtime: passed, 4 of 4 outputs passed (allowed: rel_l2 ")
    columns = "case output tensor rel-l2 allowed sensitivity max-abs max-rel cosine worst verdict"
    assert head.split() == columns.split()
    sizes = {"min": 1, "opt": 4, "max": 8, "random": 5}
    assert [row.split()[:4] for row in rows] == [
        [case, "output", f"float32[{size},", "3]"] for case, size in sizes.items()
    ]
    assert list(report.seconds) == ["capture", "export", "reference", "check"]
    assert all(seconds >= 0 for seconds in report.seconds.values())


def test_report_goes_to_json() -> None:
    """The report is plain data, without NaN."""
    data = json.loads(json.dumps(reported(nested()[1]).to_json(), allow_nan=False))
    assert (data["precision"], data["memory_bytes"], data["notes"]) == ("fp32", 0, [])
    assert [row["case"] for row in data["parity"][0]["rows"]][::6] == ["min", "opt", "max", "random"]
    assert data["parity"][0]["passed"] is True


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_half_model_is_judged_by_its_own_precision(dtype: torch.dtype, precision: str) -> None:
    """A cast model is a half engine, and the report says so and by which tolerance."""
    module = deploy(seeded(Mlp).to(dtype), sample(4, 6, dtype=dtype), BATCH)
    report = reported(module)
    assert (module.precision, report.precision) == (precision, precision)
    assert report.parity[0].tolerance == Tolerance.default(precision)
    assert {row.dtype for row in report.parity[0].rows} == {str(dtype).removeprefix("torch.")}
    assert module(sample(5, 6, dtype=dtype)).dtype == dtype


class Writer(nn.Module):
    """Writes into its input, as models should not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + 1


def test_model_that_writes_into_its_input_is_refused() -> None:
    """An engine would leave the caller's tensor as it is, so the model is refused and the sample stays."""
    x = sample(4, 6)
    with pytest.raises(ExportError, match="a write into its input 'x'") as error:
        deploy(Writer(), x, BATCH)
    assert error.value.source.startswith(__file__)
    assert torch.equal(x, sample(4, 6))


class WholeNumbers(nn.Module):
    """Refuses what is no whole number, unless it is being traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting() and not torch.equal(x, x.round()):
            raise ValueError("whole numbers only")
        return x.tanh()


def test_note_tells_of_a_random_input_that_the_model_refuses() -> None:
    """A model that can't take random values is still checked at min, opt and max, and the table has a note."""
    module = deploy(WholeNumbers(), torch.arange(24.0).reshape(4, 6), {"x": [0]})
    (table,) = reported(module).parity
    assert [row.case for row in table.rows] == ["min", "opt"]
    assert table.notes == (
        "no case 'random': the model refuses random values drawn from the sample's range (a failure "
        "of PyTorch itself on "
        "inputs of shape [2, 6]: ValueError: whole numbers only)",
    )
    assert "\nnote: no case 'random'" in str(reported(module))


# What must never come back


def test_baked_branch_is_a_parity_error() -> None:
    """A model whose branch on batch == 1 is lost in the export never becomes a module."""
    with pytest.raises(ParityError) as caught:
        deploy(Baked(), sample(4, 6), BATCH)
    (failure,) = caught.value.report.failures
    assert (failure.case, failure.name) == ("min", "output")
    message = str(caught.value)
    assert message.startswith("parity, PyTorch vs ONNX Runtime: got output 'output' of case 'min': relative L2 is 0.9")
    assert message.endswith(f"\n{caught.value.report}")


def _damage_weight(graph: Any) -> None:
    weight = next(w for w in graph.initializer if list(w.dims) in ([3, 5], [5, 3]))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.25
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def _drop_node(graph: Any) -> None:
    tanh = next(node for node in graph.node if node.op_type == "Tanh")
    tanh.op_type = "Identity"


@pytest.mark.parametrize("damage", [_damage_weight, _drop_node])
def test_onnx_that_was_damaged_is_a_parity_error_with_the_table(
    damage: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight, or one node, gone wrong between export and check is found in every case."""
    real = ROOM.export_onnx

    def damaged(*args: Any, **options: Any) -> OnnxArtifact:
        artifact = real(*args, **options)
        model = onnx.load(artifact.onnx_path)
        damage(model.graph)
        onnx.save(model, artifact.onnx_path)
        return artifact

    monkeypatch.setattr(ROOM, "export_onnx", damaged)
    with pytest.raises(ParityError) as caught:
        deploy(seeded(Mlp), sample(4, 6), BATCH)
    assert [row.case for row in caught.value.report.failures] == ["min", "opt", "max", "random"]
    assert "FAILED, 0 of 4 outputs passed" in str(caught.value)
    assert "if the difference is meant, pass a wider tolerance=Tolerance(...)" in str(caught.value)


def test_tolerance_of_zero_is_a_parity_error() -> None:
    """The tolerance that was given is the one that judges."""
    with pytest.raises(ParityError) as caught:
        deploy(seeded(Mlp), sample(4, 6), BATCH, tolerance=Tolerance(rel_l2=0, max_rel=0, abs=0))
    assert "at most 0 is allowed" in str(caught.value)
    assert "(allowed: rel_l2 0, max_rel 0, abs 0, mismatch 0)" in str(caught.value)


def test_tolerance_that_is_none_is_refused() -> None:
    """A bare number would leave open what it bounds."""
    with pytest.raises(InputError) as caught:
        deploy(seeded(Mlp), sample(4, 6), tolerance=1e-3)
    assert str(caught.value) == (
        "tolerance: got 0.001; expected a Tolerance, a Mapping from output names to Tolerances, or None; "
        "e.g. Tolerance(rel_l2=1e-3, max_rel=1e-2)"
    )


# Runtimes and options


class Counting(Mlp):
    """Counts its calls."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        return super().forward(x)


def test_tensorrt_without_a_gpu_is_an_installation_error_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an export that can't be built; the model isn't even called."""
    deploy_models.hide_gpu(monkeypatch)
    monkeypatch.setattr(Counting, "calls", 0)
    with pytest.raises(InstallationError) as caught:
        t2e.deploy(Counting(), sample(4, 6), BATCH)
    assert str(caught.value) == (
        f"NVIDIA driver: got no {CUDA_LIBRARIES[0]} that can be loaded; expected an installed driver; "
        "install the driver until `nvidia-smi` lists the GPU; start a container with `--gpus all`, "
        "or deploy with runtime='onnxruntime' to run on the CPU"
    )
    assert Counting.calls == 0


def test_flavour_that_is_missing_is_an_installation_error_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flavour asked for is looked for first, and the line that installs it is in the text."""
    monkeypatch.setattr(Counting, "calls", 0)
    with pytest.raises(InstallationError) as caught:
        t2e.deploy(Counting(), sample(4, 6), config=BuildConfig(flavour="tensorrt"))
    assert str(caught.value).startswith("TensorRT: ")
    assert "; `pip install 'torch2engine[tensorrt]'`, or deploy with runtime='onnxruntime'" in str(caught.value)
    assert Counting.calls == 0


def test_auto_without_a_gpu_warns_once_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning points at the caller's line and says why; the module is an ORTModule."""
    deploy_models.hide_gpu(monkeypatch)
    model = seeded(Mlp).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = t2e.deploy(model, sample(4, 6), BATCH, runtime="auto")
    (warning,) = caught
    assert str(warning.message).startswith(
        f"deploying to ONNX Runtime on the CPU, because TensorRT can't run: NVIDIA driver: got no {CUDA_LIBRARIES[0]} "
    )
    assert warning.filename == __file__
    assert isinstance(module, ORTModule)
    close(module(sample(3, 6)), model(sample(3, 6)))


def test_deploying_to_onnx_runtime_is_silent(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is printed, logged or warned of, though torch's exporters like to talk."""
    deploy(seeded(deploy_models.Nested), deploy_models.nested_inputs(4))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "runtime": (
        {"runtime": "trt"},
        "runtime: got 'trt'; expected one of 'tensorrt', 'onnxruntime', 'auto', 'fastest'; pass one of these",
    ),
    "runtime of another type": (
        {"runtime": None},
        "runtime: got None; expected one of 'tensorrt', 'onnxruntime', 'auto', 'fastest'; pass one of these",
    ),
    "precision": (
        {"precision": "half"},
        "precision: got 'half'; expected one of 'fp32', 'tf32', 'fp16', 'bf16', 'int8', 'fp8'; pass 'fp16'",
    ),
    "config": (
        {"config": RuntimeConfig()},
        f"config: got {RuntimeConfig()!r}; expected a BuildConfig; pass t2e.BuildConfig(...)",
    ),
    "runtime_config": (
        {"runtime_config": {"streams": 2}},
        "runtime_config: got {'streams': 2}; expected a RuntimeConfig; pass t2e.RuntimeConfig(...)",
    ),
    "cache": (
        {"cache": 3},
        ("cache: got 3; expected True, False, a folder or an EngineCache; pass cache=True for the user's cache folder"),
    ),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_unknown_option_is_refused_with_the_list(what: str) -> None:
    """A word that deploy doesn't know is an InputError that lists those it knows."""
    options, text = OPTIONS[what]
    calls = Counting.calls
    with pytest.raises(InputError) as caught:
        t2e.deploy(Counting(), sample(4, 6), **{"runtime": "onnxruntime", **options})
    assert str(caught.value) == text
    assert Counting.calls == calls, "refused before any work"


def test_deployed_module_is_refused() -> None:
    """An engine can't be traced, not even inside torch.compile."""
    _, module = mlp()
    text = "model: got an ORTModule; expected a PyTorch module; pass what it was deployed from"
    for model in (module, torch.compile(module, backend="eager")):
        with pytest.raises(InputError) as caught:
            deploy(model, sample(4, 6))
        assert str(caught.value) == text


# Out of range

SPLIT = RuntimeConfig(out_of_range="split")
EAGER = RuntimeConfig(out_of_range="eager")


class Centred(nn.Module):
    """Subtracts the batch's mean, or a share of it."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.share * x.mean(0)


class Map(nn.Module):
    """(batch, 6, width) -> the same, each place mixed with its neighbours along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Summed(nn.Module):
    """Gives a number besides."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.tanh(), x.sum()


def test_split_is_proved_when_deploying() -> None:
    """The report says which axes may be split; the first call that is too large needs no proof any more."""
    model = seeded(Map).eval()
    axes = {"x": {0: t2e.Axis("batch", 1, 2, 4), 2: t2e.Axis("width", 4, 8, 16)}}
    module = deploy(model, sample(2, 6, 8), axes, runtime_config=SPLIT)
    batch, width = reported(module).notes
    assert batch == "axis 'batch' may be split: 4 entries answer like 3 + 1"
    assert width.startswith(
        "axis 'width' is never split: its entries may influence each other: Conv (module 'conv', at test_deploy.py:"
    )
    assert width.endswith(") slides its kernel over the entries")
    assert module._out_of_range._proof_record.proved == {"batch"}
    close(module(sample(11, 6, 8)), model(sample(11, 6, 8)))
    with pytest.raises(t2e.ShapeError) as caught:
        module(torch.zeros(2, 6, 40))
    assert "it can't be split: its entries may influence each other: Conv" in str(caught.value)


def test_split_of_rows_that_influence_each_other_fails_when_deploying() -> None:
    """Nobody learns of it from the first batch that is too large; a sample of equal rows is no excuse."""
    wide = {"x": {0: t2e.Axis("batch", 1, 7, 8)}}
    for given, axes in ((sample(4, 6), BATCH), (torch.ones(4, 6), wide)):
        with pytest.raises(InputError) as caught:
            deploy(Centred(), given, axes, runtime_config=SPLIT)
        line = Centred.forward.__code__.co_firstlineno + 1
        assert str(caught.value) == (
            "out_of_range='split': got axis 'batch' is never split: its entries may influence each other: "
            f"ReduceMean (at test_deploy.py:{line}) reduces over the entries; expected an axis that "
            "is one dimension of every "
            "output and can be proved; use out_of_range='eager' or 'error'"
        )


def test_split_is_judged_by_the_tolerance_that_was_given() -> None:
    """Where only examples show an influence, whoever calls one of a percent none may have it split."""
    artifact = t2e.export(Centred(0.01), sample(4, 6), BATCH).replace(influences={"batch": None})
    calls = [[sample(8, 6)]]
    with pytest.raises(ParityError) as caught:
        prove_split_axes(ORTModule(artifact, runtime_config=SPLIT), calls)
    assert str(caught.value).startswith("axis 'batch': got 8 entries that are not answered like 5 + 3")
    notes = prove_split_axes(
        ORTModule(artifact, runtime_config=SPLIT), calls, tolerance=Tolerance(rel_l2=0.1, max_rel=0.5)
    )
    assert notes == ("axis 'batch' may be split: 8 entries answer like 5 + 3",)


NOT_SPLIT: dict[str, tuple[type[nn.Module], Any, str]] = {
    "no axis": (Mlp, None, "no dynamic axis"),
    "one size": (Mlp, {"x": {0: t2e.Axis("batch", 4, 4, 4)}}, "no dynamic axis"),
    "narrow": (
        Mlp,
        {"x": {0: t2e.Axis("batch", 4, 5, 7)}},
        "axis 'batch' is never split: the range 4..7 is too narrow to prove that entries don't influence each other: "
        "it has no size that is the sum of two",
    ),
    "an output without it": (
        Summed,
        BATCH,
        "axis 'batch' is never split: axis 'batch' is not just one dimension of output 'output.1: float32[]'",
    ),
}


@pytest.mark.parametrize("what", NOT_SPLIT)
def test_split_that_can_never_be_is_refused_when_deploying(what: str) -> None:
    """An option that would never do anything is an InputError with every axis's reason."""
    kind, axes, text = NOT_SPLIT[what]
    with pytest.raises(InputError) as caught:
        deploy(seeded(kind), sample(4, 6), axes, runtime_config=SPLIT)
    assert str(caught.value) == (
        f"out_of_range='split': got {text}; expected an axis that is one dimension of every output "
        "and can be proved; use out_of_range='eager' or 'error'"
    )


@pytest.mark.usefixtures("quick_collection")
def test_eager_keeps_the_model_that_was_deployed() -> None:
    """The model below its wrapper answers outside, and only under this policy is it kept alive."""
    model = seeded(Mlp).eval()
    module = deploy(torch.compile(model, backend="eager"), sample(4, 6), BATCH, runtime_config=EAGER)
    assert module._out_of_range.reference is model
    with pytest.warns(
        UserWarning, match=(r"input 'x': got batch = 20; expected .*; PyTorch answers such calls, slower; ")
    ):
        found = module(sample(20, 6))
    close(found, model(sample(20, 6)))
    assert reported(module).notes == ()
    gone = weakref.ref(model)
    module = deploy(model, sample(4, 6), BATCH)
    del model
    gc.collect()
    assert gone() is None
    assert module(sample(3, 6)).shape == (3, 3)


def test_option_that_onnx_runtime_lacks_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped silently where ONNX Runtime was asked for by name."""
    monkeypatch.setattr(Counting, "calls", 0)
    options = RuntimeConfig(streams=2, output="static", out_of_range="split")
    with pytest.raises(InputError) as caught:
        deploy(Counting(), sample(4, 6), BATCH, runtime_config=options)
    assert str(caught.value) == (
        "runtime='onnxruntime': got streams=2, output='static'; expected only out_of_range: the rest "
        "of RuntimeConfig is for engines on a GPU; leave it out, or deploy with runtime='tensorrt'"
    )
    assert Counting.calls == 0


def test_auto_without_a_gpu_says_which_options_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one warning names them; the policy stays."""
    deploy_models.hide_gpu(monkeypatch)
    model = seeded(Mlp).eval()
    options = RuntimeConfig(cuda_graphs=True, out_of_range="split")
    with pytest.warns(UserWarning, match="deploying to ONNX Runtime") as caught:
        module = t2e.deploy(model, sample(4, 6), BATCH, runtime="auto", runtime_config=options)
    (warning,) = caught
    assert str(warning.message).startswith(
        "deploying to ONNX Runtime on the CPU without cuda_graphs=True, which it does not have, because TensorRT can't "
        "run: NVIDIA driver"
    )
    assert module.runtime_config == SPLIT
    close(module(sample(20, 6)), model(sample(20, 6)))


# The model in training


def trained(between: Callable[[Trainee], None]) -> dict[str, Any]:
    """Everything that two training steps leave behind, with something between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Picky()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(2):
            if step:
                between(model)
            model(torch.randn(16, 6)).square().mean().backward()
            optimizer.step()
        return {
            "weights": model.state_dict(),
            "grads": {name: parameter.grad for name, parameter in model.named_parameters()},
            "optimizer": optimizer.state_dict()["state"],
            "random": torch.get_rng_state(),
            "modes": {name: module.training for name, module in model.named_modules()},
            "attributes": sorted(model.__dict__),
        }


class Picky(Trainee):
    """Fails at a batch of 3, which a trace can't see, and draws a random number that it doesn't need."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_exporting() and x.shape[0] == 3:
            raise RuntimeError("three is a crowd")
        torch.rand(1)
        return super().forward(x)


def _deploy(**options: Any) -> Callable[[Trainee], Any]:
    """deploy() of a model in training, some way."""
    given = {"sample_input": sample(16, 6), "dynamic_axes": {"x": {0: t2e.Axis("batch", 2, 4, 16)}}, **options}
    return lambda model: t2e.deploy(model, **{"runtime": "onnxruntime", **given})


WAYS: dict[str, tuple[Callable[[Trainee], Any], type[Torch2EngineError] | None, str]] = {
    "success": (_deploy(), None, ""),
    "option": (_deploy(precision="fp64"), InputError, "precision: got 'fp64'"),
    "runtime": (
        _deploy(runtime="tensorrt", config=BuildConfig(flavour="tensorrt")),
        InstallationError,
        "TensorRT: got no such package",
    ),
    "sample": (
        _deploy(sample_input=()),
        InputError,
        ("sample_input: got 0 positional arguments (missing a required argument: 'x')"),
    ),
    "capture": (
        _deploy(sample_input=sample(16, 5)),
        ExportError,
        "model: got a failure of PyTorch itself on inputs of shape [16, 5]",
    ),
    "axes": (_deploy(dynamic_axes={"y": [0]}), DynamicAxisError, "dynamic_axes['y']: got no such tensor"),
    "export": (
        _deploy(dynamic_axes={"x": {1: t2e.Axis("width", 2, 6, 8)}}),
        DynamicAxisError,
        "axis 'width': got a model that pins it down",
    ),
    "reference": (
        _deploy(dynamic_axes={"x": {0: t2e.Axis("batch", 3, 4, 16)}}),
        DynamicAxisError,
        "axes batch = 3: got a failure of PyTorch itself on inputs of shape [3, 6]: RuntimeError: three is a crowd",
    ),
    "split": (_deploy(runtime_config=SPLIT), None, ""),
    "eager": (_deploy(runtime_config=EAGER), None, ""),
    "check": (_deploy(tolerance=Tolerance(rel_l2=0, max_rel=0, abs=0)), ParityError, "parity, PyTorch vs ONNX Runtime"),
}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """Training with nothing in between."""
    return trained(lambda model: None)


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_bit_for_bit_after(way: str, undisturbed: dict[str, Any]) -> None:
    """Whether deploy succeeds or fails at any stage, the next step equals that of an undisturbed twin."""
    call, error, text = WAYS[way]

    def between(model: Trainee) -> None:
        if error is None:
            assert isinstance(call(model), ORTModule)
            return
        with pytest.raises(error) as caught:
            call(model)
        assert type(caught.value) is error
        assert str(caught.value).startswith(text)

    found = trained(between)
    assert (found["modes"]["frozen"], found["modes"]["norm"]) == (False, True)
    for what in ("modes", "attributes"):
        assert found.pop(what) == undisturbed[what]
    torch.testing.assert_close(found, {name: undisturbed[name] for name in found}, rtol=0, atol=0)


# Real inputs instead of invented ones


class StaticCache(nn.Module):
    """Writes rows into a cache of 16 at given places; two rows for one place have no right answer."""

    def forward(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return torch.zeros(16, 3).index_copy(0, places, rows)


def rows_at(*places: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(places), 3), torch.tensor(places)


ROWS = {name: {0: t2e.Axis("n", 1, 4, 8)} for name in ("rows", "places")}


def test_examples_are_compared_on_instead_of_invented_inputs() -> None:
    """From an iterator, which is read once; a note tells which end of the profile none of them has."""
    examples = iter([rows_at(5, 9, 2), rows_at(*range(8))])
    module = deploy(StaticCache(), rows_at(0, 1, 2, 3), ROWS, examples=examples)
    (report,) = reported(module).parity
    assert [row.case for row in report.rows] == ["sample", "example 0", "example 1"]
    assert report.notes == ("no example in the profile has n = 1, so nothing was compared there",)
    rows, places = rows_at(7, 1)
    close(module(rows, places), StaticCache()(rows, places))


@pytest.mark.parametrize("places", [(0, 1, 2, 3), (3, 0, 2, 1), (4, 5, 6, 7), (12, 13, 14, 15)])
def test_right_model_with_coupled_integers_needs_no_examples(places: tuple[int, ...]) -> None:
    """No place comes twice in the cases that are made from the sample, as far as the cache has places."""
    axis = t2e.Axis("n", 1, 4, 4 if places[0] == 12 else 8)
    module = deploy(StaticCache(), rows_at(*places), {name: {0: axis} for name in ("rows", "places")})
    assert reported(module).passed


def test_wrong_example_fails_before_the_export() -> None:
    """The error names its index."""
    with pytest.raises(InputError) as caught:
        deploy(StaticCache(), rows_at(0, 1, 2, 3), ROWS, examples=[rows_at(1, 2), rows_at(1)[0]])
    assert str(caught.value) == (
        "examples[1], argument 'places': got no value; expected the arguments rows, places; pass places"
    )


class Sequences(nn.Module):
    """Self-attention in which True hides an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, key_padding_mask=hidden)[0]


def test_mask_that_hides_the_start_deploys_at_every_length() -> None:
    """Cut to one entry it would hide the whole row."""
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[:, :2] = True
    axes = {name: {1: t2e.Axis("n", 1, 6, 12)} for name in ("x", "hidden")}
    assert reported(deploy(Sequences(), (torch.randn(2, 6, 8), hidden), axes)).passed


# Progress


def test_nothing_that_takes_long_runs_between_phases() -> None:
    """Some phase is open, and its seconds are drawn, in all but a small part of deploy()."""
    calls_in_phases = 0
    calls_between = 0
    open_phases: list[str] = []

    def note(phase: str, step: int, steps: int, seconds: float) -> None:
        if step == 0 and phase not in open_phases:
            open_phases.append(phase)
        if step >= steps and phase in open_phases:
            del open_phases[open_phases.index(phase) :]

    def count(frame: object, event: str, argument: object) -> None:  # a clock that no load of the machine moves
        nonlocal calls_in_phases, calls_between
        if event == "call":
            calls_in_phases += bool(open_phases)
            calls_between += not open_phases

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    t2e.deploy(model, torch.ones(2, 4), runtime="onnxruntime", cache=False)  # loads the libraries
    sys.setprofile(count)
    try:
        t2e.deploy(model, torch.ones(2, 4), runtime="onnxruntime", cache=False, progress=note)
    finally:
        sys.setprofile(None)
    assert not open_phases
    assert calls_between < 0.05 * calls_in_phases

"""From a settled call to an ONNX file that answers like the model at every size, or an error: never silently wrong."""

from __future__ import annotations

import gc
import importlib
import inspect
import logging
import threading
import weakref
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.support.models import (
    BATCH,
    Autocast,
    Box,
    Cnn,
    Conditional,
    Encoder,
    Function,
    Nested,
    Pair,
    Recurrent,
    TwoInputs,
    error_of,
    exported,
    graph_of,
    line_of,
)
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.build import build
from torch2engine.capture.captured_call import CapturedCall
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import BuildConfig
from torch2engine.core.errors import DynamicAxisError, ExportError
from torch2engine.core.pytree import Inputs
from torch2engine.core.spec import Axis, TensorSpec
from torch2engine.deploy_steps.public_functions.check import check
from torch2engine.exporter.trace import TracedCall, trace
from torch2engine.onnx_graph.ort_session import OrtSession

ROOM = importlib.import_module("torch2engine.exporter.export_onnx")  # by its attribute it is the public function
X = torch.randn(4, 3)
IMAGE = torch.randn(2, 3, 8, 8)
DOUBLE = Function(lambda x, w: x * 2)


def symbolic(artifact: OnnxArtifact) -> list[list[Any]]:
    """The dimensions of the file's inputs and outputs: a name or a number each."""
    graph = graph_of(artifact)
    values = [*graph.input, *graph.output]
    return [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values]


def element_types(artifact: OnnxArtifact) -> set[str]:
    """The floating dtypes of the file's weights."""
    names = (onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph_of(artifact).initializer)
    return {name for name in names if "FLOAT" in name}


def run(artifact: OnnxArtifact, *inputs: torch.Tensor) -> list[np.ndarray]:
    """Outputs of the file for these inputs."""
    names = [spec.name for spec in artifact.signature.inputs]
    arrays = {name: tensor.detach().numpy() for name, tensor in zip(names, inputs, strict=True)}
    return list(OrtSession(artifact.onnx_path)(arrays).values())


# axes


@pytest.fixture(scope="module")
def nested() -> tuple[OnnxArtifact, list[ParityCase]]:
    """A small model with submodules and one dynamic axis."""
    return exported(Nested(), X, {"x": BATCH})


def test_dynamic_dimensions_are_symbolic_under_the_axes_names(nested: tuple[OnnxArtifact, list[ParityCase]]) -> None:
    """The file says [batch, 3], not a number and not torch's own symbol."""
    artifact, examples = nested
    assert symbolic(artifact) == [["batch", 3], ["batch", 4]]
    assert artifact.signature.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    assert artifact.signature.outputs == (TensorSpec("output", "float32", ("batch", 4)),)
    assert [case.name for case in examples] == ["min", "opt", "max", "random"]
    assert error_of(artifact, examples) < 1e-5


def test_artifact_tells_what_made_it(nested: tuple[OnnxArtifact, list[ParityCase]]) -> None:
    """Versions, profiles and precision travel with the file."""
    artifact, _ = nested
    assert artifact.versions["torch"] == version("torch")  # a wheel's own name may lack "+cu130"
    assert set(artifact.versions) >= {"torch", "onnx", "onnxscript"}
    assert [profile.to_json() for profile in artifact.profiles] == [{"batch": [1, 4, 8]}]
    assert artifact.precision == "fp32"


def test_opset_is_the_one_that_was_chosen(nested: tuple[OnnxArtifact, list[ParityCase]]) -> None:
    """torch silently gives another opset than it was asked for where it has none: what came out is checked."""
    model = onnx.load(str(nested[0].onnx_path))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 22}
    assert not model.functions


def test_pitfall_12_axes_and_keywords_reach_the_right_input() -> None:
    """{'y': ...} before {'x': ...}, a skipped optional, negative dimensions: the file's inputs are the ones named."""

    class Skipping(nn.Module):
        def forward(self, x: Any, mask: Any = None, y: Any = None, z: Any = None) -> Any:
            return x.sum() + y * 2 - z

    sample = {"z": torch.randn(1, 5), "y": torch.randn(4, 5), "x": torch.randn(2, 2)}
    artifact, examples = exported(Skipping(), sample, {"y": {-2: Axis("n", 1, 4, 8)}, "x": {-1: Axis("m", 1, 2, 4)}})
    assert [(spec.name, spec.shape) for spec in artifact.signature.inputs] == [
        ("x", (2, "m")),
        ("y", ("n", 5)),
        ("z", (1, 5)),
    ]
    assert symbolic(artifact)[:3] == [[2, "m"], ["n", 5], [1, 5]]
    assert error_of(artifact, examples) < 1e-5


# what is frozen in the trace

FROZEN: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "a branch on a batch of one": (
        lambda: Function(lambda x, w: x * 2 if x.shape[0] == 1 else x),
        X,
        {"x": BATCH},
    ),
}


@pytest.mark.parametrize(("make", "sample", "axes"), FROZEN.values(), ids=FROZEN)
def test_pitfall_08_value_frozen_in_the_trace_never_passes(
    make: Callable[[], nn.Module], sample: Any, axes: dict[str, Any]
) -> None:
    """torch exports these without a word; the check at min, opt, max and between fails on them."""
    model = make()
    artifact, _ = exported(model, sample, axes)
    assert not check(model, artifact, sample).passed


@pytest.mark.parametrize(
    ("function", "axes", "needed"),
    [
        (
            lambda x, w: x * 2 if x.shape[0] * x.shape[1] > 20 else x,
            {0: Axis("n", 1, 4, 8), 1: Axis("m", 1, 3, 6)},
            "m*n <= 20, which is wrong at m = 3, n = 7",
        ),
        (
            lambda x, w: x * 2 if x.shape[0] == 2 else x,
            {0: Axis("n", 2, 4, 8, multiple_of=2)},
            "n != 2, which is wrong at n = 2",
        ),
    ],
    ids=["two axes", "steps"],
)
def test_pitfall_08_branch_on_sizes_is_refused_by_the_export(
    function: Callable[..., Any], axes: dict[int, Axis], needed: str
) -> None:
    """torch exports these without a word; here no comparison is needed to find them."""
    with pytest.raises(DynamicAxisError) as error:
        exported(Function(function), X, {"x": axes})
    assert error.value.allowed.startswith(f"sizes for which {needed}")


def test_pitfall_08_number_made_of_a_tensor_is_not_frozen() -> None:
    """A constant that was computed in Python from the sample's values is an error, not a graph for that sample."""

    def scaled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        peak = float(x.max())
        return x * peak

    with pytest.raises(ExportError) as error:
        exported(Function(scaled), X)
    assert error.value.got == "a branch or a shape that depends on a tensor's values"
    assert error.value.source == line_of(scaled, "peak = ")


def test_adaptive_pool_that_fits_every_size_is_right() -> None:
    """The same layer is right where the size is fixed or the output is 1."""
    for output, axes in ((2, {0: Axis("batch", 1, 2, 4)}), (1, {2: Axis("h", 4, 8, 16)})):
        model = Function(lambda x, w, size=output: functional.adaptive_avg_pool2d(x, size))
        artifact, examples = exported(model, torch.randn(2, 2, 8, 8), {"x": axes})
        assert error_of(artifact, examples) < 1e-5


# options


# They belong to the exporter that went away, or to reports.
LEGACY = {
    "training",
    "operator_export_type",
    "do_constant_folding",
    "custom_opsets",
    "export_modules_as_functions",
    "autograd_inlining",
    "artifacts_dir",
}


@pytest.mark.parametrize(("module", "ignored"), [(torch.onnx, LEGACY), (torch.export, set())], ids=["onnx", "export"])
def test_pitfall_16_every_option_of_torch_is_passed(
    module: Any, ignored: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to a default that another torch may change, and a new option of torch's fails this test."""
    original, calls = module.export, []

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(inspect.signature(original).bind(*args, **kwargs).arguments)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "export", record)
    record.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    exported(DOUBLE, X, {"x": BATCH})
    assert len(calls) == 1
    assert set(inspect.signature(original).parameters) - set(calls[0]) == ignored & set(
        inspect.signature(original).parameters
    )


def test_exporters_do_not_talk(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """torch's and ONNX's remarks on their internals stay inside, and their loggers are left as they were."""
    names = ["torch.onnx._internal.exporter", "torch._export", "onnxscript", "onnx_ir"]
    before = [logging.getLogger(name).level for name in names]
    exported(Function(lambda x, w: (w, x + w, torch.arange(3))), X, {"x": BATCH})
    assert [logging.getLogger(name).level for name in names] == before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")


# weights


def test_weights_in_the_file_are_those_of_the_export() -> None:
    """Training goes on and the file stays: it holds the values that the model had when it was exported."""
    model = nn.Linear(3, 2)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wanted = model(X).detach()
    artifact, _ = exported(model, X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert np.allclose(run(artifact, X)[0], wanted, atol=1e-5)
    graph = graph_of(artifact)
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert all(np.array_equal(found[name], value) for name, value in before.items())


def test_weights_changed_between_two_exports_are_the_new_ones() -> None:
    """Nothing of an earlier export is remembered."""
    model = nn.Linear(3, 2)
    exported(model, X)
    with torch.no_grad():
        model.weight.add_(1.0)
    artifact, _ = exported(model, X)
    assert np.allclose(run(artifact, X)[0], model(X).detach(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_external_weights_load_and_answer(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that are too large for the file lie beside it, and go with the artifact wherever it is saved."""
    monkeypatch.setattr(ROOM, "EXTERNAL_ABOVE_BYTES", 1000)
    model = nn.Linear(64, 64).to(dtype)
    artifact, examples = exported(model, torch.randn(4, 64, dtype=dtype), {"input": BATCH})
    assert {path.name for path in artifact.folder.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert artifact.onnx_path.stat().st_size < 10_000
    assert error_of(artifact, examples) < (1e-5 if dtype is torch.float32 else 2e-2)
    loaded = OnnxArtifact.load(artifact.save(tmp_path / "saved"))
    assert error_of(loaded, examples) < (1e-5 if dtype is torch.float32 else 2e-2)


def test_program_of_torch_is_gone_after_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program holds the model's weights on the GPU, so it does not wait for Python's next collection."""
    programs: list[weakref.ref[Any]] = []

    def traced(captured: CapturedCall) -> TracedCall:
        traced_call = trace(captured)
        programs.extend([weakref.ref(traced_call.program), weakref.ref(traced_call.program.graph_module)])
        return traced_call

    monkeypatch.setattr("torch2engine.exporter.export_onnx.trace", traced)
    gc.disable()
    try:
        exported(nn.Linear(3, 2), torch.randn(4, 3), {"input": BATCH})
    finally:
        gc.enable()
    assert [program() for program in programs] == [None, None]


def test_objects_that_the_user_froze_stay_frozen() -> None:
    """Objects that gc.freeze() sets aside are the user's choice."""
    gc.freeze()
    frozen = gc.get_freeze_count()
    try:
        exported(nn.Linear(3, 2), torch.randn(4, 3), {"input": BATCH})
        still_frozen = gc.get_freeze_count()
    finally:
        gc.unfreeze()
    exported(nn.Linear(3, 2), torch.randn(4, 3), {"input": BATCH})
    assert gc.get_freeze_count() == 0
    assert still_frozen > 0.9 * frozen


def test_threads_may_export_at_once() -> None:
    """torch's exporters patch the process; two exports at once both come out right."""
    models = [nn.Linear(3, 2 + index) for index in range(3)]
    errors: dict[int, float] = {}

    def work(index: int) -> None:
        artifact, examples = exported(models[index], X, {"input": BATCH})
        errors[index] = error_of(artifact, examples)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(errors) == [0, 1, 2]
    assert max(errors.values()) < 1e-5


# precision


PRECISIONS: dict[str, tuple[Callable[[], nn.Module], torch.dtype, str, set[str], float]] = {
    "float32": (Cnn, torch.float32, "fp32", {"FLOAT"}, 1e-5),
    "half": (lambda: Cnn().half(), torch.float16, "fp16", {"FLOAT16"}, 5e-3),
    "bfloat16": (lambda: Cnn().bfloat16(), torch.bfloat16, "bf16", {"BFLOAT16"}, 3e-2),
    "autocast half": (lambda: Autocast(torch.float16), torch.float32, "fp16", {"FLOAT"}, 5e-3),
    "autocast bfloat16": (lambda: Autocast(torch.bfloat16), torch.float32, "bf16", {"FLOAT"}, 3e-2),
}


@pytest.mark.parametrize(("make", "dtype", "precision", "weights", "bound"), PRECISIONS.values(), ids=PRECISIONS)
def test_models_in_training_export_in_their_own_dtypes(
    make: Callable[[], nn.Module], dtype: torch.dtype, precision: str, weights: set[str], bound: float
) -> None:
    """Convolution, batch norm and dropout in training mode become inference, consistently typed, in every dtype."""
    model = make().train()
    artifact, examples = exported(model, IMAGE.to(dtype), {"image": BATCH})
    assert artifact.precision == precision
    assert element_types(artifact) >= weights
    assert artifact.signature.inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert not any(node.op_type == "Dropout" for node in graph_of(artifact).node)
    assert error_of(artifact, examples) < bound


@pytest.mark.parametrize(("dtype", "nodes"), [(torch.float32, 0), (torch.float16, 1), (torch.bfloat16, 1)], ids=str)
def test_batch_norm_in_half_and_bfloat16_is_not_folded(dtype: torch.dtype, nodes: int) -> None:
    """onnxscript folds it with the rounding of half, or as float32, and then a convolution has weights of two types."""
    artifact, _ = exported(Cnn().to(dtype), IMAGE.to(dtype), {"image": BATCH})
    assert [node.op_type for node in graph_of(artifact).node].count("BatchNormalization") == nodes


def test_pitfall_40_training_mode_gives_the_inference_graph() -> None:
    """Batch norm uses its running statistics and dropout is gone, as in eval(), and the model goes on training."""
    model = Cnn().train()
    artifact, _ = exported(model, IMAGE, {"image": BATCH})
    got = run(artifact, IMAGE)[0]
    assert model.training
    assert model.dropout.training
    assert np.allclose(got, model.eval()(IMAGE).detach(), atol=1e-5)


def test_pitfall_40_float16_and_float32_do_not_share_a_tolerance() -> None:
    """A half model is judged as one: its precision goes to the check with it."""
    model = Cnn().half()
    artifact, _ = exported(model, IMAGE.half(), {"image": BATCH})
    report = check(model, artifact, IMAGE.half())
    assert report.passed
    assert report.tolerance.rel_l2 > 1e-3


# models


def test_recurrent_network_has_a_dynamic_batch() -> None:
    """An LSTM of fixed length, with its states as nested outputs."""
    artifact, examples = exported(Recurrent(), torch.randn(4, 5, 3), {"x": BATCH})
    assert [(spec.name, spec.shape) for spec in artifact.signature.outputs] == [
        ("output.0", ("batch", 5, 4)),
        ("output.1.0", (1, "batch", 4)),
        ("output.1.1", (1, "batch", 4)),
    ]
    assert error_of(artifact, examples) < 1e-5


def test_encoder_with_a_padding_mask_answers_as_without_the_fast_path() -> None:
    """PyTorch's fast path zeroes padded rows; reference and graph both do without it."""
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[1, 4:], padding[3, 2:] = True, True
    model = Encoder().eval()
    axes = {name: {0: Axis("batch", 1, 4, 8), 1: Axis("length", 1, 6, 12)} for name in ("x", "padding")}
    artifact, examples = exported(model, (torch.randn(4, 6, 16), padding), axes)
    assert symbolic(artifact) == [["batch", "length", 16], ["batch", "length"], ["batch", "length", 16]]
    opt = next(case for case in examples if case.name == "opt")
    assert float(opt.outputs["output"][3, 2:].abs().min()) > 0
    assert error_of(artifact, examples) < 1e-5


TEXT = {name: {0: Axis("batch", 1, 4, 6), 1: Axis("length", 1, 7, 16)} for name in ("input_ids", "attention_mask")}


def text() -> dict[str, torch.Tensor]:
    """Ids with padding at the end of two rows."""
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1, 4:], mask[3, 2:] = 0, 0
    return {"input_ids": torch.randint(0, 100, (4, 7)), "attention_mask": mask}


def gpt2(layers: int) -> GPT2LMHeadModel:
    """GPT-2, small, random."""
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=layers, n_head=4, vocab_size=100, n_positions=32))


def test_bert_has_a_dynamic_batch_and_length() -> None:
    """Keyword arguments in, a ModelOutput out, with a padding mask, in training mode."""
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=32,
    )
    artifact, examples = exported(BertModel(config).train(), text(), TEXT)
    assert {spec.name: spec.shape for spec in artifact.signature.outputs} == {
        "last_hidden_state": ("batch", "length", 32),
        "pooler_output": ("batch", 32),
    }
    assert artifact.signature.output.cls.__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    assert error_of(artifact, examples) < 1e-5


@pytest.mark.parametrize(("layers", "dtype", "bound"), [(2, torch.float32, 1e-5), (1, torch.float16, 5e-3)])
def test_gpt2_has_a_dynamic_batch_and_length(layers: int, dtype: torch.dtype, bound: float) -> None:
    """Causal attention with a padding mask, in float32 and half."""
    artifact, examples = exported(gpt2(layers).to(dtype), Inputs(**text(), use_cache=False), TEXT)
    assert symbolic(artifact) == [["batch", "length"], ["batch", "length"], ["batch", "length", 100]]
    assert error_of(artifact, examples) < bound


def test_branch_as_torch_cond_is_kept() -> None:
    """Both sides of the branch are in the graph, and each case takes its own."""
    artifact, examples = exported(Conditional(), torch.full((4, 3), 0.5), {"x": BATCH})
    assert [node.op_type for node in graph_of(artifact).node].count("If") == 1
    assert error_of(artifact, examples) < 1e-5
    assert np.allclose(run(artifact, torch.full((2, 3), -1.0))[0], np.cos(-1.0) + 1)
    assert np.allclose(run(artifact, torch.full((2, 3), 1.0))[0], np.sin(1.0) * 2)


def test_structures_come_out_flat_and_in_order() -> None:
    """Dataclass in, NamedTuple around a dict and None out."""

    class Structured(nn.Module):
        def forward(self, box: Box, pairs: list[Pair]) -> Pair:
            total = box.tensor * box.number + pairs[0].left
            return Pair({"b": total, "none": None, "a": total.sum(1)}, (pairs[0].right, 5))

    sample = (Box(X, 3), [Pair(X + 1, torch.arange(4))])
    artifact, examples = exported(Structured(), sample, {"box.tensor": BATCH, "pairs.0.left": {0: "batch"}})
    assert [spec.name for spec in artifact.signature.outputs] == ["left.b", "left.a", "right.0"]
    assert error_of(artifact, examples) < 1e-5


# inputs and outputs that are easily lost


def test_pitfall_17_slice_assignment_is_kept() -> None:
    """Writes through views of copies are in the graph, and the sample is not written to."""

    def write(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = x.clone()
        y[:, 0] = 7.0
        y[:, 1:].mul_(3)
        z = x.clone()
        z[:, 2] += 1
        return y, z.sum(1), y.view(-1)[::2]

    sample = X.clone()
    artifact, examples = exported(Function(write), sample, {"x": BATCH})
    assert torch.equal(sample, X)
    assert error_of(artifact, examples) < 1e-5


def test_pitfall_21_what_importers_stumble_over_is_constant_in_the_graph() -> None:
    """The K of TopK, the axes of Squeeze and the shapes in branches of If are known, and TensorRT-RTX builds them."""

    class Importer(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            values, indices = x.topk(min(2, x.shape[1]), dim=1)
            squeezed = x[:, :1].squeeze(1) + x.unsqueeze(0).squeeze(0)[:, 0]
            chosen = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))
            return values, indices, squeezed, chosen

    artifact, examples = exported(Importer(), X, {"x": BATCH})
    graph = graph_of(artifact)
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for op in ("TopK", "Squeeze", "Unsqueeze", "ReduceSum"):
        for node in graph.node:
            if node.op_type == op and len(node.input) > 1:
                assert node.input[1] in known, f"{op} {node.name}"
    assert any(node.op_type == "TopK" for node in graph.node)
    assert error_of(artifact, examples) < 1e-5
    engine = build(artifact, config=BuildConfig(flavour="tensorrt_rtx"))
    assert engine.plan_path.stat().st_size > 0


PASSING: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], list[str]]] = {
    "input passed through": (lambda x, w: x, ["output"]),
    "input passed through twice": (lambda x, w: (x, x * 2, x), ["output.0", "output.1", "output.2"]),
    "one result twice": (lambda x, w: (lambda y: (y, y))(x * 2), ["output.0", "output.1"]),
    "a view of the input": (lambda x, w: (x[0], x.T), ["output.0", "output.1"]),
    "a constant": (lambda x, w: (torch.arange(3.0), x + 1), ["output.0", "output.1"]),
    "constants only": (lambda x, w: torch.arange(3.0), ["output"]),
    "a weight": (lambda x, w: (w, w, x + w), ["output.0", "output.1", "output.2"]),
    "None in the middle": (lambda x, w: (x + 1, None, x + 2), ["output.0", "output.2"]),
}


@pytest.mark.parametrize(("function", "names"), PASSING.values(), ids=PASSING)
def test_pitfall_24_outputs_without_a_node_of_their_own_are_kept(
    function: Callable[[torch.Tensor, torch.Tensor], Any], names: list[str]
) -> None:
    """Every output is there under its own name, answered by a node, whatever it is made of."""
    artifact, examples = exported(Function(function), X, {"x": BATCH})
    graph = graph_of(artifact)
    assert [value.name for value in graph.output] == names
    made = {output for node in graph.node for output in node.output}
    assert made >= set(names)
    assert error_of(artifact, examples) < 1e-5


def test_pitfall_24_unused_inputs_are_kept() -> None:
    """An input that the model does not read stays an input, also when it is the only dynamic one."""

    class Ignoring(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return b * 2

    artifact, examples = exported(Ignoring(), (X, X, X), {"c": BATCH})
    assert [value.name for value in graph_of(artifact).input] == ["a", "b", "c"]
    assert symbolic(artifact)[2] == ["batch", 3]
    assert error_of(artifact, examples) < 1e-5


def test_one_tensor_passed_twice_is_two_inputs() -> None:
    """torch would merge them, and answer wrongly once they differ."""
    artifact, examples = exported(TwoInputs(), (X, X), {"a": BATCH, "b": {0: "batch"}})
    other = torch.randn(4, 3)
    assert np.allclose(run(artifact, X, other)[0], 2 * X + other, atol=1e-5)
    assert error_of(artifact, examples) < 1e-5


def test_scalar_tensors_go_in_and_out() -> None:
    """Zero dimensions stay zero."""
    artifact, examples = exported(Function(lambda x, w: (x * 2, x + w)), torch.tensor(3.0))
    assert [spec.shape for spec in artifact.signature.outputs] == [(), (3,)]
    assert error_of(artifact, examples) < 1e-5


class WritesAtLargeSizes(nn.Module):
    """Writes into its input where that has more than two rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 2:
            x[:, 0].add_(1)
        return x * 2


def test_write_that_the_sample_does_not_show_is_refused() -> None:
    """Another size is traced than the sample's; a write there would be lost."""
    with pytest.raises(ExportError) as error:
        exported(WritesAtLargeSizes(), torch.ones(2, 3), {"x": {0: Axis("n", 1, 4, 8)}})
    assert str(error.value).startswith(
        "model: got a write into its input 'x' at other sizes than the sample's; expected a forward that writes into "
        "the same inputs at every size; write into a clone of it in forward"
    )

"""`quantize`: Q/DQ graphs that ONNX Runtime answers as the float32 graph does, and that TensorRT-RTX builds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

import torch2engine as t2e
from tests.support import models
from tests.support.build_here import build_here
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.config import Precision
from torch2engine.core.errors import InputError, UnsupportedNode, UnsupportedOperatorError
from torch2engine.onnx_graph.ort_session import OrtSession
from torch2engine.precision.graph import calibrate_ranges
from torch2engine.precision.graph.quantize import OWN_QUANTISATION_NOTE, quantize

MODULE, SOURCE = "torch2engine.module", "torch2engine.source"
FLOAT = TensorProto.FLOAT
Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Trained:
    """An exported model that knows scikit-learn's digits, and how often."""

    artifact: OnnxArtifact
    accuracy: float

    @property
    def path(self) -> Path:
        return self.artifact.onnx_path


class Cnn(nn.Module):
    """Strided, plain, grouped and transposed convolutions, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.up(torch.relu(self.grouped(self.body(x)))))
        return self.head(functional.avg_pool2d(x, 2).flatten(1))


class Mlp(nn.Module):
    """Three linear layers, which are exported as Gemm with transB behind a Reshape that has no type."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


class Attentive(nn.Module):
    """A transformer over the rows of a digit, whose linear layers are exported as MatMul."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(8, 64)
        self.positions = nn.Parameter(0.1 * torch.randn(8, 64))
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.rows(x.squeeze(1)) + self.positions).mean(1))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(1797, 1, 8, 8) float32 between 0 and 1, and int64 labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


def train(kind: type[nn.Module]) -> Trained:
    """A second of Adam on the first 1500 digits; on one thread, since such small layers only wait for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, labels = digits()
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        batch = torch.randint(0, 1500, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(model(x[batch]), labels[batch]).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        right = (model(x[1500:]).argmax(1) == labels[1500:]).double().mean().item()
    torch.set_num_threads(threads)
    artifact, _ = models.exported(model, (x[:4],), {"x": {0: t2e.Axis("batch", 1, 8, 32)}})
    return Trained(artifact, right)


@pytest.fixture(scope="module")
def nets() -> dict[str, Trained]:
    """One model of each kind."""
    return {kind.__name__: train(kind) for kind in (Cnn, Mlp, Attentive)}


def calibration() -> Iterator[Batch]:
    """Batches of three sizes."""
    x = digits()[0].numpy()
    for start, end in ((0, 32), (32, 95), (95, 96), (96, 400)):
        yield {"x": x[start:end]}


def held_out() -> np.ndarray:
    """Digits that neither training nor calibration saw."""
    return digits()[0][1500:].numpy()


def error(source: Path, target: Path, x: np.ndarray) -> float:
    """Relative L2 distance of what the two answer."""
    wanted, got = (next(iter(OrtSession(path)({"x": x}).values())) for path in (source, target))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def accuracy(path: Path) -> float:
    """Share of right answers on the held-out digits."""
    (logits,) = OrtSession(path)({"x": held_out()}).values()
    return float((logits.argmax(1) == digits()[1][1500:].numpy()).mean())


def graph_of(path: Path) -> Any:
    return onnx.load(str(path)).graph


def nodes_of(path: Path, op: str) -> list[Any]:
    return [node for node in graph_of(path).node if node.op_type == op]


def tensor(path: Path, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(one) for one in graph_of(path).initializer if one.name == name)


def origin(node: Any) -> tuple[str, str]:
    props = {prop.key: prop.value for prop in node.metadata_props}
    return props[MODULE], props[SOURCE]


def builds(trained: Trained, path: Path, precision: str, tmp_path: Path) -> bool:
    """Whether TensorRT-RTX builds it."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(path.read_bytes())
    signature, profiles = trained.artifact.signature, trained.artifact.profiles
    artifact = OnnxArtifact(folder, signature=signature, profiles=profiles, precision=precision, versions={})
    engine = build_here(artifact)
    return engine.plan_path.stat().st_size > 1000


def by_hand(
    path: Path,
    nodes: list[Any],
    weights: Mapping[str, Any],
    x: tuple[Any, ...] = ("batch", 8),
    y: tuple[Any, ...] = ("batch", None),
    opset: int = 22,
) -> Path:
    """A graph from x to y."""
    values = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in (("x", x), ("y", y))]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def product(folder: Path, weight: np.ndarray, name: str = "product.onnx") -> Path:
    """y = x @ weight."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return by_hand(folder / name, [node], {"w": weight}, ("batch", len(weight)))


def weight_of(size: int, columns: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((size, columns)).astype(np.float32)


BOUNDS = {
    ("Cnn", "int8", "max"): 0.03,
    ("Cnn", "int8", "percentile"): 0.03,
    ("Cnn", "int8", "entropy"): 0.04,
    ("Mlp", "int8", "max"): 0.015,
    ("Mlp", "int8", "percentile"): 0.015,
    ("Mlp", "int8", "entropy"): 0.03,
    ("Attentive", "int8", "max"): 0.03,
    ("Attentive", "int8", "percentile"): 0.03,
    ("Attentive", "int8", "entropy"): 0.03,
    ("Cnn", "fp8", "max"): 0.06,
    ("Mlp", "fp8", "max"): 0.06,
    ("Attentive", "fp8", "max"): 0.06,
}


@pytest.mark.parametrize(("net", "dtype", "method"), BOUNDS)
def test_answers_stay_close_to_float32(
    net: str, dtype: str, method: str, nets: dict[str, Trained], tmp_path: Path
) -> None:
    """Trained models keep within the bounds by every method, lose no accuracy worth the name, and are quantised."""
    target = tmp_path / "low.onnx"
    quantize(nets[net].path, target, Precision(dtype, method=method), calibration())
    found = error(nets[net].path, target, held_out())
    assert 1e-4 < found < BOUNDS[net, dtype, method]
    assert accuracy(target) > nets[net].accuracy - 0.01
    onnx.checker.check_model(str(target), full_check=True)


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_every_product_and_convolution_is_quantised(dtype: str, nets: dict[str, Trained], tmp_path: Path) -> None:
    """Both inputs come from DQ; weights have eight bits and no float32 copy; fp8 leaves transposed convolutions."""
    target = tmp_path / "low.onnx"
    notes = quantize(nets["Cnn"].path, target, Precision(dtype), calibration())
    assert [note.partition(",")[0] for note in notes] == (["'up': stays in float32"] if dtype == "fp8" else [])
    graph = graph_of(target)
    makers = {name: node.op_type for node in graph.node for name in node.output}
    types = ("Conv", "Gemm") if dtype == "fp8" else ("Conv", "ConvTranspose", "Gemm")
    heavy = [node for node in graph.node if node.op_type in types]
    assert len(heavy) == len(types) + 2
    assert {makers[name] for node in heavy for name in node.input[:2]} == {"DequantizeLinear"}
    kind = TensorProto.INT8 if dtype == "int8" else TensorProto.FLOAT8E4M3FN
    assert sum(one.data_type == kind for one in graph.initializer) == len(heavy)
    plain = [one.name for one in graph.initializer if one.data_type == FLOAT and len(one.dims) > 1]
    assert plain == (["up.weight"] if dtype == "fp8" else [])


def test_inputs_outputs_and_axes_stay(nets: dict[str, Trained], tmp_path: Path) -> None:
    """The graph is called as before: names, dtypes, symbolic dimensions, opset."""
    target = tmp_path / "low.onnx"
    quantize(nets["Attentive"].path, target, Precision("int8"), calibration())
    before, after = onnx.load(str(nets["Attentive"].path)), onnx.load(str(target))
    for side in ("input", "output"):
        assert list(getattr(before.graph, side)) == list(getattr(after.graph, side))
    assert (before.opset_import, before.ir_version) == (after.opset_import, after.ir_version)


def test_scales_are_of_each_channel(nets: dict[str, Trained], tmp_path: Path) -> None:
    """A weight's scales are its channels' largest values over 127, along the axis of its outputs."""
    target = tmp_path / "low.onnx"
    quantize(nets["Cnn"].path, target, Precision("int8"), calibration())
    for name, axis in (("body.2.weight", 0), ("grouped.weight", 0), ("up.weight", 1), ("head.weight", 0)):
        weight = tensor(nets["Cnn"].path, name)
        others = tuple(dim for dim in range(weight.ndim) if dim != axis)
        (node,) = [one for one in nodes_of(target, "DequantizeLinear") if one.output[0] == f"{name}.dequantized"]
        assert helper.get_node_attr_value(node, "axis") == axis
        assert np.allclose(tensor(target, node.input[1]), np.abs(weight).max(axis=others) / 127, rtol=1e-6)


def test_small_channels_survive_beside_large_ones(tmp_path: Path) -> None:
    """A column a million times smaller than its neighbour is as exact; a column of zeros stays zero."""
    weight = weight_of(32) * np.array([1e3, 1e-3, 1.0, 0.0], np.float32)
    source = product(tmp_path, weight)
    x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    for dtype in ("int8", "fp8"):
        quantize(source, tmp_path / "low.onnx", Precision(dtype), [{"x": x}])
        got = OrtSession(tmp_path / "low.onnx")({"x": x})["y"]
        wanted = x @ weight
        assert (np.linalg.norm(got - wanted, axis=0)[:3] < 0.05 * np.linalg.norm(wanted, axis=0)[:3]).all()
        assert not got[:, 3].any()


@pytest.mark.parametrize(("method", "outlier", "lost"), [("percentile", 1000.0, 0.5), ("entropy", 40.0, 0.05)])
def test_outliers_are_clipped_by_percentile_and_entropy(
    method: str, outlier: float, lost: float, tmp_path: Path
) -> None:
    """Where one value is far above all others, "max" loses the others and the method does not."""
    source = product(tmp_path, weight_of(64))
    x = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32)
    spiked = x.copy()
    spiked[0, 0] = outlier
    errors: dict[str, float] = {}
    for one in ("max", method):
        quantize(source, tmp_path / "low.onnx", Precision("int8", method=one, percentile=99.9), [{"x": spiked}])
        errors[one] = error(source, tmp_path / "low.onnx", x)
    assert errors["max"] > lost
    assert errors[method] < 0.02


def test_percentile_keeps_the_share_that_was_asked(tmp_path: Path) -> None:
    """The scale is that of the asked percentile of the absolute values, over batches that grow and shrink."""
    source = product(tmp_path, weight_of(8))
    values = np.random.default_rng(1).standard_normal((4, 4000, 8)).astype(np.float32)
    values *= np.array([1e-3, 1.0, 40.0, 0.0], np.float32)[:, None, None]
    for percentile in (75.0, 90.0, 99.9, 100.0):
        precision = Precision("int8", method="percentile", percentile=percentile)
        quantize(source, tmp_path / "low.onnx", precision, ({"x": batch} for batch in values))
        (node,) = nodes_of(tmp_path / "low.onnx", "QuantizeLinear")
        scale = tensor(tmp_path / "low.onnx", node.input[1])
        assert scale * 127 == pytest.approx(np.percentile(np.abs(values), percentile), rel=0.02)


def test_entropy_with_too_few_values_falls_back_to_max(nets: dict[str, Trained], tmp_path: Path) -> None:
    """Pixels have 17 values: entropy says nothing about them, and the note says what was taken instead."""
    notes = quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("int8", method="entropy"), calibration())
    assert notes == ("'first': method 'max' instead of 'entropy', which has too few values to go by",)
    quantize(nets["Mlp"].path, tmp_path / "max.onnx", Precision("int8"), calibration())
    scales = [tensor(tmp_path / name, "view.scale") for name in ("low.onnx", "max.onnx")]
    assert scales[0] == scales[1] == np.float32(1 / 127)


@pytest.mark.parametrize("method", ["max", "percentile", "entropy"])
def test_histograms_take_any_range(method: str, tmp_path: Path) -> None:
    """Tiny values before huge ones neither crash nor eat memory (both known of other calibrators)."""
    source = product(tmp_path, weight_of(8))
    values = np.random.default_rng(1).standard_normal((4000, 8)).astype(np.float32)
    batches = [{"x": values * np.float32(scale)} for scale in (0.0, 1e-42, 1e-6, 1e6)]
    quantize(source, tmp_path / "low.onnx", Precision("int8", method=method), batches)
    assert error(source, tmp_path / "low.onnx", batches[-1]["x"]) < 0.1


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "is NaN or infinite"), (np.inf, "is NaN or infinite"), (0, "is zero")]
)
@pytest.mark.parametrize("method", ["max", "entropy"])
def test_what_has_no_range_stays_in_float32(value: float, said: str, method: str, tmp_path: Path) -> None:
    """A tensor that is not finite, or zero throughout, is not quantised, and a note tells."""
    source = product(tmp_path, weight_of(8))
    x = np.zeros((4, 8), np.float32)
    x[2, 3] = value
    notes = quantize(source, tmp_path / "low.onnx", Precision("int8", method=method), [{"x": x}])
    assert notes == (
        f"'product': stays in float32, what enters {said} on {'all of ' * (value == 0)}the calibration data",
    )
    assert nodes_of(tmp_path / "low.onnx", "QuantizeLinear") == []


@pytest.mark.usefixtures("quick_collection")
@pytest.mark.parametrize("method", ["max", "percentile", "entropy"])
def test_batches_are_streamed(method: str, nets: dict[str, Trained], tmp_path: Path) -> None:
    """Each batch is asked for once and let go before the next: never two are alive."""
    made: list[weakref.ref[np.ndarray]] = []
    most: list[int] = []

    def stream() -> Iterator[Batch]:
        for size in (1, 30, 7, 64, 2):
            gc.collect()
            most.append(sum(one() is not None for one in made))
            batch = np.random.default_rng(size).random((size, 1, 8, 8), dtype=np.float32)
            made.append(weakref.ref(batch))
            yield {"x": batch}
            del batch

    quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("int8", method=method), stream())
    assert most == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_kept_nodes_stay_in_float32(dtype: str, nets: dict[str, Trained], tmp_path: Path) -> None:
    """No input of a kept node is quantised, also where another reader's is; the others' are."""
    nodes = [helper.make_node("MatMul", ["x", "w"], [name], name=name) for name in ("kept", "low")]
    source = by_hand(
        tmp_path / "two.onnx", [*nodes, helper.make_node("Add", ["kept", "low"], ["y"])], {"w": weight_of(8)}
    )
    x = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    quantize(source, tmp_path / "low.onnx", Precision(dtype), [{"x": x}], float32_nodes=["kept"])
    inputs = {node.name: list(node.input) for node in nodes_of(tmp_path / "low.onnx", "MatMul")}
    assert inputs == {"kept": ["x", "w"], "low": ["x.dequantized", "w.dequantized"]}
    assert 0 < error(source, tmp_path / "low.onnx", x) < 0.05


def test_everything_kept_quantises_nothing_and_says_so(nets: dict[str, Trained], tmp_path: Path) -> None:
    """With all nodes kept the answers are float32's, and the note does not hide it."""
    keep = [node.name for node in graph_of(nets["Mlp"].path).node]
    notes = quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("int8"), calibration(), float32_nodes=keep)
    assert notes == (
        "nothing is quantised: the model has no float32 convolution or matrix product with weights left for it",
    )
    assert error(nets["Mlp"].path, tmp_path / "low.onnx", held_out()) == 0


def test_int8_leaves_attention_products_and_fp8_takes_them(nets: dict[str, Trained], tmp_path: Path) -> None:
    """Products of two activations stay in float32 in int8, with a note, and are quantised in fp8."""
    left: dict[str, int] = {}
    for dtype in ("int8", "fp8"):
        notes = quantize(nets["Attentive"].path, tmp_path / "low.onnx", Precision(dtype), calibration())
        said = "'layer.self_attn': stays in float32, a product of two activations, which int8 would spoil"
        assert notes == ((said,) if dtype == "int8" else ())
        products = nodes_of(tmp_path / "low.onnx", "MatMul")
        left[dtype] = sum(not node.input[0].endswith(".dequantized") for node in products)
    assert left == {"int8": 2, "fp8": 0}


def test_int8_convolutions_are_refused_for_rtx_before_calibration(nets: dict[str, Trained], tmp_path: Path) -> None:
    """TensorRT-RTX can't build them: every one is named with its line, what to do instead, and no batch is read."""

    def never() -> Iterator[Batch]:
        raise AssertionError("a batch was asked for")
        yield {}

    source, target = nets["Cnn"].path, tmp_path / "low.onnx"
    nodes = {origin(node)[0]: node for node in graph_of(source).node if node.op_type in ("Conv", "ConvTranspose")}
    with pytest.raises(UnsupportedOperatorError) as caught:
        quantize(source, target, Precision("int8"), never(), flavour="tensorrt_rtx")
    assert list(nodes) == ["body.0", "body.2", "grouped", "up"]
    assert caught.value.nodes == tuple(
        UnsupportedNode(node.op_type, node.name, *origin(node), "no int8 convolution") for node in nodes.values()
    )
    assert str(caught.value).splitlines() == [
        "TensorRT-RTX: got 4 convolutions that it can't build in int8; expected int8 matrix "
        "products; take precision='fp8' or 'fp16', or int8 with keep_fp32=['body.0', 'body.2', "
        "'grouped', 'up']",
        *(
            f"  {node.op_type} ({node.name}) in module '{module}' at {origin(node)[1]}: no int8 convolution"
            for module, node in nodes.items()
        ),
    ]
    assert list(tmp_path.iterdir()) == []
    kept = [node.name for node in nodes.values()]
    quantize(source, target, Precision("int8"), calibration(), float32_nodes=kept, flavour="tensorrt_rtx")
    assert builds(nets["Cnn"], target, "int8", tmp_path)


@pytest.mark.parametrize(
    ("net", "dtype"), [("Mlp", "int8"), ("Attentive", "int8"), ("Cnn", "fp8"), ("Attentive", "fp8")]
)
def test_rtx_builds_what_is_quantised(net: str, dtype: str, nets: dict[str, Trained], tmp_path: Path) -> None:
    """The real builder takes int8 matrix products and everything in fp8."""
    target = tmp_path / "low.onnx"
    quantize(nets[net].path, target, Precision(dtype), calibration(), flavour="tensorrt_rtx")
    assert builds(nets[net], target, dtype, tmp_path)


@pytest.mark.parametrize("net", ["Mlp", "Attentive"])
def test_int4_weights_run_and_build(net: str, nets: dict[str, Trained], tmp_path: Path) -> None:
    """Weights of four bits answer as float32 within a few percent, without any batch, a fifth of the size."""
    target = tmp_path / "low.onnx"
    quantize(nets[net].path, target, Precision("fp32", weights="int4"), ())
    assert 1e-3 < error(nets[net].path, target, held_out()) < 0.1
    assert accuracy(target) > nets[net].accuracy - 0.02
    onnx.checker.check_model(str(target), full_check=True)
    if net == "Mlp":
        assert target.stat().st_size < 0.3 * nets[net].path.stat().st_size
    assert nodes_of(target, "QuantizeLinear") == []
    assert builds(nets[net], target, "fp32", tmp_path)


def test_int4_rounds_to_the_nearest_of_each_block(tmp_path: Path) -> None:
    """Every weight is within half a step of its block, a block's largest exact, columns and blocks not mixed up."""
    weight = weight_of(128, 3) * np.repeat([1.0, 100.0], 64).astype(np.float32)[:, None]
    turned = helper.make_node("Gemm", ["x", "w"], ["y"], name="product", transB=1)
    for source in (
        product(tmp_path, weight),
        by_hand(tmp_path / "gemm.onnx", [turned], {"w": weight.T}, ("batch", 128)),
    ):
        target = tmp_path / "low.onnx"
        assert quantize(source, target, Precision("fp32", weights="int4"), ()) == ()
        got = OrtSession(target)({"x": np.eye(128, dtype=np.float32)})["y"]
        step = np.repeat(np.abs(weight.reshape(2, 64, 3)).max(1) / 7, 64, axis=0)
        assert (np.abs(got - weight) <= step * 0.5001).all()
        assert (np.abs(got - weight) < 1e-5 * step)[np.abs(weight) == step * 7].all()


def test_int4_leaves_what_has_no_blocks(nets: dict[str, Trained], tmp_path: Path) -> None:
    """Inputs that no block divides stay in float32, with a note; so do kept ones."""
    source, target = nets["Attentive"].path, tmp_path / "low.onnx"
    notes = quantize(source, target, Precision("fp32", weights="int4"), ())
    assert notes == ("'rows': stays in float32, its inputs are no multiple of 16",)
    keep = [node.name for node in graph_of(source).node]
    notes = quantize(source, target, Precision("fp32", weights="int4"), (), float32_nodes=keep)
    assert notes == ("nothing is quantised: the model has no weights for int4",)


def test_no_calibration_data_is_an_error(nets: dict[str, Trained], tmp_path: Path) -> None:
    """The message says that data is needed and how to give it; nothing is written."""
    with pytest.raises(InputError) as caught:
        quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("int8"), ())
    assert str(caught.value) == (
        "calibration: got no batch; expected calibration data for int8 and fp8, an iterable of "
        "inputs in the form of sample_input; pass e.g. calibration=[batch for batch in loader][:32]"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_batch_leaves_what_was_there(nets: dict[str, Trained], tmp_path: Path) -> None:
    """ONNX Runtime's word on a batch is an InputError, and an older file stays as it was."""
    (tmp_path / "low.onnx").write_bytes(b"older")
    with pytest.raises(InputError) as caught:
        quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("int8"), [{"x": np.zeros((2, 3), np.float32)}])
    assert caught.value.subject == "ONNX Runtime"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("low.onnx", b"older")]


def test_origins_are_kept_and_given_to_new_nodes(nets: dict[str, Trained], tmp_path: Path) -> None:
    """Old nodes keep module and line; Q and DQ have those of the node whose input they quantise."""
    target = tmp_path / "low.onnx"
    quantize(nets["Cnn"].path, target, Precision("int8"), calibration())
    before, after = graph_of(nets["Cnn"].path), graph_of(target)
    old = {node.name: origin(node) for node in before.node}
    assert {node.name: origin(node) for node in after.node if node.name in old} == old
    readers = {name: node for node in after.node for name in node.input}
    new = [node for node in after.node if node.name not in old]
    assert len(new) == 15
    for node in new:
        reader = readers[node.output[0]]
        reader = readers[reader.output[0]] if node.op_type == "QuantizeLinear" else reader
        assert origin(node) == origin(reader)


def test_a_quantised_model_is_passed_on_as_it_is(nets: dict[str, Trained], tmp_path: Path) -> None:
    """What was fine-tuned with fake quantisation is not quantised again; no batch is needed."""
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    quantize(nets["Mlp"].path, once, Precision("int8"), calibration())
    assert quantize(once, twice, Precision("int8"), (), flavour="tensorrt_rtx") == (OWN_QUANTISATION_NOTE,)
    assert onnx.load(str(once)) == onnx.load(str(twice))
    assert OWN_QUANTISATION_NOTE == "the model brings its own quantisation, which stays as it is"


def test_a_quantised_convolution_is_refused_for_rtx(nets: dict[str, Trained], tmp_path: Path) -> None:
    """RTX can't build the int8 convolutions that a model brings either; those in fp8 it can."""
    low = tmp_path / "low.onnx"
    quantize(nets["Cnn"].path, low, Precision("int8"), calibration())
    with pytest.raises(UnsupportedOperatorError) as caught:
        quantize(low, tmp_path / "again.onnx", Precision("int8"), (), flavour="tensorrt_rtx")
    assert len(caught.value.nodes) == 4
    assert caught.value.fix == "disable the quantisers of these modules before the fine-tuning"
    quantize(nets["Cnn"].path, low, Precision("fp8"), calibration())
    assert quantize(low, tmp_path / "again.onnx", Precision("int8"), (), flavour="tensorrt_rtx") == (
        OWN_QUANTISATION_NOTE,
    )


@pytest.mark.parametrize(("kind", "refused"), [(TensorProto.INT8, True), (TensorProto.FLOAT8E4M3FN, False)])
def test_fake_quantisation_is_known_as_torchs_exporter_writes_it(kind: int, refused: bool, tmp_path: Path) -> None:
    """Scales and zero points as Constant nodes, Q before float weights: passed on, refused where RTX fails."""
    zero = onnx.TensorProto(name="zero", data_type=kind, raw_data=b"\0")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    nodes = [helper.make_node("Constant", [], [one.name], value=one) for one in (scale, zero)]
    for name in ("x", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_low"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_low", "scale", "zero"], [f"{name}_back"]))
    nodes.append(helper.make_node("Conv", ["x_back", "w_back"], ["y"], name="conv"))
    source = by_hand(tmp_path / "qat.onnx", nodes, {"w": np.ones((4, 3, 1))}, ("batch", 3, 8), ("batch", 4, 8))
    for flavour in ("tensorrt", None):
        assert quantize(source, tmp_path / "low.onnx", Precision("int8"), (), flavour=flavour) == (
            OWN_QUANTISATION_NOTE,
        )
        assert onnx.load(str(source)) == onnx.load(str(tmp_path / "low.onnx"))
    found: list[str] = []
    try:
        quantize(source, tmp_path / "low.onnx", Precision("int8"), (), flavour="tensorrt_rtx")
    except UnsupportedOperatorError as error:
        found = [node.name for node in error.nodes]
    assert found == (["conv"] if refused else [])


def test_weights_shared_with_other_nodes_stay_for_them(tmp_path: Path) -> None:
    """A matrix that is looked up as well as multiplied keeps its float32 form for the lookup."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["scores"], name="product"),
        helper.make_node("MatMul", ["scores", "w"], ["back"], name="back"),
        helper.make_node("Gather", ["w", "row"], ["looked_up"]),
        helper.make_node("Add", ["back", "looked_up"], ["y"]),
        helper.make_node("Constant", [], ["row"], value=numpy_helper.from_array(np.array(1), "row")),
    ]
    source = by_hand(tmp_path / "tied.onnx", [nodes[-1], *nodes[:-1]], {"w": weight_of(16, 8)})
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    for precision in (Precision("int8"), Precision("fp32", weights="int4")):
        quantize(source, tmp_path / "low.onnx", precision, [{"x": x}])
        assert 0 < error(source, tmp_path / "low.onnx", x) < 0.2
        assert np.array_equal(tensor(tmp_path / "low.onnx", "w"), weight_of(16, 8))


def test_constants_on_either_side_and_of_any_rank(tmp_path: Path) -> None:
    """A weight may stand on the left, be a vector, or hold a matrix for each of a stack."""
    rng = np.random.default_rng(0)
    for order, weight, shape in (
        (("w", "x"), (5, 8), ("batch", 8, 6)),
        (("x", "w"), (8,), ("batch", 8)),
        (("x", "w"), (3, 8, 6), ("batch", 3, 4, 8)),
    ):
        node = helper.make_node("MatMul", list(order), ["y"], name="product")
        weights = {"w": rng.standard_normal(weight)}
        source = by_hand(tmp_path / "one.onnx", [node], weights, shape, (None,) * (len(shape) - (len(weight) == 1)))
        x = rng.standard_normal((40, *shape[1:])).astype(np.float32)
        for dtype, bound in (("int8", 0.03), ("fp8", 0.1)):
            assert quantize(source, tmp_path / "low.onnx", Precision(dtype), [{"x": x}]) == ()
            assert 0 < error(source, tmp_path / "low.onnx", x) < bound


def test_other_types_and_constants_are_left_alone(tmp_path: Path) -> None:
    """Products of integers and of two constants are none of its business."""
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["whole", "whole_w"], ["counted"], name="counted"),
        helper.make_node("Cast", ["counted"], ["back"], to=FLOAT),
        helper.make_node("Cast", ["w"], ["whole_w"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["w", "v"], ["fixed"], name="fixed"),
        helper.make_node("MatMul", ["x", "fixed"], ["product"], name="product"),
        helper.make_node("Add", ["product", "back"], ["y"]),
    ]
    weights = {"w": np.eye(8), "v": weight_of(8, 8)}
    source = by_hand(tmp_path / "odd.onnx", [nodes[3], *nodes[:3], *nodes[4:]], weights)
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    quantize(source, tmp_path / "low.onnx", Precision("int8"), [{"x": x}])
    inputs = {node.name: list(node.input) for node in nodes_of(tmp_path / "low.onnx", "MatMul")}
    assert inputs["counted"] == ["whole", "whole_w"]
    assert inputs["fixed"] == ["w", "v"]


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    """Q and DQ as they are written need opset 21."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    source = by_hand(tmp_path / "old.onnx", [node], {"w": weight_of(8)}, opset=20)
    with pytest.raises(InputError) as caught:
        quantize(source, tmp_path / "low.onnx", Precision("int8"), [{"x": np.ones((2, 8), np.float32)}])
    assert str(caught.value) == (
        "ONNX model: got opset 20; expected 21 or later, which Q and DQ need; export it again with a "
        "later opset_version"
    )


def test_fp8_takes_the_largest_value_and_says_so(nets: dict[str, Trained], tmp_path: Path) -> None:
    """Another method is no silent wish: the note tells that it is int8's."""
    notes = quantize(nets["Mlp"].path, tmp_path / "low.onnx", Precision("fp8", method="entropy"), calibration())
    assert notes == ("method 'entropy' is for int8; fp8 takes the largest value",)


def test_large_weights_lie_beside_the_model(
    nets: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above protobuf's limit the data goes into a file of its own under the target's name, and nothing else is left."""
    from torch2engine.onnx_graph import model_file

    quantize(nets["Cnn"].path, tmp_path / "whole.onnx", Precision("int8"), calibration())
    monkeypatch.setattr(model_file, "EXTERNAL_ABOVE_BYTES", 1000)
    folder = tmp_path / "parts"
    folder.mkdir()
    quantize(nets["Cnn"].path, folder / "model.onnx", Precision("int8"), calibration())
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert error(tmp_path / "whole.onnx", folder / "model.onnx", held_out()) == 0
    quantize(folder / "model.onnx", folder / "again.onnx", Precision("int8"), ())
    assert error(folder / "model.onnx", folder / "again.onnx", held_out()) == 0


def test_nothing_is_said_on_the_terminal(
    nets: dict[str, Trained], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the streams nor the log hear of the tools."""
    for precision in (Precision("int8", method="entropy"), Precision("fp8"), Precision("fp32", weights="int4")):
        quantize(nets["Attentive"].path, tmp_path / "low.onnx", precision, calibration())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_divergence_prefers_the_whole_where_nothing_is_far() -> None:
    """On evenly spread values clipping loses more than rounding."""
    counts = np.full(2048, 100.0)
    whole = calibrate_ranges._divergence(counts, 2048, 128)
    assert whole < calibrate_ranges._divergence(counts, 1024, 128)

"""ONNX Runtime as the first judge: right in every dtype, and plain about files and inputs that it can't take."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.support import onnx_models
from tests.support.models import BATCH, Cnn, Function, array, error_of, exported
from torch2engine.core.errors import ArtifactError, InputError, UnsupportedOperatorError
from torch2engine.onnx_graph.ort_session import OrtSession

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
KINDS = {
    torch.float32: FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}


def test_answers_are_by_name_and_fresh(tmp_path: Path) -> None:
    """Outputs come under their names, and a later call does not change an earlier answer."""
    session = OrtSession(onnx_models.relu(tmp_path))
    first = session({"x": np.array([[-1, 2, -3, 4]], np.float32)})
    assert list(first) == ["y"]
    assert first["y"].tolist() == [[0, 2, 0, 4]]
    session({"x": np.full((1, 4), 9, np.float32)})
    assert first["y"].tolist() == [[0, 2, 0, 4]]


def test_idle_threads_do_not_spin(tmp_path: Path) -> None:
    """A session leaves the cores to others when no call runs: a deploy opens several, beside a training's processes."""
    options = OrtSession(onnx_models.relu(tmp_path))._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_inputs_that_the_graph_does_not_read_may_be_given(tmp_path: Path) -> None:
    """Whoever calls by the signature need not know what the graph kept."""
    assert list(OrtSession(onnx_models.relu(tmp_path))({"x": np.ones((2, 4), np.float32), "mask": np.ones(3)})) == ["y"]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, ::2],
        lambda x: np.asfortranarray(x)[:, :4],
        lambda x: x[::-1, :4],
        lambda x: np.broadcast_to(x[:1, :4], (3, 4)),
    ],
    ids=["strided", "fortran", "reversed", "broadcast"],
)
def test_arrays_may_lie_in_any_order(make: Callable[[Any], Any], tmp_path: Path) -> None:
    """Strides are no reason for another answer."""
    x = make(np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32))
    assert np.array_equal(OrtSession(onnx_models.relu(tmp_path))({"x": x})["y"], np.maximum(x, 0))


def test_zero_dimensions_stay_zero(tmp_path: Path) -> None:
    """A scalar goes in and comes out as one."""
    answer = OrtSession(onnx_models.relu(tmp_path, shape=()))({"x": np.array(3.0, np.float32)})["y"]
    assert answer.shape == ()
    assert answer == 3


def test_empty_batch_is_answered(tmp_path: Path) -> None:
    """What the graph allows, it answers."""
    assert OrtSession(onnx_models.relu(tmp_path))({"x": np.zeros((0, 4), np.float32)})["y"].shape == (0, 4)


def test_threads_may_share_a_session(tmp_path: Path) -> None:
    """Each gets the answer to its own question."""
    session = OrtSession(onnx_models.relu(tmp_path))
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not (session({"x": np.full((2, 4), number, np.float32)})["y"] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# precision


@pytest.mark.parametrize(
    ("make", "bound"),
    [(Cnn, 1e-5), (lambda: Cnn().half(), 5e-3), (lambda: Cnn().bfloat16(), 3e-2)],
    ids=["float32", "half", "bfloat16"],
)
def test_every_precision_answers_like_pytorch(make: Callable[[], nn.Module], bound: float) -> None:
    """float16 as float16; bfloat16, which the CPU provider lacks, in float32; neither is off by more than rounding."""
    model = make()
    dtype = next(model.parameters()).dtype
    artifact, examples = exported(model, torch.randn(4, 3, 8, 8, dtype=dtype), {"image": BATCH})
    assert error_of(artifact, examples) < bound


ANSWER = """
import json
import numpy as np
from pathlib import Path
from torch2engine.onnx_graph.ort_session import OrtSession
print(json.dumps([OrtSession(Path(path))({{"x": np.load({x!r})}})["output"].tolist() for path in {paths}]))
"""


class Encoder(nn.Module):
    """A block of a vision transformer: on its graph in float16 ONNX Runtime 1.30 and 1.32 crash by default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 16, 16)
        self.before = nn.LayerNorm(64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).reshape(x.shape[0], -1, 4).permute(0, 2, 1)
        normed = self.before(tokens)
        return self.head(tokens + self.attention(normed, normed, normed, need_weights=False)[0])


def test_half_attention_is_answered_without_a_crash(run_python: Callable[[str], Any], tmp_path: Path) -> None:
    """Transposed products in float16, on which a fusion of ONNX Runtime's has crashed, are answered right."""
    artifact, examples = exported(Encoder().half(), torch.randn(2, 3, 32, 32).half(), {"x": BATCH})
    bare = onnx.load(str(artifact.onnx_path))
    del bare.graph.value_info[:]  # not every file tells the dtypes of its inner values
    paths = [str(artifact.onnx_path), str(tmp_path / "bare.onnx")]
    onnx.save(bare, paths[1])
    np.save(tmp_path / "x.npy", array(examples[0].inputs[0]))
    answers = run_python(ANSWER.format(paths=paths, x=str(tmp_path / "x.npy")))
    assert len(answers) == 2
    for found in answers:
        assert np.allclose(found, array(examples[0].outputs["output"]), atol=1e-2)


def test_bfloat16_is_widened_everywhere(tmp_path: Path) -> None:
    """Weights, constants, casts, values and the branches of If become float32, and the answer is right."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x) * torch.tensor(1.5, dtype=torch.bfloat16)
            y = torch.cond(x.sum() > 0, lambda a: self.linear(a) + 1, lambda a: (a.float() * 3).bfloat16(), (y,))
            return y + torch.arange(3, device=y.device).to(torch.bfloat16)

    model = Branching().bfloat16()
    for sign in (1, -1):
        sample = (sign * torch.rand(4, 3)).bfloat16()
        artifact, examples = exported(model, sample, {"x": BATCH})
        assert error_of(artifact, examples) < 3e-2
    answer = OrtSession(artifact.onnx_path)({"x": array(examples[0].inputs[0])})["output"]
    assert answer.dtype == np.float32
    stored = {tensor.data_type for tensor in onnx.load(str(artifact.onnx_path)).graph.initializer}
    assert BF16 in stored, "the file itself keeps its dtypes"


def test_bfloat16_inside_a_float32_graph_is_found(tmp_path: Path) -> None:
    """A graph whose only bfloat16 is the target of a Cast is widened too."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=BF16, name="narrow"),
        helper.make_node("Add", ["narrow", "narrow"], ["sum"], name="add"),
        helper.make_node("Cast", ["sum"], ["y"], to=FLOAT, name="wide"),
    ]
    path = onnx_models.save(tmp_path / "cast.onnx", nodes, {"x": (FLOAT, [2])}, {"y": (FLOAT, [2])})
    assert OrtSession(path)({"x": np.array([1.5, -2], np.float32)})["y"].tolist() == [3, -4]


LOW_TYPES = pytest.mark.parametrize(("low", "dtype"), [(HALF, torch.float16), (BF16, torch.bfloat16)])


@LOW_TYPES
def test_values_that_a_cast_makes_low_are_rounded(low: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """A Cast to a low type shows in the answer, in branches too, so that one too many does not pass."""
    cast = [helper.make_node("Cast", ["x"], ["narrow"], to=low), helper.make_node("Cast", ["narrow"], ["y"], to=FLOAT)]
    value = helper.make_tensor_value_info("y", FLOAT, [4])
    branches = {f"{name}_branch": helper.make_graph(cast, name, [], [value]) for name in ("then", "else")}
    inside = [helper.make_node("If", ["true"], ["y"], **branches)]
    x = np.array([1 + 2**-9, 1 + 2**-7, 1 + 3 * 2**-8, 1 + 2**-12], np.float32)
    for name, nodes in (("plain", cast), ("inside", inside)):
        io = {"x": (FLOAT, [4])}, {"y": (FLOAT, [4])}
        path = onnx_models.save(tmp_path / f"{name}.onnx", nodes, *io, {"true": np.array(True)})
        assert OrtSession(path)({"x": x})["y"].tolist() == torch.from_numpy(x).to(dtype).tolist()


@LOW_TYPES
@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_low_arithmetic_between_casts_is_rounded(
    low: int, dtype: torch.dtype, source: torch.dtype, tmp_path: Path
) -> None:
    """What is cast to a low type, computed there and cast back has every rounding that PyTorch has."""
    x = torch.tensor([2049, 1.2345678, 0.3333, 999.7], dtype=torch.float64).to(source)
    factor = torch.tensor(3.1, dtype=dtype)
    constant = helper.make_tensor("c", low, [], [factor.item()])
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=low, name="narrow"),
        helper.make_node("Mul", ["narrow", "c"], ["product"], name="mul"),
        helper.make_node("Sub", ["product", "narrow"], ["rest"], name="sub"),
        helper.make_node("Cast", ["rest"], ["y"], to=FLOAT, name="wide"),
    ]
    path = onnx_models.save(tmp_path / "low.onnx", nodes, {"x": (KINDS[source], [4])}, {"y": (FLOAT, [4])})
    model = onnx.load(path)
    model.graph.initializer.append(constant)
    onnx.save(model, path)
    narrow = x.to(dtype)
    assert OrtSession(path)({"x": x.numpy()})["y"].tolist() == (narrow * factor - narrow).float().tolist()


def test_inputs_and_outputs_of_float16_stay_float16(tmp_path: Path) -> None:
    """A float16 graph takes and gives float16 arrays, and overflows where PyTorch does."""
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Sqrt", ["square"], ["y"])]
    path = onnx_models.save(tmp_path / "half.onnx", nodes, {"x": (HALF, [2])}, {"y": (HALF, [2])})
    answer = OrtSession(path)({"x": np.array([300, 3], np.float16)})["y"]
    assert answer.dtype == np.float16
    assert answer.tolist() == [np.inf, 3]


def test_constants_of_bfloat16_are_found_in_nodes(tmp_path: Path) -> None:
    """A Constant node's tensor counts like a weight."""
    three = onnx.TensorProto()
    three.CopyFrom(helper.make_tensor("three", BF16, [1], [3.0]))
    nodes = [
        helper.make_node("Constant", [], ["three"], value=three),
        helper.make_node("Mul", ["x", "three"], ["y"], name="mul"),
    ]
    path = onnx_models.save(tmp_path / "constant.onnx", nodes, {"x": (BF16, [2])}, {"y": (BF16, [2])})
    assert OrtSession(path)({"x": np.array([1.5, -2], np.float32)})["y"].tolist() == [4.5, -6]


# what it can't take


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"not a model", '"DecodeError: Error parsing message'),
        (None, '"DecodeError: Error parsing message'),
        (b"", ("ONNX Runtime's \"InvalidArgument: [ONNXRuntimeError]")),
    ],
    ids=["garbage", "cut short", "empty"],
)
def test_broken_file_is_refused(content: bytes | None, got: str, tmp_path: Path) -> None:
    """The error names the file and says what is wrong with it."""
    path = onnx_models.relu(tmp_path)
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(ArtifactError) as error:
        OrtSession(path)
    assert error.value.path == str(path)
    assert error.value.subject == "'relu.onnx'"
    assert error.value.got.startswith(got)
    assert "\n" not in error.value.got


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing file and a folder are ArtifactErrors as well."""
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ArtifactError) as error:
            OrtSession(path)
        assert re.match(r'"(FileNotFoundError|IsADirectoryError): \[Errno', error.value.got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_external_weights_that_are_missing_are_told(dtype: torch.dtype, damage: str, tmp_path: Path) -> None:
    """Weights beside the file that are gone or cut are an ArtifactError, in every dtype."""
    path = tmp_path / "model.onnx"
    weight = torch.randn(64, dtype=dtype)
    kind = FLOAT if dtype is torch.float32 else BF16
    tensor = (
        numpy_helper.from_array(weight.numpy(), "w")
        if dtype is torch.float32
        else helper.make_tensor("w", BF16, [64], weight.view(torch.int16).numpy().tobytes(), raw=True)
    )
    values = [helper.make_tensor_value_info(name, kind, [64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    x = np.ones(64, np.float32)
    assert np.allclose(OrtSession(path)({"x": x})["y"], array(weight))
    weights = tmp_path / "weights"
    weights.unlink() if damage == "gone" else weights.write_bytes(weights.read_bytes()[:10])
    with pytest.raises(ArtifactError) as error:
        OrtSession(path)
    assert error.value.path == str(path)


def test_operator_that_the_cpu_lacks_is_named(tmp_path: Path) -> None:
    """No CPU implementation for a dtype: the operator, the node, and what to do."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="blur")
    double = (TensorProto.DOUBLE, [1, 1, 4, 4])
    weights = {"w": np.ones((1, 1, 1, 1))}
    path = onnx_models.save(tmp_path / "conv.onnx", [node], {"x": double}, {"y": double}, weights)
    with pytest.raises(UnsupportedOperatorError) as error:
        OrtSession(path)
    assert str(error.value) == (
        "ONNX Runtime: got no CPU implementation for Conv; expected operators and dtypes that have "
        "one; compute it in float32: cast the model, or what this operator takes\n  Conv (blur): no CPU "
        "implementation for these dtypes"
    )


@pytest.mark.parametrize(("domain", "named"), [("", "Blur"), ("my.domain", "my.domain:Blur")])
def test_operator_that_onnx_runtime_does_not_know_is_named(domain: str, named: str, tmp_path: Path) -> None:
    """No export brings an operator that the runtime does not have: the fix is in the model or the runtime."""
    node = helper.make_node("Blur", ["x"], ["y"], domain=domain)
    single = (TensorProto.FLOAT, [4])
    with pytest.raises(UnsupportedOperatorError) as error:
        OrtSession(onnx_models.save(tmp_path / "blur.onnx", [node], {"x": single}, {"y": single}))
    assert str(error.value) == (
        f"ONNX Runtime: got the operator {named}, which it does not know; expected operators of ONNX and of the "
        f"model's own functions; replace it in the model, or update onnxruntime if the operator is new\n  {named}: "
        "not known to ONNX Runtime"
    )


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        ({"x": np.ones((2, 5), np.float32)}, "Got invalid dimensions for input: x"),
        ({"x": np.ones((2, 4), np.float64)}, "Unexpected input data type"),
        ({"x": np.ones(4, np.float32)}, "Invalid rank"),
        ({}, "Required inputs"),
    ],
    ids=["size", "dtype", "rank", "missing"],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, Any], got: str, tmp_path: Path) -> None:
    """ONNX Runtime's own words, in one line, as an InputError."""
    with pytest.raises(InputError) as error:
        OrtSession(onnx_models.relu(tmp_path))(inputs)
    assert error.value.subject == "ONNX Runtime"
    assert got in error.value.got
    assert "\n" not in error.value.got


def test_model_of_half_weights_and_float32_inputs_is_right() -> None:
    """Casts in the model itself stay where they are."""
    model = Function(lambda x, w: (x.half() * w.half()).float() + x)
    artifact, examples = exported(model, torch.randn(4, 3), {"x": BATCH})
    assert artifact.precision == "fp16"
    assert error_of(artifact, examples) < 2e-3


TELEMETRY = """
import json, os, tempfile
from pathlib import Path
RELU = '<ir_version: 10, opset_import: ["" : 20]> graph (float[b,4] x) => (float[b,4] y) { y = Relu(x) }'
home = tempfile.mkdtemp()
os.environ.update(HOME=home, XDG_CACHE_HOME=home, XDG_CONFIG_HOME=home, XDG_DATA_HOME=home)
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
if {is_imported_before}:
    import onnxruntime
import onnx.parser
from torch2engine.onnx_graph import ort_session as file
calls = []

def watched(module, name):
    original = getattr(module, name)
    setattr(module, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))

if {is_imported_before}:
    watched(onnxruntime, "disable_telemetry_events")
    watched(onnxruntime, "InferenceSession")
with tempfile.TemporaryDirectory() as folder:
    model = Path(folder, "model.onnx")
    onnx.save(onnx.parser.parse_model(RELU), model)
    file.OrtSession(model), file.OrtSession(model)
print(json.dumps([calls, os.listdir(home), os.environ.get("ORT_DISABLE_TELEMETRY")]))
"""


def test_telemetry_is_off_before_onnx_runtime_is_imported(run_python: Callable[[str], Any]) -> None:
    """ONNX Runtime leaves no identifier of the device in the home folder, and the environment is as it was."""
    _, files_at_home, variable = run_python(TELEMETRY.replace("{is_imported_before}", "False"))
    assert files_at_home == []
    assert variable is None


def test_telemetry_is_off_before_the_first_session(run_python: Callable[[str], Any]) -> None:
    """Where the user's own code has imported ONNX Runtime before, it is turned off then."""
    calls, _, variable = run_python(TELEMETRY.replace("{is_imported_before}", "True"))
    assert calls == ["disable_telemetry_events", "InferenceSession", "InferenceSession"]
    assert variable is None

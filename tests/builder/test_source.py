"""`torch2engine.builder.source`: what ONNX from elsewhere becomes, and what is refused before TensorRT sees it."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.support import onnx_models
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.builder.source import make_build_source
from torch2engine.core.errors import ArtifactError, DtypeError, DynamicAxisError, InputError
from torch2engine.core.spec import Axis, Profile, Tree

FLOAT = onnx_models.FLOAT


def identity(folder: Path, shapes: dict[str, list[Any]], dtype: int = FLOAT) -> Path:
    """A model that copies each input to an output of its own."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in shapes]
    inputs = {name: (dtype, shape) for name, shape in shapes.items()}
    outputs = {f"{name}_out": (dtype, shape) for name, shape in shapes.items()}
    return onnx_models.save(folder / "identity.onnx", nodes, inputs, outputs)


def artifact(folder: Path, precision: str = "fp32", **axis: Any) -> OnnxArtifact:
    """An artifact with one axis, as torch2engine's own export leaves it."""
    source = make_build_source(onnx_models.relu(folder), {"batch": (8, 8, 32)}, None)
    signature = source.signature.from_json(
        {**source.signature.to_json(), "axes": [Axis("batch", 8, 8, 32, **axis).to_json()]}
    )
    return OnnxArtifact(
        source.artifact.folder,
        owner=source.artifact,
        signature=signature,
        profiles=source.profiles,
        precision=precision,
        versions=source.artifact.versions,
    )


def refusal(source: Any, profiles: Any = None, precision: str | None = None) -> Exception:
    """The error that a source raises."""
    with pytest.raises((ArtifactError, InputError, DynamicAxisError)) as caught:
        make_build_source(source, profiles, precision)
    return caught.value


def test_axes_take_the_graphs_own_names(tmp_path: Path) -> None:
    """Dimensions of one name are one axis across inputs; static ones stay numbers."""
    path = identity(tmp_path, {"a": ["batch", 3, "length"], "b": ["batch"]})
    source = make_build_source(path, {"batch": (1, 2, 4), "length": (1, 8, 16)}, None)
    assert [spec.shape for spec in source.signature.inputs] == [("batch", 3, "length"), ("batch",)]
    assert source.signature.axes == (Axis("batch", 1, 2, 4), Axis("length", 1, 8, 16))


def test_axis_names_become_unique_identifiers(tmp_path: Path) -> None:
    """Whatever a tool calls a dimension, the axis can be written as a keyword, and different ones stay different."""
    path = identity(tmp_path, {"x": ["unk:0", "unk.0", "2d", "class", "größe"]})
    source = make_build_source(path, dict.fromkeys(("unk_0", "unk_0_2", "_2d", "_class", "gr__e"), (1, 1, 2)), None)
    assert source.signature.inputs[0].shape == ("unk_0", "unk_0_2", "_2d", "_class", "gr__e")


def test_unnamed_dynamic_dimensions_are_named_by_place(tmp_path: Path) -> None:
    """A dimension without a name, or of -1, is called after its input and position, each for itself."""
    path = identity(tmp_path, {"in:0": [None, 4], "b": [-1, 4]})
    source = make_build_source(path, {"in_0_dim_0": (1, 1, 2), "b_dim_0": (1, 1, 2)}, None)
    assert [spec.shape for spec in source.signature.inputs] == [("in_0_dim_0", 4), ("b_dim_0", 4)]


def test_weights_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    """Old exporters list weights as inputs with a default; they stay weights."""
    path = onnx_models.matmul(tmp_path)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [64, 64]))
    onnx.save(model, path)
    source = make_build_source(path, {"batch": (1, 2, 4)}, None)
    assert [spec.name for spec in source.signature.inputs] == ["x"]


def test_several_profiles_span_the_axis(tmp_path: Path) -> None:
    """An axis reaches from the smallest min to the largest max, with the first profile's opt."""
    profiles = [{"batch": (4, 8, 16)}, Profile({"batch": (1, 1, 2)})]
    source = make_build_source(onnx_models.relu(tmp_path), profiles, None)
    assert source.signature.axes == (Axis("batch", 1, 8, 16),)
    assert source.profiles == (Profile({"batch": (4, 8, 16)}), Profile({"batch": (1, 1, 2)}))


def test_static_model_has_one_empty_profile(tmp_path: Path) -> None:
    """A model without dynamic axes needs no profiles."""
    source = make_build_source(onnx_models.relu(tmp_path, (2, 4)), None, None)
    assert source.profiles == (Profile({}),)
    assert source.signature.output == Tree("tensor")


def test_pitfall_23_missing_profiles_list_every_axis(tmp_path: Path) -> None:
    """Dynamic dimensions without ranges are listed with their places and an example to paste."""
    path = identity(tmp_path, {"a": ["batch", 3], "b": [2, "length"]})
    error = refusal(path)
    assert isinstance(error, DynamicAxisError)
    assert str(error) == (
        "profiles: got no range of axis 'batch' (dimension 0 of input 'a'), axis 'length' (dimension "
        "1 of input 'b'); expected (min, opt, max) for every dynamic axis; e.g. "
        "profiles={'batch': (1, 8, 32), 'length': (1, 8, 32)}"
    )
    assert "axis 'length'" in str(refusal(path, [{"batch": (1, 1, 1), "length": (1, 1, 1)}, {"batch": (1, 1, 1)}]))


def test_profiles_of_unknown_axes_list_the_known(tmp_path: Path) -> None:
    """An axis too many is named beside the valid ones."""
    path = onnx_models.relu(tmp_path)
    assert str(refusal(path, {"batch": (1, 1, 1), "bach": (1, 1, 1)})) == (
        "profiles: got a range for 'bach'; expected ranges of 'batch'; leave out the others"
    )
    assert str(refusal(onnx_models.relu(tmp_path, (1, 4)), {"n": (1, 1, 1)})) == (
        "profiles: got a range for 'n'; expected none, since the model has no dynamic axis; leave profiles out"
    )


def test_profile_out_of_order_is_refused(tmp_path: Path) -> None:
    """min <= opt <= max holds before TensorRT is asked."""
    assert str(refusal(onnx_models.relu(tmp_path), {"batch": (4, 2, 8)})).startswith(
        "axis 'batch': got min 4, opt 2, max 8; expected min <= opt <= max"
    )


@pytest.mark.parametrize(
    ("dtype", "name", "fix"),
    [
        (TensorProto.DOUBLE, "float64", "export the model in float32, e.g. after model.float()"),
        (TensorProto.INT16, "int16", "cast the input in the model, integers to int32 or int64"),
        (TensorProto.STRING, "string", "cast the input in the model, integers to int32 or int64"),
        (TensorProto.COMPLEX64, "complex64", "cast the input in the model, integers to int32 or int64"),
    ],
)
def test_pitfall_11_dtypes_that_tensorrt_would_narrow_are_refused(
    tmp_path: Path, dtype: int, name: str, fix: str
) -> None:
    """TensorRT turns float64 into float32 without a word; here it is an error that names the tensor."""
    error = refusal(identity(tmp_path, {"x": [2]}, dtype))
    assert isinstance(error, DtypeError)
    assert error.name == "x"
    assert str(error) == (
        f"input 'x': got dtype {name}; expected one of float32, float16, bfloat16, int64, int32, "
        f"int8, uint8, bool, float8_e4m3fn, which TensorRT takes; {fix}"
    )


def test_float64_output_is_refused(tmp_path: Path) -> None:
    """The output side is held to the same list."""
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)
    path = onnx_models.save(tmp_path / "cast.onnx", [node], {"x": (FLOAT, [2])}, {"y": (TensorProto.DOUBLE, [2])})
    assert str(refusal(path)).startswith("output 'y': got dtype float64; expected one of float32, ")


def test_sequence_inputs_are_refused(tmp_path: Path) -> None:
    """Only tensors cross an engine's border."""
    node = helper.make_node("SequenceLength", ["s"], ["n"])
    value = helper.make_tensor_sequence_value_info("s", FLOAT, [2])
    graph = helper.make_graph([node], "graph", [value], [helper.make_tensor_value_info("n", onnx_models.INT64, [])])
    path = tmp_path / "sequence.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    assert str(refusal(path)) == (
        "input 's': got a sequence; expected a tensor, since TensorRT takes nothing else; export the "
        "model with tensors for inputs and outputs"
    )


def test_input_that_is_also_an_output_is_refused(tmp_path: Path) -> None:
    """TensorRT would rename the input behind the caller's back."""
    node = helper.make_node("Relu", ["x"], ["y"])
    path = onnx_models.save(
        tmp_path / "through.onnx", [node], {"x": (FLOAT, [2])}, {"y": (FLOAT, [2]), "x": (FLOAT, [2])}
    )
    assert str(refusal(path)) == (
        f"'{path}': got the name 'x' for more than one input or output; expected a name for each; put "
        "an Identity node before the output and name its result otherwise"
    )


def test_broken_file_is_an_artifact_error(tmp_path: Path) -> None:
    """Bytes that are no model, a truncated one and a folder are told apart from a good file, never a crash."""
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"not a model" * 50)
    assert str(refusal(garbage)).startswith(f"'{garbage}': got \"")
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(onnx_models.matmul(tmp_path).read_bytes()[:-100])
    assert str(refusal(truncated)).startswith(f"'{truncated}': got \"")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    assert str(refusal(empty)).startswith(f"'{empty}': got \"")
    assert str(refusal(tmp_path)) == (
        f"'{tmp_path}': got a folder; expected an ONNX file; if torch2engine saved it, build "
        f"torch2engine.OnnxArtifact.load({str(tmp_path)!r})"
    )


def test_pitfall_39_external_data_travel_along(tmp_path: Path) -> None:
    """Weights in files beside the model, one a tensor, arrive in one file, and the copy stands alone."""
    plain = onnx_models.matmul(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "model.onnx"
    onnx.save_model(onnx.load(plain), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(list(elsewhere.iterdir())) == 2
    source = make_build_source(path, {"batch": (1, 2, 4)}, None)
    for file in elsewhere.iterdir():
        file.unlink()
    assert sorted(file.name for file in source.artifact.folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(str(one), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in (plain, source.artifact.onnx_path)
    ]
    np.testing.assert_array_equal(*answers)


def test_missing_external_data_are_an_artifact_error(tmp_path: Path) -> None:
    """A model whose weights were left behind is refused by name."""
    path = tmp_path / "model.onnx"
    whole = onnx.load(onnx_models.matmul(tmp_path))
    onnx.save_model(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    error = refusal(path, {"batch": (1, 2, 4)})
    assert isinstance(error, ArtifactError)
    assert "weights.bin" in str(error)


def test_artifact_keeps_its_own_profiles_and_precision(tmp_path: Path) -> None:
    """What export settled is what is built."""
    mine = artifact(tmp_path, "fp16")
    source = make_build_source(mine, None, None)
    assert (source.artifact, source.profiles, source.precision) == (mine, mine.profiles, "fp16")


def test_artifact_takes_other_profiles_and_keeps_its_multiples(tmp_path: Path) -> None:
    """New ranges replace the old, and must still be multiples of what the model demands."""
    mine = artifact(tmp_path, multiple_of=8)
    source = make_build_source(mine, {"batch": (8, 16, 64)}, "tf32")
    assert source.signature.axes == (Axis("batch", 8, 16, 64, multiple_of=8),)
    assert (source.profiles, source.precision) == ((Profile({"batch": (8, 16, 64)}),), "tf32")
    for wrong in ({"batch": (8, 12, 64)}, [{"batch": (8, 16, 64)}, {"batch": (8, 12, 64)}]):
        assert str(refusal(mine, wrong)).startswith("axis 'batch': got the size 12; expected")
    assert "no range of axis 'batch' (dimension 0 of input 'x')" in str(refusal(mine, {}))


def test_half_artifact_refuses_a_float32_precision(tmp_path: Path) -> None:
    """A graph's dtypes are not changed by a word."""
    assert str(refusal(artifact(tmp_path, "bf16"), None, "tf32")) == (
        "precision: got 'tf32'; expected 'bf16', which the graph's dtypes make it; leave precision "
        "out, or export the model again"
    )


def test_external_data_in_functions_sparse_weights_and_folders_travel_along(tmp_path: Path) -> None:
    """Wherever ONNX allows a tensor, its values come with the copy, which stands alone."""
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "values.bin").write_bytes(np.float32(7).tobytes())
    (tmp_path / "from" / "w.bin").write_bytes(np.float32(5).tobytes())

    def external(name: str, location: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=onnx_models.FLOAT, dims=[1], data_location=1)
        tensor.external_data.add(key="location", value=location)
        return tensor

    indices = helper.make_tensor("", onnx_models.INT64, [1], [1])
    constant = helper.make_node("Constant", [], ["w"], value=external("w", "w.bin"))
    function = helper.make_function(
        *("my.domain", "AddFive", ["x"], ["y"]),
        [constant, helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_opsetid("", 20)],
    )
    nodes = [
        helper.make_node("AddFive", ["x"], ["sum"], domain="my.domain"),
        helper.make_node("Add", ["sum", "s"], ["y"]),
    ]
    path = onnx_models.save(tmp_path / "from" / "m.onnx", nodes, *({n: (onnx_models.FLOAT, [2])} for n in "xy"))
    model = onnx.load(path)
    model.functions.append(function)
    model.graph.sparse_initializer.add(values=external("s", "sub/values.bin"), indices=indices, dims=[2])
    onnx.save(model, path)
    source = make_build_source(path, None, None)
    shutil.rmtree(tmp_path / "from")
    session = onnxruntime.InferenceSession(str(source.artifact.onnx_path), providers=["CPUExecutionProvider"])
    answer = session.run(None, {"x": np.zeros(2, np.float32)})[0]
    np.testing.assert_array_equal(answer, [5, 12])


@pytest.mark.parametrize("where", ["weight", "function", "sparse"])
@pytest.mark.parametrize("location", ["../secret.bin", "{absolute}", "a/../../secret.bin", "gone.bin"])
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, where: str, location: str) -> None:
    """No file outside the model's folder is read, however the model names it."""
    (tmp_path / "secret.bin").write_bytes(bytes(256))
    (tmp_path / "a").mkdir()
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    path = onnx_models.matmul(folder, 8)
    model = onnx.load(path)
    tensor = onnx.TensorProto(name="z", data_type=onnx_models.FLOAT, dims=[64], data_location=1)
    tensor.external_data.add(key="location", value=location.format(absolute=tmp_path / "secret.bin"))
    if where == "weight":
        model.graph.initializer.append(tensor)
    elif where == "function":
        node = helper.make_node("Constant", [], ["z"], value=tensor)
        model.functions.append(helper.make_function("my.domain", "F", [], ["z"], [node], model.opset_import[:1]))
    else:
        model.graph.sparse_initializer.add(values=tensor, dims=[99])
    path.write_bytes(model.SerializeToString())
    error = refusal(path, {"batch": (1, 2, 4)})
    assert isinstance(error, ArtifactError)
    assert str(error).startswith(f"'{path}': got ")


def test_precision_of_a_foreign_file_follows_from_its_dtypes(tmp_path: Path) -> None:
    """A half file says so in the artifact that keeps it, and takes no word for float32 arithmetic."""
    path = onnx_models.relu(tmp_path, dtype=onnx.TensorProto.FLOAT16)
    source = make_build_source(path, {"batch": (1, 2, 4)}, None)
    assert (source.precision, source.artifact.precision) == ("fp16", "fp16")
    assert str(refusal(path, {"batch": (1, 2, 4)}, "tf32")) == (
        "precision: got 'tf32'; expected 'fp16', which the graph's dtypes make it; leave precision "
        "out, or export the model again"
    )
    assert make_build_source(onnx_models.relu(tmp_path), {"batch": (1, 2, 4)}, "tf32").artifact.precision == "tf32"


@pytest.mark.parametrize("external", [False, True])
def test_disk_without_room_for_the_copy_is_an_artifact_error(tmp_path: Path, external: bool) -> None:
    """The error names the place that is full, and not only what Python says of it."""
    path = onnx_models.matmul(tmp_path)
    if external:
        onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond
    try:
        error = refusal(path, {"batch": (1, 2, 4)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "got 'File too large (" in str(error)
    assert str(error).endswith("see whether this process may use it and the disk has room")

"""External data of any name travel with a model or are refused, and a manifest fits the ONNX graph beside it."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.artifact.test_artifact_mutations import at, dotted, walk
from tests.support.sample_artifacts import SIGNATURE, fresh_engine, fresh_onnx, onnx_bytes, sealed
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.artifact.scratch_folder import scratch_folder
from torch2engine.core.errors import ArtifactError
from torch2engine.core.select_profile import select_profile
from torch2engine.core.spec import Parameter, Profile, Signature, TensorSpec, Tree
from torch2engine.onnx_graph.ort_session import OrtSession

X = np.arange(3, dtype=np.float32)


def add_weights(folder: Path, places: dict[str, str]) -> Path:
    """y = x + 1 + 2 + ..., each weight in a data file of its own: {weight: location}."""
    nodes: list[Any] = []
    weights: list[Any] = []
    before = "x"
    for number, name in enumerate(places):
        weights.append(numpy_helper.from_array(np.full(3, number + 1, np.float32), name))
        nodes.append(helper.make_node("Add", [before, name], [f"sum_{name}"]))
        before = f"sum_{name}"
    nodes.append(helper.make_node("Identity", [before], ["y"]))
    values = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])] for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "graph", *values, weights), ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    for tensor, location in zip(model.graph.initializer, places.values(), strict=True):
        place = folder / location
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def artifact(folder: Path) -> OnnxArtifact:
    """The artifact of a model that `add_weights` made."""
    specs = [TensorSpec(name, "float32", (3,)) for name in ("x", "y")]
    parameters = (Parameter("x", "positional", Tree("tensor")),)
    signature = Signature((specs[0],), (specs[1],), (), parameters)
    return OnnxArtifact(folder, signature=signature, profiles=[Profile({})], precision="fp32")


@pytest.mark.parametrize(
    "places",
    [{"w": "model.onnx_data"}, {"w": "weights.bin", "v": "onnx__Add_7"}, {"w": "model.data", "v": "model.data-1"}],
)
def test_data_files_of_any_name_travel_with_the_model(tmp_path: Path, places: dict[str, str]) -> None:
    """Saved, copied, pickled or given as bytes, a model keeps the weights that lie in files of any name."""
    fresh = artifact(add_weights(tmp_path / "fresh", places))
    names = tuple(sorted(["model.onnx", *places.values()]))
    path = fresh.save(tmp_path / "model.t2e")
    shutil.rmtree(tmp_path / "fresh")
    loaded = OnnxArtifact.load(path)
    given = {name: loaded.read(name) for name in loaded.files}
    for one in (
        loaded,
        loaded.linked(),
        pickle.loads(pickle.dumps(loaded)),
        OnnxArtifact.from_manifest(loaded.manifest(), given),
    ):
        assert one.files == names
        answer = OrtSession(one.checked_onnx_path)({"x": X})["y"]
        np.testing.assert_array_equal(answer, X + sum(range(1, len(places) + 1)))
    (path / next(iter(places.values()))).write_bytes(bytes(12))
    with pytest.raises(ArtifactError, match="other bytes in"):
        load_artifact(path)


def test_an_engine_keeps_its_models_data_files_and_drops_them_together(tmp_path: Path) -> None:
    """They lie beside the plan, go with the model, and are no part of a pickle that only runs."""
    engine = fresh_engine(tmp_path)
    loaded = load_artifact(engine.save(tmp_path / "engine.t2e"))
    assert loaded.files == engine.files == ("model.onnx", "model.onnx.data", "model.plan", "runtime.cache")
    assert engine.without_onnx().files == ("model.plan", "runtime.cache")
    assert engine.exported().files == ("model.onnx", "model.onnx.data")
    assert pickle.loads(pickle.dumps(engine)).files == ("model.plan", "runtime.cache")
    assert engine.has_model_of(engine.without_onnx())
    assert not engine.without_onnx().has_model_of(engine)


@pytest.mark.parametrize(
    "location",
    ["sub/weights.bin", "../weights.bin", "a/../../weights.bin", "model.onnx", "manifest.json", "runtime.cache", ".x"],
)
def test_data_files_that_a_folder_cant_hold_are_refused(tmp_path: Path, location: str) -> None:
    """Files elsewhere, and files with a name that the artifact needs itself; the cure that the error names works."""
    folder = add_weights(tmp_path / "folder", {"w": "weights.bin"})
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    whole = onnx.load(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError) as caught:
        artifact(folder)
    assert caught.value.got == f"external data in '{location}'"
    assert caught.value.path == str(folder / "model.onnx")
    assert caught.value.fix == (
        "write the model anew, e.g. onnx.save_model(onnx.load(path), path, save_as_external_data=True, "
        "location='model.onnx.data')"
    )
    onnx.save_model(
        whole, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    assert artifact(folder).files == ("model.onnx", "model.onnx.data")


def test_an_absolute_place_is_refused(tmp_path: Path) -> None:
    """Whatever lies there is not the artifact's own."""
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(data_file="/etc/passwd"))
    with pytest.raises(ArtifactError, match="got external data in '/etc/passwd'"):
        artifact(tmp_path)


def test_data_files_that_are_missing_or_too_short_are_refused(tmp_path: Path) -> None:
    """A model whose weights were left behind, or cut off, is no artifact."""
    folder = add_weights(tmp_path / "fresh", {"w": "w.bin"})
    (folder / "w.bin").unlink()
    with pytest.raises(ArtifactError) as caught:
        artifact(folder)
    assert (caught.value.got, caught.value.path) == ("no 'w.bin'", str(folder))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data.add(key="length", value="12")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(bytes(11))
    path = artifact(folder).save(tmp_path / "model.t2e")
    with pytest.raises(ArtifactError) as caught:
        load_artifact(path)
    assert (caught.value.got, caught.value.allowed) == ("11 bytes in 'w.bin'", "12 or more, as 'model.onnx' says")


# The manifest and the graph


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    """Neither a text nor half a model is an artifact."""
    for data in (b"not an ONNX file", onnx_bytes()[:-1]):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(ArtifactError) as caught:
            artifact(tmp_path)
        assert caught.value.got.startswith("a 'model.onnx' that can't be read (")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A manifest and files, of an engine and of an ONNX model."""
    root = tmp_path_factory.mktemp("saved")
    made = {"onnx": fresh_onnx(root / "a"), "engine": fresh_engine(root / "b")}
    return {
        kind: (type(one), one.manifest(), {name: one.read(name) for name in one.files}) for kind, one in made.items()
    }


def _rename(manifest: dict[str, Any], old: str, new: str) -> None:
    for side in ("inputs", "outputs"):
        for tensor in manifest["signature"][side]:
            tensor["name"] = new if tensor["name"] == old else tensor["name"]


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "input name": (
        lambda manifest: _rename(manifest, "x", "z"),
        "a 'model.onnx' with the inputs 'x', 'states.0'",
        "the inputs 'z', 'states.0', as the manifest says",
    ),
    "output name": (
        lambda manifest: _rename(manifest, "logits", "z"),
        "a 'model.onnx' with the outputs 'logits'",
        "the outputs 'z', as the manifest says",
    ),
    "order": (
        lambda manifest: manifest["signature"]["inputs"].reverse(),
        "a 'model.onnx' with the inputs 'x', 'states.0'",
        "the inputs 'states.0', 'x', as the manifest says",
    ),
    "dtype": (
        lambda manifest: manifest["signature"]["inputs"][1].update(dtype="int32"),
        "a 'model.onnx' whose input 'states.0' has dtype int64",
        "int32, as the manifest says",
    ),
    "rank": (
        lambda manifest: manifest["signature"]["inputs"][0].update(shape=["batch", 3, 1]),
        "a 'model.onnx' whose input 'x' has shape [?, 3]",
        "[batch, 3, 1], as the manifest says",
    ),
    "size": (
        lambda manifest: manifest["signature"]["outputs"][0].update(shape=["2*batch", 11]),
        "a 'model.onnx' whose output 'logits' has shape [?, 10]",
        "[2*batch, 11], as the manifest says",
    ),
    "axis": (
        lambda manifest: manifest["signature"]["inputs"][0].update(shape=["batch", "batch"]),
        "a 'model.onnx' whose input 'x' has shape [?, 3]",
        "[batch, batch], as the manifest says",
    ),
    "fewer parameters": (
        lambda manifest: manifest["signature"]["parameters"].pop(1),
        "1 tensors in manifest field signature.parameters",
        "one for each of 2 inputs",
    ),
    "a result of none": (
        lambda manifest: manifest["signature"].update(output={"kind": "constant", "value": None}),
        "0 tensors in manifest field signature.output",
        "one for each of 1 outputs that the model does not write",
    ),
    "a result of two": (
        lambda manifest: manifest["signature"].update(
            output={"kind": "list", "keys": [0, 1], "children": [{"kind": "tensor"}] * 2}
        ),
        "2 tensors in manifest field signature.output",
        "one for each of 1 outputs that the model does not write",
    ),
    "a profile below the axis": (
        lambda manifest: manifest["signature"]["axes"][0].update(min=2),
        "manifest field profiles[0].batch = [1, 4, 8]",
        "sizes from 2 to 8, as the axis has them",
    ),
    "a profile above the axis": (
        lambda manifest: manifest["profiles"][1].update(batch=[1, 1, 9]),
        "manifest field profiles[1].batch = [1, 1, 9]",
        "sizes from 1 to 8, as the axis has them",
    ),
    "a profile between the multiples": (
        lambda manifest: manifest["signature"]["axes"][0].update(min=4, multiple_of=4),
        "manifest field profiles[0].batch = [1, 4, 8]",
        "sizes from 4 to 8, multiples of 4, as the axis has them",
    ),
}


@pytest.mark.parametrize("kind", ["onnx", "engine"])
@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_manifest_that_contradicts_its_graph_is_refused_at_load(saved: dict[str, Any], what: str, kind: str) -> None:
    """Names, counts, dtypes, ranks and sizes: the error says what the graph has and what the manifest says."""
    change, got, allowed = CONTRADICTIONS[what]
    made_by, manifest, files = saved[kind]
    manifest = copy.deepcopy(manifest)
    change(manifest)
    with pytest.raises(ArtifactError) as caught:
        made_by.from_manifest(json.loads(sealed(manifest)), files)
    assert (caught.value.got, caught.value.allowed) == (got, allowed)
    assert caught.value.fix == "save it again or restore it from a copy"


# What a call can't contradict: defaults, names of classes and of arguments, and where it was made.
FREE = {
    "signature.axes[].max",  # the profiles decide what is answered
    "signature.axes[].opt",
    "signature.inputs[].shape[]",  # to a size that the graph leaves open
    "signature.outputs[].shape",
    "signature.outputs[].shape[]",
    "signature.parameters",  # the graph does not know which parameter holds which input
    "signature.parameters[].default",
    "signature.parameters[].kind",
    "signature.parameters[].name",
    "signature.parameters[].optional",
    "signature.parameters[].tree.children",
    "signature.parameters[].tree.children[].value",
    "signature.parameters[].tree.keys",
    "signature.parameters[].tree.keys[]",
    "signature.parameters[].tree.kind",
    "signature.output.keys[]",
    "signature.output.kind",
    "signature.output.type",
    "profiles",
    "profiles[].batch[]",
    "precision",
    "versions",
    "hardware",
}


def _others(value: Any, texts: Sequence[str]) -> list[Any]:
    """Values of the same type that stand elsewhere, or nearly the same value."""
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, int):
        return [value - 1, value + 1, 0, 2**40]
    if isinstance(value, str):
        return [text for text in texts if text != value]
    return [value[1:], value[:-1], value[::-1], value + value[:1]] if isinstance(value, list) else [{}]


def test_every_changed_field_is_refused_or_cant_mislead_a_call(saved: dict[str, Any]) -> None:
    """Each field takes every other value that stands in the manifest: an ArtifactError, or a usable signature."""
    made_by, manifest, files = saved["engine"]  # which has every field
    places = [where for where in walk(manifest) if where[0] not in ("digest", "files", "format_version")]
    texts = sorted({at(manifest, where) for where in places if isinstance(at(manifest, where), str)})
    free: set[str] = set()
    refused = 0
    for where in places:
        original = at(manifest, where)
        for other in _others(original, texts):
            if other == original:
                continue
            changed = copy.deepcopy(manifest)
            at(changed, where[:-1])[where[-1]] = other
            try:
                loaded = made_by.from_manifest(json.loads(sealed(changed)), files)
            except ArtifactError:
                refused += 1
                continue
            free.add(dotted(where))
            signature = loaded.signature
            sizes = loaded.profiles[0].sizes(0)
            assert signature.resolve([spec.sized(sizes) for spec in signature.inputs]) == sizes
            assert loaded.profiles[select_profile(signature, loaded.profiles, sizes)].contains(sizes)
            assert signature.output.leaves() + len(signature.effects) == len(signature.outputs)
    assert refused > 400
    assert {place for place in free if not place.startswith(("versions", "hardware"))} <= FREE


def test_sizes_that_the_graph_leaves_open_may_be_anything(tmp_path: Path) -> None:
    """A graph need not know the sizes or even the rank of its outputs."""
    model = onnx.load_from_string(onnx_bytes())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    folder = fresh_onnx(tmp_path / "fresh").folder
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert load_artifact(fresh_onnx_of(folder).save(tmp_path / "model.t2e")).signature == SIGNATURE


def fresh_onnx_of(folder: Path) -> OnnxArtifact:
    """The sample's facts for the files of a folder."""
    with scratch_folder() as elsewhere:
        sample = fresh_onnx(elsewhere / "sample")
        return sample.replace(folder=folder)

"""Saved models in parts that somebody else has written: they are data, and nothing in them runs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2engine as t2e
from torch2engine.artifact.saved_folder import CUT, PROGRAM
from torch2engine.core.json_rules import SchemaError
from torch2engine.fallback.program_check import checked_archive
from torch2engine.serving.array_runner import find_artifact

Change = Callable[[dict[str, bytes]], None]

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Finder(nn.Module):
    """An engine's work around an operator that no engine takes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [N, 4] → those [M, 2] whose score is positive."""
        scores = self.body(x).relu() * 2 - 0.1
        found = scores[scores[:, 0] > 0]
        return self.head(found).sigmoid() + 1


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Finder().eval()


@pytest.fixture(scope="module")
def artifact(model: nn.Module) -> t2e.PartsArtifact:
    """A deployed model in parts, as it is saved."""
    module = t2e.deploy(model, torch.rand(6, 4), runtime="onnxruntime", fallback=True)
    assert isinstance(module, t2e.PartsModule)
    manifest = module.get_extra_state()
    files = {name: bytes(data.numpy()) for name, data in manifest["files"].items()}
    return t2e.PartsArtifact.from_manifest(json.loads(manifest["manifest"]), files)


def test_sizes_without_an_engine_are_answered_by_pytorch(artifact: t2e.PartsArtifact, model: nn.Module) -> None:
    """A boolean index that finds nothing leaves a part without rows, which no engine takes; its one result is whole."""
    module = t2e.PartsModule(artifact)
    none = torch.full((6, 4), 1e3)
    with torch.no_grad():
        assert len(model(none)) == 0
        for x in (none, -none):
            torch.testing.assert_close(module(x), model(x))


def changed(program: bytes, change: Change) -> bytes:
    """An archive with other members."""
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return written.getvalue()


def in_json(member: str, change: Callable[[Any], object]) -> Change:
    """A change of one JSON member."""

    def apply(members: dict[str, bytes]) -> None:
        value = json.loads(members[member])
        change(value)
        members[member] = json.dumps(value).encode()

    return apply


def set_size(text: str) -> Change:
    """Another text of every symbolic size."""

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = text
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    return in_json(MODEL, visit)


def set_first_target(text: str) -> Change:
    """Another operator in the first node."""
    return in_json(MODEL, lambda model: model["graph_module"]["graph"]["nodes"][0].update(target=text))


def set_pickled(config: Any) -> None:
    """The first weight is a pickle."""
    next(iter(config["config"].values()))["use_pickle"] = True


def set_structure(model: Any) -> None:
    """The call takes a container that names a module to import."""
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "collections.defaultdict")


FOREIGN = {
    "code as a size": (set_size("__import__('os').abort()"), "size '__import__"),
    "an attribute as a size": (set_size("Symbol('u0').__class__"), "size 'Symbol"),
    "a text as a size": (set_size("Symbol('u0', 'a + b')"), "size 'Symbol"),
    "bytes as a size": (set_size("Symbol(b'u0')"), "size 'Symbol"),
    "a large power as a size": (set_size("9**9**9**9"), "size '9"),
    "an operator that reads files": (set_first_target("torch.ops.aten.from_file.default"), "operator 'torch.ops.aten"),
    "a function that is no operator": (set_first_target("torch.load"), r"operator 'torch\.load'"),
    "a private namespace": (set_first_target("torch.ops.__class__.mro.x"), r"operator 'torch\.ops\.__class__"),
    "a pickled weight": (in_json(WEIGHTS, set_pickled), "a pickled tensor"),
    "another container": (in_json(MODEL, set_structure), "other containers"),
    "an object": (lambda members: members.update({"data/constants/custom_obj_0": b""}), "custom_obj_0'"),
    "a library": (lambda members: members.update({"data/aotinductor/model/x.so": b""}), "x.so'"),
    "no model": (lambda members: members.pop(MODEL), f"without a valid '{MODEL}'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_program_that_is_not_plain_data_is_refused(artifact: t2e.PartsArtifact, name: str) -> None:
    """What torch.export.load would run, import or unpickle never reaches it."""
    change, got = FOREIGN[name]
    with pytest.raises(SchemaError, match=got):
        checked_archive(changed(artifact.read(PROGRAM), change))


def test_samples_and_guards_are_left_out_of_a_program(artifact: t2e.PartsArtifact) -> None:
    """A saved model does not take the user's sample along, and a foreign one brings no code as a guard."""

    def add(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = b"a pickle"
        in_json(MODEL, lambda model: model.update(guards_code=["L['x'].evil()"]))(members)

    with zipfile.ZipFile(io.BytesIO(checked_archive(changed(artifact.read(PROGRAM), add)))) as archive:
        assert archive.read("archive/data/sample_inputs/model.pt") == b""
        assert json.loads(archive.read(f"archive/{MODEL}"))["guards_code"] == []
    assert checked_archive(artifact.read(PROGRAM)) == artifact.read(PROGRAM)


def load(artifact: t2e.PartsArtifact, folder: Path, file: str, data: bytes) -> None:
    """Load the artifact with other bytes in one file, and hashes that fit them."""
    t2e.load(artifact.with_changes({file: data}, {}).save(folder / "model.t2e"))


def test_foreign_program_in_a_saved_model_is_an_artifact_error(artifact: t2e.PartsArtifact, tmp_path: Path) -> None:
    """Hashes that fit don't make code of a stranger run."""
    program = changed(artifact.read(PROGRAM), set_size("__import__('os').abort()"))
    with pytest.raises(t2e.ArtifactError, match=r"got a program with size '__import__.*load only what you trust"):
        load(artifact, tmp_path, PROGRAM, program)
    with pytest.raises(t2e.ArtifactError, match="got a program that is no archive"):
        load(artifact, tmp_path, PROGRAM, b"no archive")
    unknown = changed(artifact.read(PROGRAM), set_first_target("torch.ops.nobody.knows.default"))
    with pytest.raises(t2e.ArtifactError, match="import the module that registers the operator"):
        load(artifact, tmp_path, PROGRAM, unknown)


def test_cut_that_does_not_fit_is_an_artifact_error(artifact: t2e.PartsArtifact, tmp_path: Path) -> None:
    """A cut of another program, or one whose results come in another order, never answers."""
    cut = json.loads(artifact.read(CUT))
    for change, got in (
        (lambda part: part.update(nodes=["nobody"]), "does not fit the program"),
        (lambda part: part.update(results=["other"]), "does not fit the program"),
        (lambda part: part.update(engines=[{"name": "part-9", "sizes": [], "is_range": True}]), "no 'part-9.manifest"),
        (lambda part: part.pop("nodes"), r"a damaged cut\.json \(a cut\.json without parts\[0\]\.nodes\)"),
    ):
        damaged = json.loads(json.dumps(cut))
        change(damaged["parts"][0])
        with pytest.raises(t2e.ArtifactError, match=got):
            load(artifact, tmp_path, CUT, json.dumps(damaged).encode())


def test_model_in_parts_is_refused_where_there_is_no_pytorch(artifact: t2e.PartsArtifact, tmp_path: Path) -> None:
    """Who serves arrays without PyTorch is told what serves such a model."""
    folder = artifact.save(tmp_path / "model.t2e")
    for serve in (t2e.Processor, find_artifact):
        with pytest.raises(t2e.ArtifactError, match=r"serve it by torch2engine\.load") as caught:
            serve(str(folder))
        assert caught.value.got == "a model in parts, some of which PyTorch runs"

"""Whatever happens to a saved artifact's bytes, loading it is an ArtifactError: no other error, and no silence."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_artifacts import SIGNATURE, fresh_engine, fresh_onnx, sealed
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.errors import ArtifactError

FILES = ["manifest.json", "model.onnx", "model.onnx.data", "model.plan", "runtime.cache"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three saved artifacts that no test may change: two engines and an ONNX model."""
    root = tmp_path_factory.mktemp("saved")
    return {
        "engine": fresh_engine(root / "a", "one model").save(root / "engine.t2e"),
        "other": fresh_engine(root / "b", "another model", plan=b"another plan").save(root / "other.t2e"),
        "onnx": fresh_onnx(root / "c", "one model").save(root / "onnx.t2e"),
    }


@pytest.fixture
def path(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the engine for a test to spoil."""
    return Path(shutil.copytree(saved["engine"], tmp_path / "model.t2e"))


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and seal it again, as a forger would."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    change(manifest)
    (path / "manifest.json").write_bytes(sealed(manifest))


def refusal(path: Path) -> str:
    """The text with which load refuses `path`, to run or not, without the test's own folder."""
    texts: set[str] = set()
    for to_run in (False, True):
        with pytest.raises(ArtifactError) as error:
            load_artifact(path, to_run=to_run)
        assert error.value.path.startswith(str(path))
        texts.add(str(error.value).replace(str(path), "DIR").removeprefix("artifact 'DIR': "))
    (text,) = texts
    return text


# Each takes the folder, another artifact's folder and a random generator, and spoils the folder.


def truncate(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    os.truncate(file, chance.randrange(file.stat().st_size))


def flip_a_bit(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def flip_a_bit_of_the_manifest(path: Path, other: Path, chance: random.Random) -> None:
    data = bytearray((path / "manifest.json").read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    (path / "manifest.json").write_bytes(data)


def swap_two_files(path: Path, other: Path, chance: random.Random) -> None:
    first, second = (path / name for name in chance.sample(FILES, 2))
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def take_a_file_from_another_artifact(path: Path, other: Path, chance: random.Random) -> None:
    name = chance.choice(FILES)
    shutil.copyfile(other / name, path / name)


def swap_the_manifests(path: Path, other: Path, chance: random.Random) -> None:
    shutil.copyfile(other / "manifest.json", path / "manifest.json")


def foreign_format(path: Path, other: Path, chance: random.Random) -> None:
    value = chance.choice(["tensorflow", "torch2engine ", "", None, 1, ["torch2engine"], {}])
    edited(path, lambda manifest: manifest.update(format=value))


def foreign_version(path: Path, other: Path, chance: random.Random) -> None:
    value = chance.choice([2, 10**6, 0, -1, 10**30, True, 1.0, "1", None, [1], {}])
    edited(path, lambda manifest: manifest.update(format_version=value))


def delete_a_file(path: Path, other: Path, chance: random.Random) -> None:
    (path / chance.choice(FILES)).unlink()


def append_bytes(path: Path, other: Path, chance: random.Random) -> None:
    with (path / chance.choice(FILES)).open("ab") as file:
        file.write(chance.choice([b"\0", b"\n", b" ", b"{}", chance.randbytes(100)]))


def empty_a_file(path: Path, other: Path, chance: random.Random) -> None:
    os.truncate(path / chance.choice(FILES), 0)


def folder_for_a_file(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    file.unlink()
    file.mkdir()


def pipe_for_a_file(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    file.unlink()
    os.mkfifo(file)


def link_out_of_the_folder(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    file.rename(path.parent / "outside")
    file.symlink_to("../outside")


def link_to_itself(path: Path, other: Path, chance: random.Random) -> None:
    file = path / chance.choice(FILES)
    file.unlink()
    file.symlink_to(file)


def nest_deeply(path: Path, other: Path, chance: random.Random) -> None:
    opening, closing = chance.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    depth = chance.choice([900, 10**4, 10**5, 10**6])
    text = opening * depth + "1" + closing * depth
    if chance.random() < 0.7:
        text = f'{{"format": "torch2engine", "versions": {text}}}'
    (path / "manifest.json").write_text(text)


def numbers_that_are_no_json(path: Path, other: Path, chance: random.Random) -> None:
    text = (path / "manifest.json").read_text()
    number = chance.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "1.0", "0x1", "01", "-0"])
    (path / "manifest.json").write_text(text.replace('"format_version": 1', f'"format_version": {number}'))


def repeat_a_key(path: Path, other: Path, chance: random.Random) -> None:
    text = (path / "manifest.json").read_text()
    key = chance.choice(["format", "kind", "files", "digest", "precision"])
    (path / "manifest.json").write_text(text.replace("{\n", f'{{\n "{key}": {chance.choice(["1", "{}"])},\n', 1))


def write_it_otherwise(path: Path, other: Path, chance: random.Random) -> None:
    data = (path / "manifest.json").read_bytes()
    manifest = json.loads(data)
    changed = chance.choice(
        [
            json.dumps(manifest).encode(),
            json.dumps(manifest, indent=1, sort_keys=True).encode(),
            json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n",
            data.replace(b"\n", b"\r\n"),
            b"\xef\xbb\xbf" + data,
            data.decode().encode("utf-16"),
            data.replace(b"float32", b"\\u0066loat32"),
        ]
    )
    (path / "manifest.json").write_bytes(changed)


def name_a_file_outside(path: Path, other: Path, chance: random.Random) -> None:
    names = ["../outside", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "C:x", "a\0b", "ü", "manifest.json"]
    name = chance.choice([*names, "x" * 300])
    shutil.copyfile(path / "model.onnx", path.parent / "outside")
    edited(path, lambda manifest: manifest["files"].update({name: manifest["files"].pop("model.onnx")}))


MUTATIONS = [
    truncate,
    flip_a_bit,
    flip_a_bit_of_the_manifest,
    swap_two_files,
    take_a_file_from_another_artifact,
    swap_the_manifests,
    foreign_format,
    foreign_version,
    delete_a_file,
    append_bytes,
    empty_a_file,
    folder_for_a_file,
    pipe_for_a_file,
    link_out_of_the_folder,
    link_to_itself,
    nest_deeply,
    numbers_that_are_no_json,
    repeat_a_key,
    write_it_otherwise,
    name_a_file_outside,
]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutated_artifact_is_refused(
    path: Path, saved: dict[str, Path], mutate: Callable[[Path, Path, random.Random], None], seed: int
) -> None:
    """Two hundred spoiled artifacts: every one is an ArtifactError that names the path, none is loaded."""
    load_artifact(path)
    mutate(path, saved["other"], random.Random(f"{mutate.__name__} {seed}"))
    refusal(path)


def test_untouched_artifacts_load_and_seal_alike(saved: dict[str, Path]) -> None:
    """The mutations start from whole artifacts, and the tests' own seal is the package's."""
    for folder in saved.values():
        data = (folder / "manifest.json").read_bytes()
        assert load_artifact(folder).manifest() == json.loads(data)
        assert sealed(json.loads(data)) == data


# Every field with every wrong type

WRONG = [None, True, -1, 0, 1.5, "", "x", [], ["x"], [[]], {}, {"x": {}}, {"x": "y"}]


def scalar(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def dimension(value: Any) -> bool:
    return value == "x" or (type(value) is int and value >= 0)


# The fields that take values of more than one type.
TAKES: dict[str, Callable[[Any], bool]] = {
    "hardware.gpu": lambda value: value is None,
    "hardware.driver": lambda value: value is None,
    "hardware.compute_capability": lambda value: value is None,
    "signature.parameters[].default": scalar,
    "signature.parameters[].tree.children[].value": scalar,
    "signature.parameters[].tree.keys[]": lambda value: isinstance(value, (str, int)),
    "signature.output.keys[]": lambda value: isinstance(value, (str, int)),
    "signature.outputs[].shape[]": dimension,
    "signature.inputs[].shape[]": lambda value: dimension(value) and value != "x",  # there is no axis x
}


def walk(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    if where:
        yield where
    if isinstance(value, dict):
        for key in value:
            yield from walk(value[key], (*where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, (*where, index))


def at(document: Any, where: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in where:
        document = document[key]
    return document


def dotted(where: tuple[Any, ...]) -> str:
    """A path without its indices, e.g. signature.inputs[].shape[]."""
    return "".join("[]" if isinstance(key, int) else f".{key}" for key in where).removeprefix(".")


@pytest.mark.parametrize("kind", ["engine", "onnx"])
def test_every_field_refuses_every_wrong_type(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """With a seal that fits, a value of a wrong type is still refused wherever it stands, and a right one is read."""
    path = Path(shutil.copytree(saved[kind], tmp_path / "model.t2e"))
    original = json.loads((path / "manifest.json").read_bytes())
    read: set[str] = set()
    refused = 0
    for where in list(walk(original)):
        for wrong in WRONG:
            if where == ("digest",) or type(at(original, where)) is type(wrong):
                continue
            manifest = copy.deepcopy(original)
            at(manifest, where[:-1])[where[-1]] = wrong
            (path / "manifest.json").write_bytes(sealed(manifest))
            if TAKES.get(dotted(where), lambda value: False)(wrong):
                load_artifact(path)
                read.add(dotted(where))
            else:
                with pytest.raises(ArtifactError):
                    load_artifact(path)
                refused += 1
    assert refused > 800
    assert read == {field for field in TAKES if kind == "engine" or not field.startswith("hardware")}


@pytest.mark.parametrize("field", ["inputs", "outputs", "axes", "parameters"])
def test_every_list_of_the_signature_is_a_list_of_objects(path: Path, field: str) -> None:
    """An array of anything else is refused too."""
    for wrong in ([None], [1], ["x"], [[]], [{}]):
        edited(path, lambda manifest, wrong=wrong: manifest["signature"].update({field: wrong}))
        assert f"signature.{field}[0]" in refusal(path)


@pytest.mark.parametrize("kind", ["engine", "onnx"])
def test_every_key_is_needed_and_no_other_is_taken(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """A manifest without one of its keys, or with one more, is refused."""
    path = Path(shutil.copytree(saved[kind], tmp_path / "model.t2e"))
    original = json.loads((path / "manifest.json").read_bytes())
    places = [(), *(where for where in walk(original) if isinstance(at(original, where), dict))]
    for where in places:
        if where and where[-1] in ("versions", "files"):
            continue
        for key in at(original, where):
            if key == "digest" or (key == "type" and "output" in where):
                continue
            manifest = copy.deepcopy(original)
            del at(manifest, where)[key]
            (path / "manifest.json").write_bytes(sealed(manifest))
            refusal(path)
        manifest = copy.deepcopy(original)
        at(manifest, where)["surplus"] = 1
        (path / "manifest.json").write_bytes(sealed(manifest))
        refusal(path)


# The words


def _set(*where: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = where

    def change(manifest: dict[str, Any]) -> None:
        at(manifest, tuple(path))[last] = value

    return change


USABLE = "expected a place that can be read and written; see whether this process may use it and the disk has room"
AGAIN = "save it again or restore it from a copy"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            _set("format_version", 2),
            (
                "got format version 2; expected at most 1, which this torch2engine reads; it was made by "
                "a newer torch2engine; upgrade"
            ),
        ),
        (
            _set("format_version", "1"),
            f"got manifest field format_version = '1'; expected an int of at least 1; {AGAIN}",
        ),
        (
            _set("kind", "zip"),
            f"got manifest field kind = 'zip'; expected one of 'onnx', 'engine', 'parts', 'bundle'; {AGAIN}",
        ),
        (
            _set("signature", "inputs", 0, "dtype", "float33"),
            "got manifest field signature.inputs[0].dtype = 'float33'; expected a dtype as PyTorch "
            f"spells it, e.g. 'float32'; {AGAIN}",
        ),
        (
            _set("signature", "inputs", 0, "shape", 0, "rows"),
            "got its manifest's inputs use the axes ['batch', 'rows']; expected they must be those "
            f"in signature.axes: ['batch']; {AGAIN}",
        ),
        (
            _set("signature", "outputs", 0, "name", "x"),
            f"got its manifest has 2 tensors named 'x'; expected names are unique; {AGAIN}",
        ),
        (
            _set("signature", "axes", 0, "max", 2),
            f"got manifest field signature.axes[0] = [1, 4, 2]; expected min <= opt <= max; {AGAIN}",
        ),
        (
            _set("signature", "axes", 0, "name", "2batch"),
            (
                "got its manifest's inputs use the axes ['batch']; expected they must be those in "
                f"signature.axes: ['2batch']; {AGAIN}"
            ),
        ),
        (
            _set("signature", "axes", 0, "multiple_of", 3),
            f"got manifest field signature.axes[0] = [1, 4, 8]; expected multiples of 3; {AGAIN}",
        ),
        (
            _set("signature", "output", "keys", [0, 1]),
            f"got manifest field signature.output.keys = [0, 1]; expected one key for each of 1 children; {AGAIN}",
        ),
        (
            _set("signature", "parameters", 2, "default", {"float": "one"}),
            "got manifest field signature.parameters[2].default.float = 'one'; expected one of "
            f"'nan', 'inf', '-inf'; {AGAIN}",
        ),
        (_set("profiles", 1, {}), f"got a manifest without profiles[1].batch; {AGAIN}"),
        (
            _set("profiles", 0, "rows", [1, 1, 1]),
            f"got 'rows' in manifest field profiles[0]; expected only batch; {AGAIN}",
        ),
        (_set("surplus", 1), f"got 'surplus' in its manifest; expected only {{KEYS}}; {AGAIN}"),
        (
            _set("kind", "onnx"),
            'got "hardware" that does not fit the kind; expected "hardware" for an engine, none '
            f"for any other kind; {AGAIN}",
        ),
        (
            _set("hardware", "compute_capability", [9]),
            f"got manifest field hardware.compute_capability = [9]; expected [major, minor]; {AGAIN}",
        ),
        (
            _set("files", "../model", {}),
            f"got the file '../model' in its manifest; expected plain names inside the folder; {AGAIN}",
        ),
        (
            _set("files", "manifest.json", {"sha256": "0" * 64, "bytes": 1}),
            f"got the file 'manifest.json' in its manifest; expected plain names inside the folder; {AGAIN}",
        ),
        (
            _set("files", "model.plan", "sha256", "AB"),
            f"got manifest field files['model.plan'].sha256 = 'AB'; expected 64 lower-case hex digits; {AGAIN}",
        ),
        (_set("files", {}), f"got no 'model.plan'; expected every file that it needs; {AGAIN}"),
    ],
)
def test_forged_manifest_is_refused_by_name(path: Path, change: Callable[[dict[str, Any]], None], text: str) -> None:
    """The error names the field, its value and what it must be."""
    edited(path, change)
    keys = "format, format_version, files, digest, kind, signature, profiles, precision, versions, hardware"
    assert refusal(path) == text.replace("{KEYS}", keys)


def test_damaged_files_are_refused_by_name(path: Path) -> None:
    """The error names the file and what is wrong with it; the next load after a repair passes."""
    plan = path / "model.plan"
    whole = plan.read_bytes()
    texts: list[str] = []
    for data in (whole[:-1], whole + b"\0", b"A" + whole[1:]):
        plan.write_bytes(data)
        texts.append(refusal(path))
    plan.unlink()
    texts.append(refusal(path))
    plan.symlink_to("model.onnx")
    texts.append(refusal(path))
    plan.unlink()
    plan.mkdir()
    texts.append(refusal(path))
    plan.rmdir()
    plan.write_bytes(whole)
    load_artifact(path)
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"fp32", b"fp16"))
    texts.append(refusal(path))
    manifest.write_bytes(b'{"format": "torch2engine", "x": NaN}')
    texts.append(refusal(path))
    manifest.write_bytes(b'{"format": "torch2engine", "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}")
    texts.append(refusal(path))
    manifest.write_bytes(b" " * (16 * 2**20 + 1))
    texts.append(refusal(path))
    assert texts == [
        f"got 18 bytes in 'model.plan'; expected 19, as its manifest says; {AGAIN}",
        f"got 20 bytes in 'model.plan'; expected 19, as its manifest says; {AGAIN}",
        (
            "got other bytes in 'model.plan' than were saved; expected bytes whose SHA-256 is "
            f"c215b31bc1edc126…; {AGAIN}"
        ),
        f"got no 'model.plan'; expected every file of its manifest; {AGAIN}",
        "got a symbolic link 'model.plan'; expected regular files; copy the folder with its links "
        "followed, e.g. cp -rL",
        f"got 'not a regular file ('DIR/model.plan')'; {USABLE}",
        f"got a manifest that was changed after it was written; expected bytes that match its own digest; {AGAIN}",
        f"got a manifest that is not JSON in ASCII; {AGAIN}",
        (f"got a manifest that is not valid (nested too deeply); expected one that torch2engine wrote; {AGAIN}"),
        f"got 'larger than 16777216 bytes ('DIR/manifest.json')'; {USABLE}",
    ]


def test_damage_to_files_of_megabytes_is_named_in_order(tmp_path: Path) -> None:
    """Files that several threads check are each checked: a bit in any is found, and of two the first is named."""
    fresh = fresh_engine(tmp_path / "fresh")
    for name in ("model.plan", "runtime.cache", "model.onnx.data"):
        (fresh.folder / name).write_bytes(random.Random(name).randbytes(3 << 20))
    path = fresh.save(tmp_path / "model.t2e")
    load_artifact(path)
    chance = random.Random(0)
    damaged: list[str] = []
    for name in ("runtime.cache", "model.plan", "model.onnx.data", "model.onnx"):
        with (path / name).open("r+b") as file:
            place = chance.randrange(file.seek(0, os.SEEK_END))
            file.seek(place)
            value = file.read(1)[0]
            file.seek(place)
            file.write(bytes([value ^ 1 << chance.randrange(8)]))
        damaged.append(name)
        assert refusal(path).startswith(f"got other bytes in '{min(damaged)}' than were saved; ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: b"O" + data[1:], "got other bytes in 'runtime.cache' than were saved; expected {HASH}"),
        (lambda data: data[:-1], "got 12 bytes in 'runtime.cache'; expected 13, as its manifest says"),
        (lambda data: data + b"\0", "got 14 bytes in 'runtime.cache'; expected 13, as its manifest says"),
        (lambda data: b"", "got 0 bytes in 'runtime.cache'; expected 13, as its manifest says"),
        (lambda data: b"kernels of one model", "got 20 bytes in 'runtime.cache'; expected 13, as its manifest says"),
    ],
)
def test_changed_runtime_cache_is_refused(path: Path, change: Callable[[bytes], bytes], text: str) -> None:
    """Compiled kernels are code: other bytes than those saved last are refused, by load and by every later read."""
    EngineArtifact.load(path).with_runtime_cache(b"other kernels").save(path)
    loaded = EngineArtifact.load(path)
    file = path / "runtime.cache"
    file.write_bytes(change(file.read_bytes()))
    text = text.replace("{HASH}", "bytes whose SHA-256 is c4d77327946d40bf…")
    assert refusal(path) == f"{text}; {AGAIN}"
    for read in (loaded.read_runtime_cache, lambda: pickle.dumps(loaded), lambda: loaded.save(path.parent / "other")):
        with pytest.raises(ArtifactError) as error:
            read()
        assert str(error.value) == f"artifact '{path}': {text}; it was changed since it was loaded: load it again"
    assert not (path.parent / "other").exists()


def test_runtime_cache_that_is_gone_is_refused(path: Path) -> None:
    """A cache that the manifest lists must be there; one that it does not list is left alone and not used."""
    (path / "runtime.cache").unlink()
    assert refusal(path) == f"got no 'runtime.cache'; expected every file of its manifest; {AGAIN}"
    edited(path, lambda manifest: manifest["files"].pop("runtime.cache"))
    (path / "runtime.cache").write_bytes(b"somebody's kernels")
    assert EngineArtifact.load(path).read_runtime_cache() == b""


def test_mutations_through_the_classmethods_are_refused_too(path: Path) -> None:
    """EngineArtifact.load and OnnxArtifact.load check as load_artifact does."""
    (path / "model.plan").write_bytes(b"")
    for load in (EngineArtifact.load, OnnxArtifact.load):
        with pytest.raises(ArtifactError):
            load(path)


def test_sample_covers_every_kind_of_field() -> None:
    """The walk above sees axes, parameters, trees with keys, types, constants and infinities."""
    written = json.dumps(SIGNATURE.to_json())
    assert all(word in written for word in ("keys", "children", "type", "value", "Infinity", "2*batch"))

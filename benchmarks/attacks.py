"""Attacks on artifacts, the engine cache and scratch folders: how many are tried, and how many do harm.

    python -m benchmarks.attacks --count 6000 --seed 1

Enters: a seed. Leaves: `attacks.json`: attacks tried, and holes. Needs no GPU. Apart from the tests of single promises
because it tries what nobody thought of: damage, foreign files, links and kills at random.

A hole is a wrong answer, a lost or changed file of somebody else, foreign code that ran, or an error without a type.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._script import options, run
from benchmarks.evidence import Evidence
from tests.support.sample_artifacts import fresh_engine, sealed
from torch2engine.artifact import scratch_folder as scratch
from torch2engine.artifact.artifact import Artifact
from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.engine_cache import EngineCache, RequestRecord, hash_facts
from torch2engine.artifact.load_artifact import load_artifact
from torch2engine.core.containers import CONTAINERS, find_class
from torch2engine.core.errors import Torch2EngineError

__all__ = ["Arena", "Tally", "attack"]

COVERS = ("artifact", "core")
NAMES = ("manifest.json", "model.onnx", "model.onnx.data", "model.plan", "runtime.cache")
PLANTED = "planted_by_an_attack"
THEIRS = b"somebody else's"


@dataclass(frozen=True)
class Arena:
    """What is attacked.

    Args:
        root: a folder of this run alone.
        old, new: two engines that differ in every file.
    """

    root: Path
    old: EngineArtifact
    new: EngineArtifact

    @classmethod
    def make(cls, root: Path) -> Arena:
        """Make the engines, a folder of somebody else, and a module that nobody may import."""
        (root / "theirs").mkdir(parents=True)
        (root / "theirs" / "thesis.tex").write_bytes(THEIRS)
        (root / f"{PLANTED}.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
        return cls(root, fresh_engine(root / "a", "old", plan=b"old"), fresh_engine(root / "b", "new", plan=b"new"))

    def saved(self) -> Path:
        """The old engine, saved anew."""
        path = self.root / "model.t2e"
        shutil.rmtree(path, ignore_errors=True)
        return self.old.save(path)


@dataclass
class Tally:
    """What was tried, by the attack's name, and the holes that were found."""

    tried: Counter[str] = field(default_factory=Counter)
    holes: list[str] = field(default_factory=list)


class HoleError(Exception):
    """An attack did harm."""


def attack(root: Path, seed: int, count: int) -> Tally:
    """Try attacks one after another, each with random numbers of its own.

    Args:
        root: an empty folder.
        seed: of the first attack; the others count up, so that a hole can be tried again alone.
        count: how many.
    """
    arena = Arena.make(root)
    tally = Tally()
    sys.path.append(str(root))
    try:
        for number in range(seed, seed + count):
            one = ATTACKS[number % len(ATTACKS)]
            tally.tried[one.__name__] += 1
            try:
                one(arena, random.Random(number))
                require((root / "theirs" / "thesis.tex").read_bytes() == THEIRS, "a file of somebody else is changed")
                require(not (root / f"{PLANTED}.ran").exists(), "foreign code ran")
            except Exception:
                tally.holes.append(f"{one.__name__} {number}: {traceback.format_exc()}")
    finally:
        sys.path.remove(str(root))
    return tally


def require(holds: bool, what: str) -> None:
    """Call it a hole unless the promise holds."""
    if not holds:
        raise HoleError(what)


def spoil(path: Path, arena: Arena, chance: random.Random) -> None:
    """Damage or replace one file."""
    data = bytearray(path.read_bytes()) if path.is_file() else bytearray(b"x")
    index = chance.randrange(max(len(data), 1))
    kind = chance.randrange(8) if path.is_file() and not path.is_symlink() else 7
    if kind == 0:
        data[index] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    elif kind == 1:
        path.write_bytes(data[:index])
    elif kind == 2:
        path.write_bytes(bytes(data) + chance.randbytes(1 + chance.randrange(50)))
    elif kind == 3:
        path.write_bytes(chance.randbytes(len(data)))
    elif path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
        if kind == 4:
            path.mkdir()
        elif kind == 5:
            path.symlink_to(arena.root / "theirs" / "thesis.tex")
        elif kind == 6:
            os.mkfifo(path)


def outcome(action: Callable[[], Any]) -> Any:
    """What an action gives; None if it is refused with a typed error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return action()
        except Torch2EngineError as error:
            require(bool(error.subject and error.got), f"an error that says nothing: {error}")
            return None


def is_whole(found: Artifact | None, *wanted: EngineArtifact) -> bool:
    """Whether an artifact holds every byte of one of these, or is none at all."""
    if found is None:
        return True
    bytes_found = {name: found.read(name) for name in found.files}
    return any(bytes_found == {name: one.read(name) for name in one.files} for one in wanted)


def damaged_artifact(arena: Arena, chance: random.Random) -> None:
    """Loading gives all bytes as they were saved, or an error; saving over it loses nobody's file."""
    path = arena.saved()
    for _ in range(1 + chance.randrange(2)):
        spoil(path / chance.choice(NAMES), arena, chance)
    found = outcome(lambda: load_artifact(path, to_run=chance.random() < 0.5))
    require(is_whole(found, arena.old), "an artifact was loaded with other bytes")


def foreign_file_in_artifact(arena: Arena, chance: random.Random) -> None:
    """A file of somebody else stays, whatever its name and whatever the manifest says."""
    path = arena.saved()
    name = chance.choice([*NAMES[1:], "weights.json", "notes.txt"])
    (path / name).unlink(missing_ok=True)
    (path / name).write_bytes(THEIRS)
    if chance.random() < 0.5:
        manifest = json.loads((path / "manifest.json").read_bytes())
        manifest["files"][name] = {"sha256": "0" * 64, "bytes": len(THEIRS)}
        (path / "manifest.json").write_bytes(sealed(manifest))
    outcome(lambda: arena.new.save(path))
    require((path / name).read_bytes() == THEIRS, f"'{name}' of somebody else is gone")


def save_in_between(arena: Arena, chance: random.Random) -> None:
    """What was loaded stays what it was when another process saves."""
    path = arena.saved()
    found = load_artifact(path, to_run=chance.random() < 0.5)
    if chance.random() < 0.5:
        arena.new.save(path)
    else:
        spoil(path / chance.choice(NAMES), arena, chance)
    name = chance.choice(NAMES[1:])
    data = outcome(lambda: found.read(name))
    require(data is None or data == arena.old.read(name), "other bytes than those that were checked")
    private = outcome(found.in_private_folder)
    require(is_whole(private, arena.old), "a private copy of other bytes")


def killed_save(arena: Arena, chance: random.Random) -> None:
    """A save that dies at any system call leaves the old artifact or the new one."""
    path = arena.saved()
    step = 1 + chance.randrange(60)
    child = os.fork()
    if not child:
        _die_at(step)
        arena.new.save(path)
        os._exit(0)
    os.waitpid(child, 0)
    require(is_whole(load_artifact(path), arena.old, arena.new), "half an artifact")


def _die_at(step: int) -> None:
    """End this process before one of its next system calls that Python's audit shows."""
    seen = Counter[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.split(".")[0] in ("open", "os", "shutil", "ctypes"):
            seen["calls"] += 1
            if seen["calls"] == step:
                os._exit(9)

    sys.addaudithook(hook)


def damaged_cache(arena: Arena, chance: random.Random) -> None:
    """The cache gives an engine as it was stored, or none, and follows no link out of itself."""
    shutil.rmtree(arena.root / "cache", ignore_errors=True)
    cache = EngineCache(arena.root / "cache")
    engine_key, request_key = hash_facts({"engine": 1}), hash_facts({"request": 1})
    cache.store(engine_key, arena.old)
    cache.write_record(request_key, RequestRecord(engine_key, {"number": 1.5}))
    places = [cache.folder / engine_key, cache.folder / "requests"]
    kind = chance.randrange(4)
    if kind == 0:
        spoil(cache.folder / engine_key / chance.choice(NAMES), arena, chance)
    elif kind == 1:
        spoil(cache.folder / "requests" / request_key, arena, chance)
    elif kind == 2:
        chance.choice([*places, cache.folder]).chmod(0o777)
    else:
        place = chance.choice(places)
        shutil.rmtree(place)
        place.symlink_to(arena.root / "theirs")
    found = outcome(lambda: cache.take(engine_key))
    require(is_whole(found, arena.old), "the cache gave other bytes")
    record = outcome(lambda: cache.read_record(request_key))
    require(record in (None, RequestRecord(engine_key, {"number": 1.5})), f"another record: {record}")
    before = sorted(entry.name for entry in (arena.root / "theirs").iterdir())
    outcome(lambda: cache.store(engine_key, arena.new))
    outcome(lambda: cache.write_record(request_key, RequestRecord(engine_key, {})))
    outcome(lambda: cache.prune(0))
    require(sorted(entry.name for entry in (arena.root / "theirs").iterdir()) == before, "a link was followed")


def named_class(arena: Arena, chance: random.Random) -> None:
    """A class that a manifest names is not imported."""
    kind = chance.choice([name for name, row in CONTAINERS.items() if row.fits_class])
    name = chance.choice([f"{PLANTED}:C", f"{PLANTED}:", "os:system", "builtins:exec", "shelve:Shelf", ":", "a:b:c"])
    require(outcome(lambda: find_class(name, CONTAINERS[kind])) is None, f"'{name}' was taken")


def killed_scratch(arena: Arena, chance: random.Random) -> None:
    """What a killed process leaves goes with the next sweep; what is in use stays."""
    place = arena.root / "scratch"
    place.mkdir(exist_ok=True)
    before = tempfile.tempdir
    tempfile.tempdir = str(place)
    try:
        owner = scratch.scratch_folder()
        child = os.fork()
        if not child:
            scratch.scratch_folder()
            _die_at(1 + chance.randrange(8))
            scratch.scratch_folder()
            os._exit(0)
        os.waitpid(child, 0)
        scratch._sweep_once.__wrapped__(os.getpid(), str(place))
        require(
            [entry.name for entry in place.iterdir()] == [owner.path.name], "a scratch folder stayed, or went early"
        )
    finally:
        tempfile.tempdir = before


ATTACKS = (
    *(damaged_artifact, foreign_file_in_artifact, save_in_between, killed_save),
    *(damaged_cache, named_class, killed_scratch),
)


def measure(evidence: Evidence, arguments: argparse.Namespace) -> None:
    """Try the attacks and record what they did."""
    with tempfile.TemporaryDirectory() as folder:
        tally = attack(Path(folder) / "arena", arguments.seed, arguments.count)
    evidence.figure("attacks.tried", tally.tried.total())
    evidence.figure("attacks.holes", len(tally.holes))
    evidence.samples["tried"] = dict(tally.tried)
    evidence.samples["holes"] = tally.holes[:20]
    evidence.samples["seed"] = arguments.seed
    assert not tally.holes, "\n".join(tally.holes[:3])


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--count", type=int, default=6000, help="attacks to try")
    parser.add_argument("--seed", type=int, default=1, help="of the first attack")
    run("attacks", measure, parser, covers=COVERS, needs_gpu=False)

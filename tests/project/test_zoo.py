"""The zoo: its list is whole, its entries fit their axes, and its sweep tells apart what passes and what does not."""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import zoo_join, zoo_sweep, zoo_table
from benchmarks._worker import visible_devices
from benchmarks.evidence import Evidence, complaints
from benchmarks.zoo_places import Place, Places
from benchmarks.zoo_processes import Limit, ZooProcesses, ended, receive_all
from benchmarks.zoo_submodules import answer_in_submodules
from benchmarks.zoo_trial import ZooTrial
from tests.support import tiny_zoo
from tests.zoo.entry import BATCH, ZooEntry, floats
from tests.zoo.models import EVERY, LISTS, RELATIVES, ZOO

TINY = "tests.support.tiny_zoo"
SHARED = ("benchmarks.zoo_worker", "torch.onnx", "onnxscript", "torch._dynamo")  # modules of the processes of a sweep


def test_zoo_has_many_families_and_each_name_once() -> None:
    """At least 120 architectures, 45 of them timm's, and no list hides an entry of another."""
    families = Counter(entry.family for entry in ZOO.values())
    assert len(EVERY) == sum(map(len, LISTS))
    assert len(ZOO) == len(EVERY) - len(RELATIVES) >= 120
    assert families["timm"] >= 45
    assert {f"transformers {kind}" for kind in ("encoder", "decoder", "encoder-decoder", "state space")} < set(families)
    assert {f"transformers {kind}" for kind in ("vision", "detection", "audio", "multimodal")} < set(families)
    assert {"torchvision", "transformers time series", "own vision", "own sequences"} < set(families)


def test_inputs_have_the_sizes_of_the_axes() -> None:
    """At every size to try, each dynamic dimension of the inputs is that size, and the others stay as they are."""
    assert [name for name, entry in EVERY.items() if not _fits(entry)] == []


def _fits(entry: ZooEntry) -> bool:
    fixed_shapes: list[dict[str, list[int]]] = []
    for which in ("min", "opt", "max", "between"):
        sizes = entry.sizes(which)
        sample = entry.sample(sizes)
        axes = [(sample[name].shape[dim], axis) for name, by_dim in entry.axes.items() for dim, axis in by_dim.items()]
        if any(size != sizes[axis.name] or size % axis.multiple_of for size, axis in axes):
            return False
        fixed_shapes.append(
            {name: _fixed_sizes(value.shape, entry.axes.get(name, {})) for name, value in sample.items()}
        )
    return fixed_shapes.count(fixed_shapes[0]) == len(fixed_shapes)


def _fixed_sizes(shape: torch.Size, axes: Mapping[int, Any]) -> list[int]:
    return [size for dim, size in enumerate(shape) if dim not in axes]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The evidence of a sweep over the tiny zoo."""
    path = tmp_path_factory.mktemp("zoo") / "zoo_cpu.json"
    chosen = argparse.Namespace(history=[path], workers=2, backend="cpu", limit=300.0, models=TINY, start=None)
    entries = {name: entry for name, entry in tiny_zoo.ZOO.items() if name != "never_ends"}
    zoo_sweep.sweep(entries, Evidence(), path, chosen, SHARED)
    return json.loads(path.read_text())


def test_sweep_records_what_came_of_each_model(swept: dict[str, Any]) -> None:
    """A model that becomes an engine passes every phase; the others have their error, and all count."""
    rows = swept["samples"]["models"]
    assert not list(complaints(swept))
    assert rows["linear"]["outcome"] == "passed"
    assert {"make", "deploy", "deploy.export", "between", "build"} <= set(rows["linear"]["seconds"])
    assert rows["linear"]["axes"] == {"batch": [1, 4, 1]}
    assert (rows["dies"]["outcome"], rows["dies"]["error"], rows["dies"]["phase"]) == ("crashed", "exit 7", "make")
    assert (rows["branches"]["outcome"], rows["branches"]["error"]) == ("refused", "ExportError")
    assert rows["branches"]["phase"] == "deploy"
    assert "(at tests/support/tiny_zoo.py:" in rows["branches"]["message"]
    assert (swept["figures"]["zoo.models"], swept["figures"]["zoo.pass_share"]) == (4, 0.25)
    assert swept["samples"]["waiting"] == []


def test_refused_model_is_tried_in_parts_and_by_torch_compile(swept: dict[str, Any]) -> None:
    """Its row says which way answers right, and the share of the time in engines; the figure counts it."""
    rows = swept["samples"]["models"]
    by_parts, by_compile = (rows[name]["fallback"] for name in ("eigenvalues", "branches"))
    assert rows["eigenvalues"]["error"] == "UnsupportedOperatorError"
    assert (by_parts["way"], by_parts["outcome"], by_parts["engines"]) == ("fallback=True", "passed", 1)
    assert 0 < by_parts["engine_share"] < 1
    assert (by_compile["way"], by_compile["outcome"], by_compile["engines"]) == ("torch.compile", "passed", 0)
    assert by_compile["engine_share"] == 0  # each of its parts is one addition
    assert "fallback" not in rows["linear"] and "fallback" not in rows["dies"]
    assert swept["figures"]["zoo.pass_share_with_fallback"] == 0.75
    assert (swept["figures"]["zoo.passed_with_fallback"], swept["figures"]["zoo.fallback_without_engine"]) == (2, 1)


class Tail(nn.Module):
    """Its way depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + 1 if x.sum() > 0 else x - 1)


class BodyAndTail(nn.Module):
    """Two submodules, of which an engine takes the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.tail = Tail()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.body(x))


def test_engines_answer_the_submodules_that_they_take() -> None:
    """The others stay in PyTorch, the whole is compared, and the time in engines is known."""
    entry = ZooEntry("plain", BodyAndTail, floats("batch", 3), {"x": {0: BATCH}})
    with torch.no_grad():
        explanation = answer_in_submodules(ZooTrial.make(entry, "cpu"), ZooTrial.make(entry, "cpu"))
    assert [(part.source, part.runs_in) for part in explanation.parts] == [("body", "ONNX Runtime")]
    assert 0 < explanation.engine_share < 1


def test_sweep_that_is_cut_has_written_what_it_found(tmp_path: Path) -> None:
    """Each row is on disk when it is known, beside the names that are still waiting."""
    path = tmp_path / "zoo_cpu.json"
    run = zoo_sweep.Sweep(Evidence(), path, ["first", "second"])
    run.record("first", {"outcome": "passed", "seconds": {}}, "plain")
    written = json.loads(path.read_text())
    assert written["samples"]["waiting"] == ["second"]
    assert (written["figures"]["zoo.models"], written["figures"]["zoo.waiting"]) == (1, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["zoo_cpu.json"]


def test_model_that_takes_too_long_is_ended() -> None:
    """It becomes a row of its own, and its process is gone."""
    before = multiprocessing.active_children()
    row = ZooProcesses("forkserver", SHARED).ask("never_ends", "cpu", TINY, Place(), limit_s=0.5)
    assert (row["outcome"], row["message"]) == ("timeout", "no answer in 0.5 s")
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("second_try", ["running", None])
def test_process_that_ends_early_leaves_what_it_was_trying(second_try: str | None) -> None:
    """The first try keeps its outcome when the second one is cut."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    fallback = {} if second_try is None else {"fallback": {"way": "torch.compile", "outcome": second_try}}
    sender.send({"outcome": "running"})
    sender.send({"outcome": "refused" if fallback else "running", **fallback})
    rows: list[dict[str, Any]] = []
    assert not receive_all(receiver, rows, Limit(0))
    row = ended(rows[-1], "timeout", "", "no answer in 0 s")
    assert row["outcome"] == ("refused" if fallback else "timeout")
    assert (row["fallback"] if fallback else row)["message"] == "no answer in 0 s"
    sender.close()
    assert receive_all(receiver, rows, Limit(0))


def test_second_try_has_twice_the_limit() -> None:
    """Its clock starts when it begins, and only then: a second row of it gives no more time."""
    clock = iter([0.0, 9.0, 11.0, 12.0, 20.0])
    limit = Limit(10.0, lambda: next(clock))  # begins at 0
    assert limit.left_s() == 1.0  # at 9
    limit.begin_second_try()  # at 11
    assert limit.left_s() == 19.0  # at 12
    limit.begin_second_try()
    assert limit.left_s() == 11.0  # at 20
    assert Limit(None).left_s() is None


def test_processes_of_a_sweep_take_turns_on_the_gpus() -> None:
    """Each GPU that the sweep may use has as many processes as the next, by the name that the environment gives it."""
    gpus = visible_devices({"CUDA_VISIBLE_DEVICES": "3, GPU-5f"})
    places = Places(2, gpus)
    seen: list[str] = []
    for _ in range(4):
        with places.share() as place:
            seen.append(place.gpu)
    assert gpus == ["3", "GPU-5f"]
    assert Counter(seen) == dict.fromkeys(gpus[: places.count], 4 // places.count)
    with Places(1).share() as place:
        assert place.gpu == ""


def test_absent_model_counts_neither_way() -> None:
    """What a version of a library lacks is neither passed nor failed; a crash counts as untyped."""
    outcomes = ("passed", "passed", "absent", "refused", "crashed", "timeout", "wrong", "untyped")
    rows = {str(i): {"outcome": outcome} for i, outcome in enumerate(outcomes)}
    figures = zoo_sweep.figures_of(rows, waiting=3)
    assert figures == {
        "zoo.models": 7,
        "zoo.passed": 2,
        "zoo.pass_share": 2 / 7,
        "zoo.pass_share_with_fallback": 2 / 7,
        "zoo.passed_with_fallback": 0,
        "zoo.fallback_without_engine": 0,
        "zoo.refused": 1,
        "zoo.wrong": 1,
        "zoo.untyped": 2,
        "zoo.timeouts": 1,
        "zoo.absent": 1,
        "zoo.waiting": 3,
    }


def test_longest_models_come_first_after_unknown_ones() -> None:
    """A run ends sooner when what takes long does not start last."""
    entries = dict.fromkeys(("short", "long", "unknown"), tiny_zoo.ZOO["linear"])
    assert zoo_sweep.in_order(entries, {"short": 1.0, "long": 9.0}) == ["unknown", "long", "short"]


def test_seconds_come_from_the_last_run_that_a_model_passed(tmp_path: Path) -> None:
    """Each phase counts once; a model that was refused early keeps the seconds of a run that passed it."""
    runs = {
        "first": {
            "both": ("passed", {"make": 1.0, "deploy": 5.0, "deploy.export": 3.0}),
            "one": ("passed", {"make": 2.0}),
        },
        "last": {"both": ("refused", {"make": 0.5}), "one": ("passed", {"make": 4.0})},
    }
    for run, rows in runs.items():
        models = {name: {"outcome": outcome, "seconds": seconds} for name, (outcome, seconds) in rows.items()}
        (tmp_path / run).write_text(json.dumps({"samples": {"models": models}}))
    histories = [tmp_path / run for run in ("first", "last", "missing")]
    assert zoo_sweep.seconds_of(histories) == {"both": 6.0, "one": 4.0}


# The table in the docs


def evidence_of(**outcomes: str) -> dict[str, Any]:
    """The content of an evidence file in which each of these models has its outcome, and "parts" a second try."""
    rows = {
        model: {
            "family": "plain",
            "outcome": outcome,
            "axes": {"batch": [1, 4, 1], "height": [32, 64, 8]},
            "message": "" if outcome == "passed" else "axis 'n': got a|loop; expected none; write it otherwise",
        }
        for model, outcome in outcomes.items()
    }
    if "parts" in rows:
        rows["parts"]["fallback"] = {"way": "torch.compile", "outcome": "passed", "engine_share": 0.304, "engines": 2}
    return {
        "versions": {"torch": "2.11.0", "tensorrt_rtx": "1.6.1"},
        "figures": zoo_sweep.figures_of(rows),
        "samples": {"models": rows},
    }


def test_table_has_every_model_with_its_reason() -> None:
    """A column for each backend; what one of them did not try is told apart from what failed."""
    found = {"zoo_cpu": evidence_of(a="passed", parts="refused"), "zoo_gpu": evidence_of(a="passed")}
    text = zoo_table.generate(found)
    assert "**CPU** (torch 2.11.0, tensorrt_rtx 1.6.1): " in text
    assert "1 of 2 pass, 50.0%; 2 with a second try, 100.0%." in text
    assert text.endswith(
        "\n## plain\n"
        "\n| model | axes | CPU | GPU | reason | second try |\n|---|---|---|---|---|---|\n"
        "| `a` | batch 1..4, height 32..64 by 8 | passed | passed |  |  |\n"
        "| `parts` | batch 1..4, height 32..64 by 8 | refused | – | a\\|loop | CPU: `torch.compile`, 30% |\n"
    )


def test_table_without_evidence_claims_nothing() -> None:
    """The page says that no run is recorded, and has no table."""
    text = zoo_table.generate({})
    assert "No run is recorded yet" in text
    assert "|" not in text


def test_document_says_what_the_evidence_says(repository: Path) -> None:
    """docs/models.md is the one that the committed JSON gives."""
    found = zoo_table.read(repository / "benchmarks" / "results")
    assert zoo_table.DOCUMENT.read_text(encoding="utf-8") == zoo_table.generate(found)


def test_runs_over_parts_of_the_zoo_are_joined_if_they_are_of_one_tree() -> None:
    """A run that was cut short and one over the rest count as one; another commit or a model tried twice does not."""

    def run(models: Mapping[str, str], waiting: tuple[str, ...] = (), commit: str = "a") -> dict[str, Any]:
        rows = {name: {"outcome": outcome, "seconds": {}} for name, outcome in models.items()}
        same = dict.fromkeys(zoo_join.EQUAL, "same")
        return {
            **same,
            "commit": commit,
            "seconds": 2.0,
            "samples": {"options": {}, "models": rows, "waiting": waiting},
        }

    cut = run({"net": "passed", "other": "refused"}, waiting=("last", "late"))
    joined = zoo_join.join([cut, run({"last": "passed"})])
    figures = joined["figures"]
    assert (figures["zoo.models"], figures["zoo.pass_share"], figures["zoo.waiting"]) == (3, 0.6667, 1)
    assert (joined["seconds"], joined["samples"]["waiting"]) == (4.0, ["late"])
    with pytest.raises(ValueError, match="got others of commit"):
        zoo_join.join([cut, run({"last": "passed"}, commit="b")])
    with pytest.raises(ValueError, match="got 'net' twice"):
        zoo_join.join([cut, run({"net": "passed"})])

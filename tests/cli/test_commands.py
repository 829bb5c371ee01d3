"""The command line, run as a user runs it, in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import torch2engine as t2e
from tests.cli.conftest import run_command
from torch2engine.cli.app import cli
from torch2engine.cli.arguments import read_model
from torch2engine.cli.outcome import EXIT_CODES
from torch2engine.core.precision_report import AttentionOutcome, MultiplyAddNode, PrecisionReport
from torch2engine.deployed.deploy_report import DeployReport

pytestmark = pytest.mark.usefixtures("workspace")


def leaves(group: click.Group, *before: str) -> Iterator[tuple[str, click.Command]]:
    """Every command with its words, those of groups included."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, *before, name)
        else:
            yield " ".join((*before, name)), command


COMMANDS = dict(leaves(cli))


def example_of(command: click.Command) -> list[str]:
    """The words of the example that a command's help shows."""
    found = re.search(r"Example:\n +torch2engine (.+)", command.epilog or "")
    assert found is not None
    return found[1].split()


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_the_help_works(name: str) -> None:
    """What a command's help shows can be copied: it ends well, in text and in JSON."""
    words = example_of(COMMANDS[name])
    assert words[: len(name.split())] == name.split()
    ended = run_command(*words)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip()
    as_json = run_command(*words, "--json")
    assert as_json.data["exit_code"] == as_json.code == 0


def test_deployed_model_answers_like_pytorch(workspace: Path) -> None:
    """`run` answers the arrays of a file as the model does."""
    assert run_command("run", "net.t2e", "--input", "images.npz", "--output", "found.npz").code == 0
    images = torch.from_numpy(np.load("images.npz")["input"])
    namespace: dict[str, object] = {}
    exec((workspace / "net.py").read_text(encoding="utf-8"), namespace)
    expected = namespace["make"]().eval()(images).detach()  # type: ignore[operator]  # the function of net.py
    torch.testing.assert_close(torch.from_numpy(np.load("found.npz")["output"]), expected)


def test_engine_folder_answers_from_its_onnx_where_there_is_no_gpu() -> None:
    """An engine's exported model lies beside it, and --runtime onnxruntime runs it."""
    refused = run_command("run", "engine.t2e", "--input", "images.npz", "--json")
    assert refused.code == 4
    assert "--runtime onnxruntime" in refused.data["error"]["fix"]
    ended = run_command("run", "engine.t2e", "--input", "images.npz", "--runtime", "onnxruntime", "--json")
    assert ended.data["outputs"]["output"]["shape"] == [4, 256]


def test_check_tells_a_good_model_from_a_spoilt_one() -> None:
    """The exit code is the verdict, and the table is printed either way."""
    words = ("check", "net.onnx", "net.py:make", "--sample", "8x3x32x32", "--axis", "batch=1:8:32")
    assert run_command(*words).code == 0
    spoilt = run_command(*(word.replace("make", "spoilt") for word in words))
    assert spoilt.code == 1
    assert "FAILED: relative L2" in spoilt.out
    rows = run_command(*(word.replace("make", "spoilt") for word in words), "--json").data["parity"]["rows"]
    assert {row["passed"] for row in rows} == {False}


@pytest.mark.parametrize(
    "words",
    ["check net.t2e {} --sample 8x3x32x32", "diagnose net.t2e {} --sample 8x3x32x32", "bench net.t2e --model {}"],
    ids=["check", "diagnose", "bench"],
)
def test_random_weights_of_the_model_are_named_where_answers_differ(words: str) -> None:
    """A function that draws weights can't give the candidate's, and the advice says what can; others get none."""
    advice = (
        "load the candidate's weights in 'net.py:drawn', e.g. by model.load_state_dict(torch.load('weights.pt')); it "
        "draws random ones: a second call changed 2 of 2 tensors, first '0.weight'"
    )
    drawn = run_command(*words.format("net.py:drawn").split())
    assert (drawn.code, advice in drawn.out + drawn.err) == (1, True)
    data = run_command(*words.format("net.py:drawn").split(), "--json").data
    assert advice in (data["error"]["fix"] if "error" in data else data["advice"])
    spoilt = run_command(*words.format("net.py:spoilt").split())
    assert (spoilt.code, "draws random ones" in spoilt.out + spoilt.err) == (1, False)


def test_model_that_is_not_trained_has_the_same_weights_in_every_command() -> None:
    """So an engine of random weights can be checked by the function that drew them, to try the tool."""
    torch.manual_seed(5)
    first = read_model("net.py:drawn").state_dict()
    torch.manual_seed(6)
    torch.testing.assert_close(read_model("net.py:drawn").state_dict(), first, rtol=0, atol=0)


def test_difference_is_shown_where_the_model_can_be_made_only_once(workspace: Path) -> None:
    """The search for random weights calls the user's function again, and an error of that hides nothing."""
    (workspace / "once.py").write_text(
        "import pathlib\nimport runpy\n\n"
        "def make():\n    pathlib.Path('once.lock').touch(exist_ok=False)\n"
        "    return runpy.run_path('net.py')['drawn']()\n",
        encoding="utf-8",
    )
    ended = run_command("check", "net.t2e", "once.py:make", "--sample", "8x3x32x32")
    assert (ended.code, ended.err, "advice" in ended.out) == (1, "", False)
    assert "FAILED: relative L2" in ended.out


def test_check_takes_an_onnx_file_as_the_reference() -> None:
    """A reference that is a file needs neither a model nor a sample."""
    ended = run_command("check", "engine.t2e", "net.onnx", "--runtime", "onnxruntime", "--axis", "batch=1:8:32")
    assert (ended.code, ended.out.splitlines()[0]) == (
        0,
        "ONNX Runtime vs ONNX Runtime: passed, 3 of 3 outputs passed "
        "(allowed: rel_l2 2.5e-05, max_rel 0.0001, abs 1e-06, mismatch 0)",
    )


def test_bound_of_the_user_judges() -> None:
    """--rel-l2 and --max-rel take the place of the precision's tolerance."""
    words = ("check", "net.onnx", "net.py:spoilt", "--sample", "8x3x32x32", "--axis", "batch=1:8:32")
    assert run_command(*words, "--rel-l2", "0.2", "--max-rel", "0.5").code == 0


def test_inspect_tells_precision_and_memory_by_module(workspace: Path) -> None:
    """Of the graph where no GPU has read the engine's layers, which a line says; of the engine where deploy() did."""
    described = run_command("inspect", "engine.t2e").out
    assert "layers: read where an engine runs" in described
    assert re.search(r"^memory: plan \d+\.\d MiB$", described, re.MULTILINE)
    assert re.search(r"^0 +fp32 +1 +55,296$", described, re.MULTILINE)
    computed = PrecisionReport(
        (MultiplyAddNode("n", "Conv", "0", "fp16", 7, "fp16"),),
        {"fp16": 1},
        {"0": {"fp16": 1}},
        (AttentionOutcome("block", False, "its heads have 12 entries"),),
    )
    report = DeployReport(parity=(), seconds={}, precision="fp16", memory_bytes=2**20, computed=computed)
    t2e.EngineArtifact.load("engine.t2e").with_report(report.to_json()).save(workspace / "reported.t2e")
    described = run_command("inspect", "reported.t2e").out
    assert "layers: read where" not in described
    assert "working memory 1.0 MiB at its deploy" in described
    assert re.search(r"^0 +fp16 +fp16 +1 +7$", described, re.MULTILINE)
    assert "attention: 0 of 1 in fused kernels; not that of 'block': its heads have 12 entries" in described
    data = run_command("inspect", "reported.t2e", "--json").data
    assert (data["has_engine_layers"], data["memory_bytes"]) == (True, 2**20)


def test_engine_file_is_described_without_a_gpu() -> None:
    """Flavour and version stand in a plan's first bytes; to run it takes a GPU, and the error says what else helps."""
    described = run_command("inspect", "net.engine", "--json").data
    assert (described["flavour"], described["metadata"]) == ("tensorrt_rtx", {})
    refused = run_command("check", "net.engine", "net.py:make", "--sample", "8x3x32x32")
    assert refused.code == 4
    assert refused.err.startswith(f"error: engine file 'net.engine' of tensorrt_rtx {described['version']}: got ")
    assert refused.err.endswith("or give the ONNX file that it was built from, which needs no GPU\n")


def test_findings_of_an_engine_are_shown_without_a_gpu(tmp_path: Path) -> None:
    """Those that the profiles show, or those that the deploy found; as text, as data and on the page."""
    engine = t2e.EngineArtifact.load("engine.t2e")
    (tmp_path / "model.plan").write_bytes(engine.read_plan())
    wide = t2e.EngineArtifact.from_onnx(
        engine.exported(), tmp_path, hardware=engine.hardware, profiles=[t2e.Profile({"batch": (1, 1, 32)})]
    )
    wide.save("wide.t2e")
    assert "wide profile: axis 'batch' of profile 0 is 1..32 with opt 1" in run_command("inspect", "wide.t2e").out
    found = t2e.Finding(name="unfused attention", measured="1 of 1", why="It is slow", suggestion="fp16")
    report = replace(DeployReport.of_nothing("fp32"), findings=(found,))
    wide.with_report(report.to_json()).save("wide.t2e")
    for command in ("inspect", "report"):
        assert str(found) in run_command(command, "wide.t2e").out.splitlines()
        assert run_command(command, "wide.t2e", "--json").data["findings"] == [found.to_json()]
    assert run_command("report", "wide.t2e", "-o", "wide.html").code == 0
    assert "<dt>unfused attention</dt>" in Path("wide.html").read_text(encoding="utf-8")


def test_report_times_calls_where_it_is_told_to() -> None:
    """--time adds a table to the text, the data and the page; by itself nothing is run."""
    plain = run_command("report", "net.t2e", "--json").data
    assert "benchmark" not in plain
    timed = run_command("report", "net.t2e", "--time", "-o", "timed.html", "--json").data
    assert {row["case"] for row in timed["benchmark"]["rows"]} == {"batch 1", "batch 8", "batch 32"}
    page = Path("timed.html").read_text(encoding="utf-8")
    assert "<h2>Time of a call</h2>" in page and "items/s" in page


def test_onnx_file_is_described_without_ranges() -> None:
    """Its inputs and outputs are known; a range is needed to run it only."""
    assert run_command("inspect", "net.onnx").out.splitlines() == [
        "ONNX model",
        "input   input: float32[batch, 3, 32, 32]",
        "output  output: float32[batch, 256]",
    ]


def test_deploy_without_a_gpu_names_the_option_that_needs_none() -> None:
    """The cure is written as an option, since that is what the user can type."""
    ended = run_command("deploy", "net.py:make", "--sample", "8x3x32x32")
    assert ended.code == 4
    assert ended.err.endswith("or add --runtime onnxruntime to run on the CPU\n")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("deploy net.py:nothing --sample 8x3", 2, "'net.py': got no 'nothing' in it; expected one of torch, make, "),
        ("deploy net.py:number --sample 8x3", 2, "model 'net.py:number': got an int; expected an nn.Module"),
        ("deploy gone.py:make --sample 8x3", 2, "file 'gone.py': got no such file"),
        ("deploy no_such:make --sample 8x3", 2, "module 'no_such': got no such module"),
        ("deploy net --sample 8x3", 2, "'net': got no name in it; expected FILE.py:NAME"),
        ("deploy net.py:make", 2, "--sample: got nothing; expected a shape"),
        ("deploy net.py:make --sample int64:8x3", 2, "--sample: got 'int64:8x3'; expected a shape of float32"),
        ("deploy net.py:make --sample 8x3 --axis batch", 2, "--axis: got 'batch'; expected NAME=MIN:OPT:MAX"),
        ("deploy net.py:broken --sample 8x3 --runtime onnxruntime", 3, "model: got "),
        ("build net.onnx -o other.t2e", 3, "--axis: got no range of axis 'batch'"),
        ("build net.onnx --axis batch@input.0=1:8:32 -o other.t2e", 2, "--axis: got places for axis 'batch'"),
        ("inspect gone.t2e", 3, "artifact '"),
        ("inspect net.py", 3, "artifact '"),
        ("bench net.t2e --size batch", 2, "--size: got 'batch'; expected NAME=SIZE"),
        ("run net.t2e --input gone.npz", 2, "file 'gone.npz': got "),
    ],
)
def test_mistake_is_explained_without_a_traceback(words: str, code: int, text: str) -> None:
    """A typed error, its exit code, and its parts as JSON."""
    ended = run_command(*words.split())
    assert ended.code == code
    assert ended.err.startswith(f"error: {text}")
    assert (ended.out, "Traceback" in ended.err) == ("", False)
    error = run_command(*words.split(), "--json").data["error"]
    assert error["message"].startswith(text)


def test_error_in_the_models_own_code_is_named_and_debug_shows_where(workspace: Path) -> None:
    """What torch2engine does not raise itself keeps its class, and --debug lets it through."""
    (workspace / "raises.py").write_text("def make():\n    raise KeyError('weights')\n", encoding="utf-8")
    ended = run_command("deploy", "raises.py:make", "--sample", "8x3")
    assert (ended.code, ended.err.splitlines()[0]) == (70, "error: KeyError: 'weights'")
    with pytest.raises(KeyError, match="weights"):
        run_command("deploy", "raises.py:make", "--sample", "8x3", "--debug")


def test_unknown_option_is_a_mistake_of_usage() -> None:
    """click's own complaints have the same exit code as ours."""
    ended = run_command("inspect", "net.t2e", "--colour")
    assert (ended.code, "No such option" in ended.err) == (2, True)


def test_help_lists_every_exit_code() -> None:
    """The codes that scripts rely on are documented where they are looked for."""
    help_text = " ".join(run_command("--help").out.split())
    assert all(f"{code} {meaning}" in help_text for code, meaning in EXIT_CODES.items())


def test_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no error of the model's."""

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch2engine.cli.commands.inspect", interrupted)
    assert run_command("inspect", "net.t2e").code == 130


def test_cache_lists_what_a_build_left_and_clears_it() -> None:
    """An engine that `build` made is listed, and gone after `cache clear`."""
    assert run_command("build", "net.onnx", "--axis", "batch=1:8:32", "-o", "again.t2e").code == 0
    listed = run_command("cache", "list", "--json").data
    assert [engine["size_bytes"] > 0 for engine in listed["engines"]] == [True]
    assert run_command("cache", "clear", "--json").data["freed_bytes"] == listed["total_bytes"]
    assert json.loads(run_command("cache", "list", "--json").out)["engines"] == []


def test_bundle_shows_its_plans() -> None:
    """The command bundles folders of one model; inspect shows every plan, and report that of this machine's."""
    built = run_command("bundle", "bundle.t2e", "engine.t2e", "--json")
    assert (built.code, built.err) == (0, "")
    (name,) = built.data["plans"]
    shown = run_command("inspect", "bundle.t2e").out.splitlines()
    hardware = t2e.EngineArtifact.load("engine.t2e").hardware
    assert shown[0] == "bundle in fp32"
    assert f"plan {name}: built by tensorrt_rtx {hardware.flavour_version}, without a GPU" in shown
    assert run_command("report", "bundle.t2e").out == run_command("report", "engine.t2e").out
    refused = run_command("bundle", "bundle.t2e", "net.t2e")
    assert (refused.code, refused.out) == (2, "")
    assert "got an OnnxArtifact in 'net.t2e'; expected engines and bundles" in refused.err

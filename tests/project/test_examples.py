"""The examples run as they are, and assert what they claim."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY
from tests.support.run_notebook import code_cells, shown_by
from tests.support.run_scripts import ENVIRONMENT, run_scripts

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
QUICKSTART = "quickstart.py"
STABLE_DIFFUSION = "stable_diffusion.py"  # tests/fallback/test_diffusers_pipeline.py runs it
TORCHVISION = "detect_torchvision.py"  # tests/gpu/test_torchvision_detector.py runs it
NAMES = [
    "budget.py",
    "ddp.py",
    "detect.py",
    TORCHVISION,
    "diffusion.py",
    "ema_swap.py",
    "eval_while_training.py",
    "evaluate_ranks.py",
    "fp16.py",
    "from_tensorflow.py",
    "generate.py",
    "int8.py",
    "lora_swap.py",
    "qat.py",
    QUICKSTART,
    "serve_numpy.py",
    STABLE_DIFFUSION,
]
MOST_LINES = 60
TOUR = REPOSITORY / "examples" / "tour.ipynb"


def without_numbers(text: str) -> list[str]:
    """Lines with every number replaced by # and every run of spaces by one."""
    return [" ".join(re.sub(r"\d[\d.]*(e[-+]\d+)?", "#", line).split()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def outputs() -> Mapping[str, str]:
    """What the examples print on a machine without a GPU, but for those run alone; errors and warnings show."""
    scripts = [path for path in EXAMPLES if path.name not in (QUICKSTART, STABLE_DIFFUSION, TORCHVISION)]
    paths = [*scripts, TOUR]
    tour = ["-m", "tests.support.run_notebook", str(TOUR)]
    ended = run_scripts([*([str(path)] for path in scripts), tour])
    assert [(path.name, end.code, end.err) for path, end in zip(paths, ended, strict=True)] == [
        (path.name, 0, "") for path in paths
    ]
    return {path.name: end.out for path, end in zip(paths, ended, strict=True)}


@pytest.fixture(scope="module")
def printed() -> str:
    """What the quickstart prints, in a process that nothing has warmed up, as `make demo` runs it."""
    command = [sys.executable, str(REPOSITORY / "examples" / QUICKSTART)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **ENVIRONMENT}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_quickstart_reads_as_many_digits_with_the_deployed_module(printed: str) -> None:
    """The model and its deployed module have one accuracy on the held-out digits, and a good one."""
    found = re.search(r"accuracy on (\d+) held-out digits: PyTorch ([\d.]+), ONNX Runtime ([\d.]+)$", printed, re.M)
    assert found is not None
    count, expected, accuracy = found.groups()
    assert int(count) == 450
    assert accuracy == expected
    assert float(accuracy) > 0.95


def test_quickstart_builds_an_engine_without_a_gpu(printed: str) -> None:
    """The engine is really built, and what runs it is said."""
    first, second = printed.splitlines()[:2]
    found = re.fullmatch(r"without a GPU: TensorRT-RTX [\d.]+ built an engine of (\d+) bytes", first)
    assert found is not None
    assert int(found[1]) > 10_000
    assert second == "running it takes a GPU, so ONNX Runtime answers with the same graph"


def test_quickstart_prints_the_parity_table(printed: str) -> None:
    """Min, opt, max and random input are shown, each passed."""
    rows = [line.split() for line in printed.splitlines() if line.endswith("  passed")]
    assert [row[0] for row in rows] == ["min", "opt", "max", "random"]
    assert "PyTorch vs ONNX Runtime: passed, 4 of 4 outputs passed" in printed


def test_readme_shows_the_report_as_the_quickstart_prints_it(printed: str) -> None:
    """The README's first lines of a report are those of `make demo`, numbers aside."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = next(block for block in re.findall(r"```text\n(.*?)```", readme, re.S) if "PyTorch vs" in block)
    assert "\n".join(without_numbers(shown)) in "\n".join(without_numbers(printed))


def test_tour_shows_what_its_cells_give(outputs: Mapping[str, str]) -> None:
    """The notebook's stored outputs are those of a run on a machine without a GPU."""
    assert json.loads(outputs[TOUR.name]) == [shown_by(cell) for cell in code_cells(TOUR)]


def pair(text: str, start: str) -> tuple[float, float]:
    """The two numbers in the line that starts so: float32's, and the low precision's."""
    found = re.search(rf"^{start}: float32 ([\d.]+), \w+ ([\d.]+)$", text, re.M)
    assert found is not None
    return float(found[1]), float(found[2])


def test_fp16_has_the_accuracy_of_float32_in_half_the_bytes(outputs: Mapping[str, str]) -> None:
    """Accuracy and sizes are what the example claims, and its report tells that every node is low."""
    printed = outputs["fp16.py"]
    expected, found = pair(printed, "accuracy on 450 held-out digits")
    assert found == expected > 0.95
    full, half = pair(printed, "bytes on disk")
    assert half < 0.55 * full
    lowered = re.search(r"^fp16: (\d+) of (\d+) nodes$", printed, re.M)
    assert lowered is not None
    assert lowered[1] == lowered[2]
    assert "PyTorch vs ONNX Runtime, rounding after every operator: passed, 4 of 4 outputs passed" in printed


def test_detector_is_in_parts_around_its_suppression(outputs: Mapping[str, str]) -> None:
    """What stays in PyTorch is the choice of boxes alone, by its line; the network is in an engine."""
    assert re.search(r"^1 of 1 parts in engines", outputs["detect.py"], re.M)
    assert re.search(
        r"^  aten\.index\.Tensor at .*detect\.py:\d+: the size of its result depends on values",
        outputs["detect.py"],
        re.M,
    )


def test_pipeline_answers_with_other_weights_after_a_refit(outputs: Mapping[str, str]) -> None:
    """The adapter changes the images, so that equal ones prove something."""
    moved = re.search(
        r"^images of \(2, 3, 32, 32\); the adapter moved them by ([\d.]+)$", outputs["diffusion.py"], re.M
    )
    assert moved is not None
    assert float(moved[1]) > 0.0


def test_two_ranks_evaluate_what_rank_0_deployed(outputs: Mapping[str, str]) -> None:
    """After each epoch both load the newest weights, and read as many digits as the model in training."""
    pattern = r"^rank (\d), epoch (\d): (\d+) of 1792 digits, the model in training (\d+)$"
    found = sorted(tuple(map(int, line)) for line in re.findall(pattern, outputs["ddp.py"], re.M))
    assert [line[:2] for line in found] == [(rank, epoch) for rank in (0, 1) for epoch in (0, 1, 2)]
    assert all(abs(count - wanted) <= 1 for _, _, count, wanted in found)
    counts = [count for _, _, count, _ in found]
    assert counts[:3] == counts[3:]
    assert counts[0] < counts[2] > 0.93 * 1792


def test_ranks_of_torchrun_share_the_images(outputs: Mapping[str, str]) -> None:
    """Two ranks answer each image once with what rank 0 made; the example compares the gathered answers."""
    assert sorted(outputs["evaluate_ranks.py"].splitlines()) == [
        "rank 0 of 2: 899 of 1797 images",
        "rank 1 of 2: 898 of 1797 images",
    ]


def test_keras_file_is_answered_and_built(outputs: Mapping[str, str]) -> None:
    """With TensorFlow or without, ONNX Runtime agrees with Keras, an engine is built, and what was skipped is said."""
    printed = outputs["from_tensorflow.py"]
    assert ("the export is skipped" in printed) == (importlib.util.find_spec("tensorflow") is None)
    difference = re.search(r"^ONNX Runtime and Keras differ by ([\d.e-]+)$", printed, re.M)
    assert difference is not None
    assert float(difference[1]) < 1e-4
    assert re.search(r"^built from tf2onnx .*: image: float32\[unk__\d+, \d+, \d+, 3\]$", printed, re.M)
    assert printed.endswith("running it takes a GPU, so its answers are not compared here\n")


def test_int8_costs_a_point_at_most_in_a_quarter_of_the_bytes(outputs: Mapping[str, str]) -> None:
    """Accuracy and sizes are what the example claims, and its three linear layers are quantised."""
    printed = outputs["int8.py"]
    expected, found = pair(printed, "accuracy on 450 held-out digits")
    assert found >= expected - 0.01
    full, small = pair(printed, "bytes on disk")
    assert small < 0.3 * full
    assert re.search(r"^int8: 3 of \d+ nodes$", printed, re.M)


def test_fine_tuned_quantisers_are_deployed_as_they_are(outputs: Mapping[str, str]) -> None:
    """Accuracies are what the example claims, and both layers are int8."""
    printed = outputs["qat.py"]
    found = re.search(r"float32 ([\d.]+), tuned ([\d.]+), deployed ([\d.]+)$", printed, re.M)
    assert found is not None
    before, tuned, deployed = map(float, found.groups())
    assert abs(tuned - deployed) < 0.005
    assert deployed > before - 0.01 > 0.9
    assert "100.0 % of the multiply-adds in int8" in printed


def test_budget_names_the_module_that_overflows(outputs: Mapping[str, str]) -> None:
    """Hidden by the calibration data the search finds it, shown by them a rule does, and a metric judges as well."""
    hidden, shown, judged = outputs["budget.py"].strip().split("\n\n")
    assert "  'length' goes back to float32: alone in fp16 it costs " in hidden
    assert hidden.endswith("which holds the budget")
    assert re.search(r"^  float32 in 'length' \(\d nodes\): reaches 1.37e\+06, ", shown, re.M)
    assert re.search(r"^  graph 1: metric (0\.9\d+|1), floor 0.95, which holds the budget$", judged, re.M)


def test_page_shows_what_the_budget_prints(outputs: Mapping[str, str]) -> None:
    """The picture of a search in docs/precision.md is the first that the example prints, numbers aside."""
    page = (REPOSITORY / "docs" / "precision.md").read_text(encoding="utf-8")
    shown = next(block for block in re.findall(r"```text\n(.*?)```", page, re.S) if "goes back to float32" in block)
    assert without_numbers(shown) == without_numbers(outputs["budget.py"].split("\n\n")[0])


def test_engine_reads_as_many_digits_as_the_model_in_training(outputs: Mapping[str, str]) -> None:
    """After each of five epochs, by a refit whose time is told."""
    pattern = r"^epoch (\d): PyTorch (\d+), ONNX Runtime (\d+) of 450, refit in [\d.]+ ms$"
    found = [tuple(map(int, line)) for line in re.findall(pattern, outputs["eval_while_training.py"], re.M)]
    assert [epoch for epoch, _, _ in found] == [0, 1, 2, 3, 4]
    assert all(abs(wanted - count) <= 1 for _, wanted, count in found)
    assert found[0][1] < found[-1][1] > 0.9 * 450


def test_raw_and_averaged_weights_are_swapped(outputs: Mapping[str, str]) -> None:
    """Four epochs, each with both accuracies, which differ."""
    found = re.findall(r"^epoch \d: (\d+) of 450 with the raw weights, (\d+) with", outputs["ema_swap.py"], re.M)
    assert len(found) == 4
    assert any(raw != averaged for raw, averaged in found)


def test_decoder_generates_the_tokens_of_pytorch(outputs: Mapping[str, str]) -> None:
    """Both generate 200 tokens, at a speed that is printed; the example compares them."""
    found = re.fullmatch(
        r"ONNX Runtime: 200 tokens, (\d+) a second\nPyTorch eager: 200 tokens, (\d+) a second\n", outputs["generate.py"]
    )
    assert found is not None


def test_adapters_are_swapped_without_a_drift(outputs: Mapping[str, str]) -> None:
    """Fifty times, at float32's error, and back to the very answers of the beginning."""
    pattern = r"50 swaps, [\d.]+ ms each \(median\); largest error ([\d.e-]+), drift ([\d.]+)\n"
    found = re.fullmatch(pattern, outputs["lora_swap.py"])
    assert found is not None
    assert float(found[1]) < 1e-5
    assert float(found[2]) == 0


def test_served_arrays_are_read_as_well_as_tensors(outputs: Mapping[str, str]) -> None:
    """Without a GPU the Processor says what is missing, and ONNX Runtime reads as many digits as PyTorch."""
    first, last = outputs["serve_numpy.py"].splitlines()
    assert first.startswith("no Processor here: NVIDIA driver: ")
    found = re.fullmatch(r"(\d+) of 397 digits, PyTorch (\d+)", last)
    assert found is not None
    assert int(found[1]) == int(found[2]) > 0.85 * 397


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_short_and_asserts_what_it_claims(path: Path) -> None:
    """An example fits on a screen, and an assert, not the reader, checks its claim."""
    text = path.read_text(encoding="utf-8")
    nodes = Counter(type(node) for node in ast.walk(ast.parse(text)))
    assert text.count("\n") < MOST_LINES
    assert nodes[ast.Assert] >= 1


def test_every_example_is_run_by_this_file() -> None:
    """A new example comes with its test."""
    assert [path.name for path in EXAMPLES] == NAMES

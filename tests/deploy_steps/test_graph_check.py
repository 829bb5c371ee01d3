"""`torch2engine.deploy_steps.graph_check`: which cases come before a build, and who is blamed later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.support.deploy_models import Mlp
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.core.config import BuildConfig, Precision, RuntimeConfig, Tolerance
from torch2engine.core.errors import ParityError
from torch2engine.core.precisions import PrecisionName
from torch2engine.deploy_steps import graph_check as graph_checks
from torch2engine.deploy_steps.graph_check import GraphCheck, cases_before_build
from torch2engine.deploy_steps.model_and_sample import ModelAndSample
from torch2engine.deploy_steps.reference_answers import ReferenceAnswers
from torch2engine.deploy_steps.request import DeployRequest
from torch2engine.deployed.onnxruntime.ort_module import ORTModule
from torch2engine.parity.parity_report import ParityReport


def case(name: str, batch: int, model: Mlp | None = None) -> ParityCase:
    """A case of that name with random inputs, and the model's answers if there is a model."""
    x = torch.randn(batch, 6)
    outputs: dict[str, torch.Tensor] = {}
    if model is not None:
        with torch.no_grad():
            outputs = {"output": model.eval()(x)}
    kind = name.rpartition(" ")[2]
    return ParityCase(name, (x,), outputs, kind=kind if kind in ("min", "opt", "max", "own", "random") else "")


def chosen(*sizes: tuple[str, int]) -> list[str]:
    """The names of the cases that a graph is compared on before a build."""
    return [one.name for one in cases_before_build([case(name, batch) for name, batch in sizes])]


def test_graph_is_compared_up_to_opt_before_a_build() -> None:
    """What is larger than opt waits for the engine."""
    assert chosen(("min", 1), ("opt", 8), ("max", 32), ("random", 17)) == ["min", "opt"]
    assert chosen(("min", 1), ("opt", 8), ("max", 9), ("random", 5)) == ["min", "opt", "random"]


def test_profiles_do_not_repeat_sizes_of_a_graph() -> None:
    """Equal sizes count once, with the sample's values and with random ones, and a large profile's opt is large."""
    first = [("profile 0 min", 1), ("profile 0 opt", 8), ("profile 0 max", 32), ("profile 0 random", 17)]
    others = [(f"profile {n} {kind}", size) for n, size in ((1, 1), (2, 8), (3, 32)) for kind in ("min", "random")]
    kept = ["profile 0 min", "profile 0 opt", "profile 1 random", "profile 2 random"]
    assert chosen(*first, *others) == kept


def test_profiles_of_one_size_do_not_hide_that_an_axis_is_dynamic() -> None:
    """A first profile for one size alone leaves the graph's other sizes to be compared."""
    single = [("profile 0 min", 1), ("profile 0 random", 1)]
    wide = [("profile 1 min", 2), ("profile 1 opt", 4), ("profile 1 max", 32), ("profile 1 random", 17)]
    assert chosen(*single, *wide) == ["profile 0 min", "profile 0 random", "profile 1 min", "profile 1 opt"]


def test_opt_may_be_the_smallest_or_the_largest_size() -> None:
    """A profile whose opt is its min has no case of that name."""
    assert chosen(("min", 2), ("max", 4), ("random", 3)) == ["min"]
    assert chosen(("min", 1), ("opt", 4), ("random", 2)) == ["min", "opt", "random"]


def test_real_inputs_are_all_compared() -> None:
    """Examples are the user's choice, and other values of live parameters say what no size does."""
    names = [("sample", 4), ("example 0", 4), ("example 1", 64), ("live", 4)]
    assert chosen(*names) == [name for name, _ in names]
    assert chosen(("min", 1), ("opt", 2), ("max", 9), ("live", 9)) == ["min", "opt", "live"]


def answers(model: Mlp) -> list[ParityCase]:
    return [case(name, batch, model) for name, batch in (("min", 1), ("opt", 4), ("max", 8), ("random", 3))]


def graph_check(exported: OnnxArtifact, cases: Sequence[ParityCase], engine_follows: bool = True) -> GraphCheck:
    return GraphCheck(lambda: ORTModule(exported), ReferenceAnswers(cases, ("a note",)), None, engine_follows)


@pytest.mark.parametrize(
    ("runtime", "precision", "engine_follows", "fits_beside_build"),
    [
        ("tensorrt", "fp32", True, True),
        ("tensorrt", "tf32", True, True),
        ("tensorrt", "fp16", True, False),
        ("onnxruntime", "fp32", False, False),
        ("tensorrt", "int8", False, False),
        ("tensorrt", "fp8", False, False),
    ],
)
def test_no_case_is_left_to_an_engine_that_skips_it(
    runtime: str,
    precision: PrecisionName,
    engine_follows: bool,
    fits_beside_build: bool,
    model: Mlp,
    exported: OnnxArtifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quantised engine skips random cases, so its graph does not. A lowered or large graph comes before a build."""
    request = DeployRequest(
        model=model,
        given=ModelAndSample.of(model, torch.ones(4, 6), None, None, None, None, ()),
        precision=Precision(precision),
        has_calibration=False,
        tolerance=None,
        runtime=runtime,
        config=BuildConfig(),
        runtime_config=RuntimeConfig(),
    )
    check = GraphCheck.for_request(request, exported, ReferenceAnswers(answers(model), ()))
    assert (check.engine_follows, check.fits_beside_build) == (engine_follows, fits_beside_build)
    monkeypatch.setattr(graph_checks, "_LARGE_BYTES", exported.model_bytes - 1)
    large = GraphCheck.for_request(request, exported, ReferenceAnswers(answers(model), ()))
    assert (large.engine_follows, large.fits_beside_build) == (engine_follows, False)


def test_report_says_what_waits_for_the_engine(model: Mlp, exported: OnnxArtifact) -> None:
    """A graph that answers calls itself is compared in every case."""
    waiting = graph_check(exported, answers(model)).compare()
    assert [row.case for row in waiting.rows] == ["min", "opt", "random"]
    assert waiting.notes == ("a note", "compared on the engine alone: 'max'")
    whole = graph_check(exported, answers(model), engine_follows=False).compare()
    assert [row.case for row in whole.rows] == ["min", "opt", "max", "random"]
    assert whole.notes == ("a note",)


def test_graph_that_is_wrong_where_it_was_not_compared_is_blamed(model: Mlp, exported: OnnxArtifact) -> None:
    """An engine's failure names the graph if that has it too, and the engine if it has not."""
    cases = answers(model)
    fault = [replace(one, outputs={"output": -one.outputs["output"]}) if one.name == "max" else one for one in cases]
    check = graph_check(exported, fault)
    check.compare().raise_if_failed()
    table = ParityReport((), "PyTorch vs TensorRT", Tolerance())
    of_engine = ParityError("parity", got="a difference", allowed="none", fix="build again", report=table)
    blamed = r"^parity, PyTorch vs ONNX Runtime: got output 'output' of case 'max'"
    with pytest.raises(ParityError, match=blamed) as caught, check.blaming_graph_if_wrong():
        raise of_engine
    assert caught.value.__context__ is of_engine
    with pytest.raises(ParityError) as caught, graph_check(exported, cases).blaming_graph_if_wrong():
        raise of_engine
    assert caught.value is of_engine


def test_other_failures_of_an_engine_say_nothing_of_the_graph(model: Mlp, exported: OnnxArtifact) -> None:
    """Only a wrong answer is a reason to look at the graph again."""
    with pytest.raises(MemoryError), graph_check(exported, answers(model)).blaming_graph_if_wrong():
        raise MemoryError

"""The source against the real bindings of TensorRT 10 and 11 and TensorRT-RTX 1.6 and 1.7, and the checker itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import torch2engine
from tests.support.conformance.api import Api
from tests.support.conformance.bindings import load, read_lock
from tests.support.conformance.check import Report, check
from tests.support.paths import REPOSITORY, SUPPORT

_LOCK = REPOSITORY / "requirements" / "conformance.lock"
_SAMPLE = SUPPORT / "conformance" / "sample"
_SOURCE = Path(torch2engine.__file__).parent

_TRT = "tensorrt 10.16.1.11", "tensorrt 11.4.0.106"
_RTX = "tensorrt_rtx 1.6.1.120", "tensorrt_rtx 1.7.1.116"
_ALL = (*_TRT, *_RTX)

# (file, what stands there, what a mistake makes of it, what the report says); the versions that it breaks if not all
_PLANTS = {
    "module attribute": ("use", "api.Builder(", "api.Bulider(", "the module has no 'Bulider'"),
    "method": ("use", ".parse_from_file", ".parse_file", "OnnxParser has no 'parse_file'"),
    "method's case": ("use", ".get_input(", ".Get_Input(", "has no 'Get_Input' (but 'get_input')"),
    "method of a result": ("use", ".desc()", ".description()", "ParserError has no 'description'"),
    "method through a helper": ("use", ".set_input_shape", ".set_shape", "IExecutionContext has no 'set_shape'"),
    "removed method": ("use", ".num_io_tensors", ".num_bindings", "ICudaEngine has no 'num_bindings'"),
    "removed property": ("use", ".num_io_tensors", ".device_memory_size", "has no 'device_memory_size'", *_ALL[1:]),
    "enum member": ("use", ".WORKSPACE", ".WORKSPACES", "MemoryPoolType has no 'WORKSPACES'"),
    "enum member of some": ("use", ' and hasattr(rt.api.BuilderFlag, "FP16")', "", "has no 'FP16'", _TRT[1]),
    "enum member in a table": ("trt", '"HALF"', '"FLOAT16"', "DataType has no 'FLOAT16'"),
    "enum without int()": ("use", "<< int(rt.api", "<< (rt.api", "no 'lshift' operator: wrap it in int()"),
    "keyword": ("use", "pool_size=", "size=", "takes no keyword 'size'"),
    "keyword of a constructor": ("use", "Builder(rt.logger)", "Builder(log=rt.logger)", "no keyword 'log'"),
    "too many arguments": ("use", "create_network(flags)", "create_network(flags, 1)", "takes 1 positional"),
    "too few arguments": ("use", "stream_handle=stream", "", "needs 'stream_handle'"),
    "argument given twice": ("use", "(tensor.name, min", '(tensor.name, input="x", min', "takes 'input' once"),
    "no overload": ("use", "execution_context(strategy)", "execution_context(strategy, 1)", "no overload fits"),
    "swapped arguments": ("use", "(network, rt.logger)", "(rt.logger, network)", "ILogger, not INetworkDefinition"),
    "property called": ("use", ".is_shape_tensor", ".is_shape_tensor()", "bool can't be called"),
    "method not called": ("use", ".parse_from_file(path)", ".parse_from_file", "is a method, which is always true"),
    "object indexed": ("use", ".get_tensor_profile_shape(name, profile)", ".get_tensor_dtype(name)", "be indexed"),
    "object iterated": ("use", "in range(parser.num_errors)", "in parser", "OnnxParser can't be iterated over"),
    "assigned name": ("use", ".progress_monitor =", ".progress_monitors =", "no 'progress_monitors'"),
    "assigned read-only": ("use", ".builder_optimization_level", ".num_optimization_profiles", "can't be assigned"),
    "assigned class": (
        "use",
        "CudaGraphStrategy.DISABLED",
        "ComputeCapability.CURRENT",
        "not CudaGraphStrategy",
        *_RTX,
    ),
    "override": ("use", "def step_complete", "def step_completed", "overrides nothing: IProgressMonitor"),
    "override's arguments": ("use", "(self, phase_name: str) -> None", "(self) -> None", "is called with"),
    "override in prose": ("use", "def reallocate_output_async", "def reallocate", "nothing: IOutputAllocator"),
    "no guard": ("use", "if rt.is_rtx:", "if path:", "IBuilderConfig has no 'num_compute_capabilities'", *_TRT),
    "guard turned round": ("use", "if rt.is_rtx:", "if not rt.is_rtx:", "has no 'set_compute_capability'", *_TRT),
    "guard by has": ("use", "if not rt.has(", "if rt.has(", "IRuntimeConfig has no 'create_runtime_cache'", *_TRT),
    "guard that nobody passes": ("use", '"IRuntimeConfig.create', '"IRuntimeConfig.make', "no version has"),
    "hasattr's name": ("use", '"FP16"', '"FP61"', "no version has BuilderFlag.FP61"),
    "getattr's name": ("use", '"cuda_graph_strategy"', '"cuda_graphs"', "no version has IRuntimeConfig.cuda_gr"),
    "unreachable": ("use", "if rt.is_rtx:", "if rt.is_rtx and not rt.is_rtx:", "no version reaches this"),
    "flavour": ("trt", "is_rtx=is_rtx", "is_rtx=not is_rtx", "'is_rtx' is not what this version is"),
    "alias": ("trt", "ITensor: TypeAlias", "Tensor: TypeAlias", "no version has a class of that name"),
    "annotation": ("use", "builder: trt.Builder", "builder: trt.ITensor", "'builder' is Builder, not ITensor"),
    "result's annotation": ("use", "-> trt.IRuntimeCache", "-> trt.ITensor", "the result's annotation is wrong", *_RTX),
    "annotation left out": ("use", "engine: trt.ICudaEngine)", "engine: object)", "annotate this: 'get_tensor_name'"),
    "argument left out": ("use", "builder: trt.Builder", "builder: object", "annotate this: 'create_optimization"),
    "unreadable name": ("trt", "DataType, member)", "DataType, str(member))", "name can't be read from the source"),
}


@pytest.fixture(scope="module")
def apis() -> list[Api]:
    """The four versions' APIs; fetched the first time, kept in build/ afterwards."""
    return load(_LOCK, REPOSITORY / "build" / "conformance")


@pytest.fixture(scope="module")
def report(apis: list[Api]) -> Report:
    """The report on the package."""
    return check(_SOURCE, apis)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a package's sources to where mistakes may be planted."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.pyc")))


def test_pitfall_30_source_fits_every_version(report: Report, apis: list[Api]) -> None:
    """Every class, method, enum member, keyword and argument count that the package uses exists where it is used."""
    assert {api.title.partition(".")[0] for api in apis} >= {"tensorrt 10", "tensorrt 11"}
    assert not report.problems, f"\n{report}"


def test_scan_finds_the_uses_in_the_source(report: Report) -> None:
    """The check can't pass by finding nothing: the uses that the package is made of are among those it checked."""
    assert {
        "Builder.build_serialized_network()",
        "Builder.create_network()",
        "BuilderFlag.TF32",
        "DataType.BF16",
        "ICudaEngine.create_execution_context()",
        "IExecutionContext.execute_async_v3()",
        "IExecutionContext.set_input_shape()",
        "IExecutionContext.set_tensor_address()",
        "ILogger.log",
        "IOptimizationProfile.set_shape()",
        "IProgressMonitor.step_complete",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.parse_from_file()",
        "Runtime.deserialize_cuda_engine()",
    } <= report.members
    assert len(report.members) >= 100


def test_misspelt_member_anywhere_in_the_source_is_found(
    report: Report, apis: list[Api], copied: Callable[[Path], Path]
) -> None:
    """The uses that the scan counts are really checked: a wrong letter in each of a spread of them is reported."""
    folder = copied(_SOURCE)
    attributes = [use for use in sorted(report.uses) if _stands_there(*use)]
    planted: set[tuple[str, int, str]] = set()
    for path, line, member in attributes[:: len(attributes) // 6]:
        file, name = folder.parent / path, member.rpartition(".")[2]
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        lines[line - 1] = re.sub(rf"\.{name}\b", f".{name}x", lines[line - 1])
        file.write_text("".join(lines), encoding="utf-8")
        planted.add((path, line, f"has no '{name}x'"))
    assert len(planted) >= 6
    notes = [problem.note for problem in check(folder, apis[1::2]).problems]
    found = {plant for plant in planted if any((n.path, n.line) == plant[:2] and plant[2] in n.message for n in notes)}
    assert found == planted


def _stands_there(path: str, line: int, member: str) -> bool:
    there = (_SOURCE.parent / path).read_text(encoding="utf-8").splitlines()[line - 1]
    return not member.endswith(")") and re.search(rf"\.{member.rpartition('.')[2]}\b", there) is not None


def test_right_sample_has_no_problem(apis: list[Api]) -> None:
    """The sample, which uses every convention, passes; so each planted mistake below is found for itself."""
    report = check(_SAMPLE, apis)
    assert not report.problems, f"\n{report}"
    assert len(report.uses) == 95


@pytest.mark.parametrize("plant", _PLANTS.values(), ids=_PLANTS)
def test_planted_mistake_is_found(plant: tuple[str, ...], apis: list[Api], copied: Callable[[Path], Path]) -> None:
    """A mistake is reported with what is wrong, for the versions that it breaks and for no other."""
    name, right, wrong, message, *versions = plant
    file = copied(_SAMPLE) / f"{name}.py"
    source = file.read_text(encoding="utf-8")
    assert source.count(right) == 1
    file.write_text(source.replace(right, wrong), encoding="utf-8")
    found = [problem for problem in check(file.parent, apis).problems if message in problem.note.message]
    assert {problem.versions for problem in found} == {tuple(versions) or _ALL}


def test_report_names_place_expression_and_versions(apis: list[Api], copied: Callable[[Path], Path]) -> None:
    """A reader of the report sees file, line, expression, reason and versions."""
    file = copied(_SAMPLE) / "use.py"
    source = file.read_text(encoding="utf-8")
    file.write_text(source.replace("pool_size=", "size="), encoding="utf-8")
    line = source[: source.index("pool_size=")].count("\n") + 1
    assert str(check(file.parent, apis)) == (
        f"sample/use.py:{line}: plan.config.set_memory_pool_limit(pool=rt.api.MemoryPoolType.WORKSPACE, size=1 << 20)\n"
        "    IBuilderConfig.set_memory_pool_limit: takes no keyword 'size' (pool, pool_size)"
        " [tensorrt 10.16.1.11, tensorrt 11.4.0.106, tensorrt_rtx 1.6.1.120, tensorrt_rtx 1.7.1.116]"
    )


def test_bindings_are_the_versions_of_the_lock(apis: list[Api]) -> None:
    """The APIs are read from the wheels that the lock pins by hash, each from its own process."""
    assert [wheel.title for wheel in read_lock(_LOCK)] == [api.title for api in apis] == list(_ALL)
    assert all(line.count("--hash=sha256:") == 3 for line in (wheel.requirement for wheel in read_lock(_LOCK)))
    assert [api.has("CudaGraphStrategy") for api in apis] == [False, False, True, True]
    assert [api.has("BuilderFlag.FP16") for api in apis] == [True, False, False, False]
    assert all(len(api.classes) > 200 for api in apis)

"""The doctor names the cause and the cure in environments that are broken as users break theirs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import run_command
from tests.support.broken_environments import Environment, compiled, compiled_driver
from tests.support.paths import REPOSITORY
from torch2engine.cli.doctor.doctor_finding import DoctorFinding
from torch2engine.cli.doctor.examination import findings_of
from torch2engine.cli.doctor.machine import Machine, examine_machine
from torch2engine.cli.doctor.packages import REQUIRED
from torch2engine.cli.doctor.surroundings import check_surroundings
from torch2engine.core.errors import ArtifactError

Break = Callable[[Environment], object]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver that says what variables of the environment tell it."""
    return compiled_driver(tmp_path_factory.mktemp("driver"))


def machine_of(environment: Environment) -> Machine:
    """The facts that the doctor's own process collects there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(environment.here)
        return examine_machine(environment.variables, python=(sys.executable, "-S"))


def test_healthy_environment_has_no_finding(tmp_path: Path, driver: Path) -> None:
    """The doctor does not cry wolf."""
    machine = machine_of(Environment(tmp_path, driver))
    assert machine.driver.gpus == (("Fake GPU", (8, 6)),)
    assert findings_of(machine) == []


def shadow(environment: Environment) -> None:
    """A script of the user's that is called like a package."""
    (environment.here / "onnx.py").write_text("print('my experiments with onnx')", encoding="utf-8")


def missing_library(environment: Environment) -> None:
    """Bindings without their libraries."""
    environment.linked_bindings("libnvinfer.so.10").unlink()


def other_major_version(environment: Environment) -> None:
    """Bindings of TensorRT 10 beside libraries of TensorRT 11."""
    library = environment.linked_bindings("libnvinfer.so.10")
    library.rename(library.with_name("libnvinfer.so.11"))


def other_symbols(environment: Environment) -> None:
    """Bindings that are newer than the library."""
    library = environment.linked_bindings("libnvinfer.so.10", "newFunction")
    compiled(library, "int oldFunction(void) { return 1; }", "-Wl,-soname,libnvinfer.so.10")


def path_trap(environment: Environment) -> None:
    """The right library in the wheel, and an older one on the loader's path."""
    environment.linked_bindings("libnvinfer.so.10", "newFunction")
    old = compiled(environment.folder / "opt" / "libnvinfer.so.10", "int oldFunction(void) { return 1; }")
    environment.with_variables({"LD_LIBRARY_PATH": f"{old.parent}:{environment.variables['LD_LIBRARY_PATH']}"})


def two_libraries(environment: Environment) -> None:
    """A second TensorRT on the loader's path, which works too."""
    environment.linked_bindings("libnvinfer.so.10")
    again = compiled(
        environment.folder / "opt" / "libnvinfer.so.10", "int createInferBuilder_INTERNAL(void) { return 1; }"
    )
    environment.with_variables({"LD_LIBRARY_PATH": f"{again.parent}:{environment.variables['LD_LIBRARY_PATH']}"})


def old_system(environment: Environment) -> None:
    """A library that needs a newer C++ library than the system's."""
    library = environment.linked_bindings("libfake.so.1", "newFunction", version_node="GLIBCXX_3.4.99")
    (environment.folder / "versions").write_text("GLIBCXX_3.4.1 { global: *; };", encoding="utf-8")
    flags = ("-Wl,-soname,libfake.so.1", f"-Wl,--version-script={environment.folder / 'versions'}")
    compiled(library, "int newFunction(void) { return 1; }", *flags)


def wrong_class(environment: Environment) -> None:
    """A library for machines of 32 bits."""
    library = compiled(environment.bindings(), "int one(void) { return 1; }")
    data = bytearray(library.read_bytes())
    data[4] = 1
    library.write_bytes(data)


def leftover_folder(environment: Environment) -> None:
    """What an uninstall has left behind: a folder without a package in it."""
    (environment.site / "tensorrt" / "plugin").mkdir(parents=True)


def read_only_cache(environment: Environment) -> None:
    """A file where the cache should be; folders that are read-only are none for root, who runs containers."""
    (environment.folder / "home" / ".cache").write_text("", encoding="utf-8")


def open_cache(environment: Environment) -> None:
    """A cache that everybody may write to."""
    engines = environment.folder / "home" / ".cache" / "torch2engine" / "engines-2"
    engines.mkdir(parents=True)
    engines.chmod(0o777)


def older_driver(environment: Environment) -> None:
    """A driver for CUDA 12 and a TensorRT-RTX for it, but a torch for CUDA 13."""
    environment.remove_rtx()
    wheels = ("tensorrt-rtx", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu12-libs")
    environment.install("tensorrt_rtx", "1.6.1.120", "", wheels)
    environment.with_variables({"FAKE_CUDA": "12080"})


def variables(**changes: str) -> Break:
    """Variables of the environment, or answers of the driver."""
    return lambda environment: environment.with_variables(changes)


def package(module: str, version: str, text: str = "", *distributions: str) -> Break:
    """Another version of a package."""

    def change(environment: Environment) -> None:
        environment.remove(module)
        environment.install(module, version, text, distributions)

    return change


CASES: dict[str, tuple[Break, str, str]] = {
    "no torch": (
        lambda e: e.remove("torch"),
        "torch-missing",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130",
    ),
    "CPU build of torch beside a GPU": (
        lambda e: e.install_torch("2.13.0+cpu", None),
        "torch-cpu-build",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130",
    ),
    "torch for a newer CUDA than the driver's": (
        older_driver,
        "torch-newer-than-driver",
        "update the NVIDIA driver, or pip install --force-reinstall torch "
        "--index-url https://download.pytorch.org/whl/cu128",
    ),
    "torch without kernels for the GPU": (
        lambda e: e.install_torch(sm="sm_120"),
        "torch-without-this-gpu",
        "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130",
    ),
    "old torch": (lambda e: e.install_torch("2.4.0+cu124"), "torch-old", "pip install --upgrade 'torch>=2.9'"),
    "old onnx": (package("onnx", "1.16.2"), "onnx-old", "pip install --upgrade 'onnx>=1.18'"),
    "no onnxscript": (
        lambda e: e.remove("onnxscript"),
        "onnxscript-missing",
        "pip install 'onnxscript>=0.5.4'",
    ),
    "package without a package that it needs": (
        package("onnxscript", "0.7.2", "import ml_dtypes_of_onnx"),
        "onnxscript-broken",
        "pip install ml_dtypes_of_onnx",
    ),
    "script called like a package": (shadow, "onnx-shadowed", "mv onnx.py my_onnx.py"),
    "package for another NumPy": (
        package("onnxruntime", "1.32.0", "raise ValueError('numpy.dtype size changed, may indicate incompatibility')"),
        "onnxruntime-broken",
        "pip install --upgrade --force-reinstall --no-cache-dir numpy 'onnxruntime>=1.22'",
    ),
    "package that ends the process": (
        package("onnxruntime", "1.32.0", "import os; os.abort()"),
        "onnxruntime-broken",
        "pip install --force-reinstall --no-cache-dir 'onnxruntime>=1.22'",
    ),
    "two ONNX Runtimes": (
        lambda e: e.distribute("onnxruntime-gpu", "1.24.0"),
        "onnxruntime-twice",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime>=1.22'",
    ),
    "another ModelOpt": (
        package("modelopt", "0.29.0", "", "nvidia-modelopt"),
        "modelopt-version",
        "pip install 'nvidia-modelopt>=0.47,<0.48'",
    ),
    "pycuda for another CUDA": (
        package("pycuda", "2025.1", "raise ImportError('libcurand.so.10: cannot open shared object file')"),
        "pycuda-broken",
        "pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda",
    ),
    "no TensorRT": (Environment.remove_rtx, "no-tensorrt", "pip install 'torch2engine[rtx]'"),
    "stub of TensorRT": (
        package("tensorrt", "10.16.1.11", "from tensorrt_bindings import *"),
        "tensorrt-stub",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "bindings without libnvinfer": (
        missing_library,
        "library-missing",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "wrong soname": (
        other_major_version,
        "library-of-another-major-version",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "libraries older than the bindings": (
        other_symbols,
        "library-of-another-version",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "old library on the loader's path": (path_trap, "library-path-trap", "unset LD_LIBRARY_PATH"),
    "second library on the loader's path": (two_libraries, "two-libraries", "unset LD_LIBRARY_PATH"),
    "pointer of Git LFS for a library": (
        lambda e: e.bindings().write_text("version https://git-lfs.github.com/spec/v1", encoding="utf-8"),
        "library-damaged",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "library of 32 bits": (
        wrong_class,
        "library-foreign",
        "pip install --force-reinstall --no-cache-dir --extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "library for a newer system": (
        old_system,
        "system-too-old",
        "use a newer system, e.g. a container of Ubuntu 24.04",
    ),
    "leftover folder": (
        leftover_folder,
        "tensorrt-leftover",
        "mv {site}/tensorrt {site}/tensorrt.old && pip install --force-reinstall --no-cache-dir "
        "--extra-index-url https://pypi.nvidia.com tensorrt",
    ),
    "wheels for two CUDAs": (
        lambda e: e.distribute("tensorrt-rtx-cu12-libs", "1.6.1.120"),
        "wheels-for-two-cudas",
        "pip uninstall -y tensorrt-rtx tensorrt-rtx-cu12-libs tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs "
        "&& pip install tensorrt-rtx-cu13",
    ),
    "wheels of two versions": (
        lambda e: (e.remove("tensorrt-rtx-cu13-libs"), e.distribute("tensorrt-rtx-cu13-libs", "1.7.1.116")),
        "wheels-of-two-versions",
        "pip install --force-reinstall tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116",
    ),
    "RTX 1.7 on Hopper": (
        lambda e: (
            e.remove_rtx(),
            e.install("tensorrt_rtx", "1.7.1.116", "", ("tensorrt-rtx",)),
            e.install_torch(sm="sm_90"),
            e.with_variables({"FAKE_MAJOR": "9", "FAKE_MINOR": "0"}),
        ),
        "gpu-unsupported",
        "pip install 'tensorrt-rtx==1.6.1.120', or use TensorRT",
    ),
    "GPU that is too old": (
        lambda e: (e.install_torch(sm="sm_61"), e.with_variables({"FAKE_MAJOR": "6", "FAKE_MINOR": "1"})),
        "gpu-unsupported",
        "use a newer GPU, or runtime='onnxruntime'",
    ),
    "wheels newer than the driver": (
        lambda e: (e.install_torch("2.13.0+cu128", "12.8"), e.with_variables({"FAKE_CUDA": "12080"})),
        "wheel-newer-than-driver",
        "update the NVIDIA driver, or pip uninstall -y tensorrt-rtx tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs "
        "&& pip install tensorrt-rtx-cu12",
    ),
    "hidden GPU": (
        variables(CUDA_VISIBLE_DEVICES="", FAKE_STATUS="100"),
        "gpu-hidden",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "driver without a GPU": (
        variables(FAKE_COUNT="0"),
        "no-gpu",
        "see whether `nvidia-smi` lists the GPU, and start containers with `--gpus all`",
    ),
    "driver that was updated": (variables(FAKE_STATUS="803"), "driver-mismatch", "restart the machine"),
    "stub of the driver": (
        variables(FAKE_STATUS="34"),
        "driver-stub",
        "take the folder `stubs` out of LD_LIBRARY_PATH",
    ),
    "compatibility package": (
        variables(FAKE_STATUS="804"),
        "driver-compat",
        "take the folder `compat` out of LD_LIBRARY_PATH",
    ),
    "driver without device files": (
        variables(FAKE_STATUS="999"),
        "driver-unknown",
        "sudo nvidia-modprobe -u -c=0, or restart the machine",
    ),
    "TF32 override": (variables(NVIDIA_TF32_OVERRIDE="1"), "tf32-override", "unset NVIDIA_TF32_OVERRIDE"),
    "launch blocking": (variables(CUDA_LAUNCH_BLOCKING="1"), "launch-blocking", "unset CUDA_LAUNCH_BLOCKING"),
    "cache that can't be written": (
        read_only_cache,
        "cache-read-only",
        "export XDG_CACHE_HOME=$HOME/.cache, or pass cache='a folder of yours'",
    ),
    "cache that everybody may write to": (
        open_cache,
        "cache-open-to-all",
        "chmod o-w {home}/.cache/torch2engine/engines-2",
    ),
}


def test_broken_environments_are_many_and_of_many_kinds() -> None:
    """At least 25 different findings are planted, each with a line that mends it."""
    assert len({finding for _, finding, _ in CASES.values()}) >= 25
    assert all(cure for _, _, cure in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_cause_and_cure_are_named(name: str, tmp_path: Path, driver: Path) -> None:
    """Of one thing that is broken the doctor finds that thing and nothing else, with the line that mends it."""
    change, finding, cure = CASES[name]
    environment = Environment(tmp_path, driver)
    change(environment)
    found = findings_of(machine_of(environment))
    assert [each.name for each in found] == [finding], "\n".join(map(str, found))
    assert found[0].cure == cure.format(site=environment.site, home=environment.folder / "home")


def test_machine_without_a_driver_is_told_what_works(tmp_path: Path) -> None:
    """A CPU machine is no fault; the CUDA build of torch, which brings gigabytes, is mentioned."""
    environment = Environment(tmp_path, tmp_path / "nothing")
    names = {finding.name: finding.severity for finding in findings_of(machine_of(environment))}
    assert names == {"no-driver": "note", "torch-cuda-build": "note"}


def test_torch_for_the_cpu_comes_from_its_own_index_where_there_is_no_gpu(tmp_path: Path) -> None:
    """The line that installs torch does not bring CUDA to a machine that has none."""
    environment = Environment(tmp_path, tmp_path / "nothing")
    environment.remove("torch")
    found = {finding.name: finding.cure for finding in findings_of(machine_of(environment))}
    assert found["torch-missing"] == "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def test_full_disk_is_found(tmp_path: Path, driver: Path) -> None:
    """Engines of large models need room, and a command makes some."""
    machine = machine_of(Environment(tmp_path, driver))
    assert [finding.name for finding in check_surroundings(machine, free_bytes=1 << 20)] == ["disk-full"]
    assert list(check_surroundings(machine, free_bytes=1 << 40)) == []


def test_what_is_required_is_what_the_project_depends_on() -> None:
    """The doctor's table and pyproject.toml are one list."""
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.M | re.S)
    assert listed is not None
    assert dict(re.findall(r'"([\w-]+)>=([\d.]+)"', listed[1])) == REQUIRED


def test_doctor_runs_without_click(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing optional is installed the doctor still answers, with the same words and the same JSON."""
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "torch2engine.cli.app", raising=False)
    machine = Machine({"version": "3.9.0", "system": "Linux", "machine": "x86_64"}, {}, {}, *_nothing())
    finding = DoctorFinding(name="python-old", severity="fault", found="Python 3.9.0", why="it is old", cure="renew it")
    monkeypatch.setattr("torch2engine.cli.doctor.examination.examine_machine", lambda _: machine)
    monkeypatch.setattr("torch2engine.cli.doctor.examination.findings_of", lambda _: [finding])
    text = run_command("doctor")
    assert (text.code, text.out.splitlines()[-4:]) == (
        1,
        ["FAULT  Python 3.9.0", "    why   it is old", "    fix   renew it", "1 faults, 0 warnings, 0 notes"],
    )
    assert json.loads(run_command("doctor", "--json").out)["findings"] == [finding.to_json()]


def _nothing() -> tuple[object, dict[str, str]]:
    from torch2engine.cli.doctor.machine import Driver

    return Driver(), {}


def test_doctor_imports_nothing_that_it_examines(run_python: Callable[[str], object]) -> None:
    """It works where every package is broken, since only its child process imports them."""
    code = (
        "import json, sys\nimport torch2engine.cli.doctor.examination\n"
        "print(json.dumps([name for name in ('numpy', 'torch', 'onnx', 'rich', 'click') if name in sys.modules]))"
    )
    assert run_python(code) == []


def test_doctor_without_a_folder_for_temporary_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't collect facts there, and names the cure."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ArtifactError, match=r"No such file .*; point TMPDIR at a folder with room"):
        examine_machine({})

"""Checks of Python packages: missing, broken, too old, or in each other's way.

Enters: a `Machine`. Leaves: findings. Separate because what torch2engine needs stands here in one table, which a test
compares with `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch2engine.cli.doctor.doctor_finding import DoctorFinding, fault
from torch2engine.cli.doctor.loader import read_loader_error
from torch2engine.cli.doctor.machine import Imported, Machine, release

__all__ = ["REQUIRED", "check_packages"]

REQUIRED = {
    "numpy": "1.26",
    "torch": "2.9",
    "onnx": "1.18",
    "onnxruntime": "1.22",
    "onnxscript": "0.5.4",
    "rich": "13.7",
    "platformdirs": "4",
}
"""Distribution -> the oldest version that torch2engine works with. Each is imported under its own name."""

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_CUDA_INDEX = "https://download.pytorch.org/whl/cu{}"
# The wheels of PyTorch, by the newest CUDA that a driver supports.
_TORCH_BUILDS = (((13, 0), "130"), ((12, 8), "128"), ((12, 6), "126"))
_MODELOPT = ((0, 47), (0, 48))


def check_packages(machine: Machine) -> Iterator[DoctorFinding]:
    """Look at what torch2engine imports, and at known bad pairs."""
    for name, oldest in REQUIRED.items():
        yield from _check_required(machine, name, oldest)
    if machine.imports["torch"].works:
        yield from _check_torch_build(machine)
    yield from _check_onnxruntime_pair(machine)
    yield from _check_modelopt(machine)
    yield from _check_pycuda(machine)


def _check_required(machine: Machine, name: str, oldest: str) -> Iterator[DoctorFinding]:
    module = machine.imports[name]
    why = f"torch2engine needs {name} {oldest} or later"
    requirement = f"'{name}>={oldest}'"
    if module.is_absent(name):
        cure = _cure_for_missing_torch(machine) if name == "torch" else f"pip install {requirement}"
        yield fault(f"{name}-missing", f"{name} is not installed", why, cure)
    elif shadow := _shadow(machine, module):
        yield fault(
            f"{name}-shadowed",
            f"'import {name}' finds your own {shadow}",
            f"Python looks in the current folder first, so {name} itself is hidden",
            f"mv {shadow} my_{shadow.name}",
        )
    elif module.error:
        yield from _check_broken(name, module, requirement, why)
    elif not module.works:
        places = ", ".join(module.folders)
        cure = f"pip install --force-reinstall {requirement}"
        yield fault(f"{name}-broken", f"{name} is a folder without a package in it ({places})", why, cure)
    elif release(version := machine.version_of(name) or module.version) < release(oldest):
        found = f"{name} {version}"
        yield fault(f"{name}-old", found, why, f"pip install --upgrade {requirement}")


def _check_broken(name: str, module: Imported, requirement: str, why: str) -> Iterator[DoctorFinding]:
    cure = f"pip install --force-reinstall --no-cache-dir {requirement}"
    loader = read_loader_error(module.error)
    if module.missing is not None:
        cure = f"pip install {module.missing.partition('.')[0]}"
    elif loader is not None and loader.kind == "system":
        cure = f"use a system with {loader.detail}, e.g. a container of Ubuntu 24.04, or an older {name}"
    elif "numpy.dtype size changed" in module.error or "compiled using NumPy 1" in module.error:
        cure = f"pip install --upgrade --force-reinstall --no-cache-dir numpy {requirement}"
    yield fault(f"{name}-broken", f"{name} is installed but can't be imported: {module.error}", why, cure)


def _shadow(machine: Machine, module: Imported) -> Path | None:
    """The user's file in the current folder that Python takes for a package, by its name relative to that folder."""
    here = Path(machine.python["folder"])
    files = [Path(file) for file in (module.file, *module.facts.get("frames", ())) if file]
    return next((Path(file.name) for file in files if file.resolve().parent == here), None)


def _check_torch_build(machine: Machine) -> Iterator[DoctorFinding]:
    """A PyTorch for the CPU beside a GPU, one for CUDA without a GPU, or one for other GPUs or a newer driver."""
    torch = machine.imports["torch"]
    built_for = torch.facts.get("cuda")
    driver = machine.driver
    if driver.gpus and not built_for:
        yield fault(
            "torch-cpu-build",
            f"torch {torch.version} is a CPU build, and there is a {driver.gpus[0][0]}",
            "a TRTModule works on CUDA tensors, which this torch does not have",
            _cure_with_cuda(machine),
        )
    elif built_for and not driver.has_library:
        yield DoctorFinding(
            name="torch-cuda-build",
            severity="note",
            found=f"torch {torch.version} for CUDA {built_for}, and no NVIDIA driver",
            why="it works, but brings gigabytes of CUDA libraries that nothing here can use",
            cure=f"pip install --force-reinstall torch --index-url {_CPU_INDEX}",
        )
    elif built_for and driver.gpus and driver.cuda[0] < release(str(built_for))[0]:
        yield fault(
            "torch-newer-than-driver",
            f"torch {torch.version} for CUDA {built_for}, and a driver for CUDA {driver.cuda[0]}.{driver.cuda[1]}",
            "the driver can't run what a newer major version of CUDA has compiled",
            f"update the NVIDIA driver, or {_cure_with_cuda(machine)}",
        )
    elif built_for and driver.gpus:
        yield from _check_architectures(machine, torch)


def _check_architectures(machine: Machine, torch: Imported) -> Iterator[DoctorFinding]:
    compiled = [str(word).partition("_")[2].rstrip("af") for word in torch.facts.get("architectures", ())]
    for name, (major, minor) in machine.driver.gpus:
        if compiled and not any(word[:-1] == str(major) and int(word[-1]) <= minor for word in compiled):
            yield fault(
                "torch-without-this-gpu",
                f"torch {torch.version} has no kernels for the {name} (compute capability {major}.{minor})",
                "PyTorch itself can't compute on this GPU",
                _cure_with_cuda(machine),
            )


def _check_onnxruntime_pair(machine: Machine) -> Iterator[DoctorFinding]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if machine.version_of(name)]
    if len(both) == 2:
        yield DoctorFinding(
            name="onnxruntime-twice",
            severity="warning",
            found="onnxruntime and onnxruntime-gpu are both installed",
            why="they write into the same folder, so what runs is whichever came last",
            cure="pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime>=1.22'",
        )


def _check_modelopt(machine: Machine) -> Iterator[DoctorFinding]:
    version = machine.version_of("nvidia-modelopt")
    first, after = _MODELOPT
    if version and not first <= release(version) < after:
        yield DoctorFinding(
            name="modelopt-version",
            severity="warning",
            found=f"nvidia-modelopt {version}",
            why="fp16, bf16, int8 and fp8 are tested with 0.47 alone",
            cure="pip install 'nvidia-modelopt>=0.47,<0.48'",
        )
    elif version and machine.imports["modelopt"].error:
        yield fault(
            "modelopt-broken",
            f"nvidia-modelopt {version} can't be imported: {machine.imports['modelopt'].error}",
            "fp16, bf16, int8 and fp8 need it",
            "pip install --force-reinstall 'torch2engine[quantize]'",
        )


def _check_pycuda(machine: Machine) -> Iterator[DoctorFinding]:
    module = machine.imports["pycuda.driver"]
    if module.error and machine.version_of("pycuda") and machine.driver.has_library:
        yield fault(
            "pycuda-broken",
            f"pycuda {machine.version_of('pycuda')} can't be imported: {module.error}",
            "Processor needs it; it is compiled for one version of CUDA when it is installed",
            "pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda",
        )


def _cure_for_missing_torch(machine: Machine) -> str:
    return _cure_with_cuda(machine) if machine.driver.gpus else f"pip install torch --index-url {_CPU_INDEX}"


def _cure_with_cuda(machine: Machine) -> str:
    """The line that installs PyTorch for the newest CUDA that the driver supports."""
    for needed, build in _TORCH_BUILDS:
        if machine.driver.cuda >= needed:
            return f"pip install --force-reinstall torch --index-url {_CUDA_INDEX.format(build)}"
    return "update the NVIDIA driver to one for CUDA 12.6 or later, and install torch again"

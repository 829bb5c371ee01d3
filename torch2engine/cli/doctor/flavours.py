"""Checks of TensorRT and TensorRT-RTX: absent, stubs, broken libraries, versions that don't fit.

Enters: a `Machine`. Leaves: findings. Separate because TensorRT comes in four wheels for each CUDA version, and each
may be missing or of another version than the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch2engine.cli.doctor.doctor_finding import DoctorFinding, fault
from torch2engine.cli.doctor.loader import LoaderError, read_loader_error
from torch2engine.cli.doctor.machine import Imported, Machine, release

__all__ = ["check_flavours"]

_NVIDIA_INDEX = "https://pypi.nvidia.com"
_OLDEST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class Flavour:
    """One product, as it is installed.

    Args:
        title: its name for people.
        package: the distribution that users ask for.
        module: what it is imported as.
        extra: the extra of torch2engine that brings it.
        library: the beginning of its main library's file name.
    """

    title: str
    package: str
    module: str
    extra: str
    library: str

    def distributions(self, machine: Machine) -> dict[str, str]:
        """{name: version} of the distributions that it is made of."""
        other = "tensorrt-rtx"
        return {
            name: versions[0]
            for name, versions in machine.distributions.items()
            if name == self.package
            or (
                (name.startswith(f"{self.package}-") and (self.package == other or not name.startswith(other)))
                and any(part in name for part in ("-cu", "-bindings", "-libs"))
            )
        }


FLAVOURS = (
    Flavour("TensorRT", "tensorrt", "tensorrt", "tensorrt", "libnvinfer.so"),
    Flavour("TensorRT-RTX", "tensorrt-rtx", "tensorrt_rtx", "rtx", "libtensorrt_rtx.so"),
)


def check_flavours(machine: Machine) -> Iterator[DoctorFinding]:
    """Look at each flavour, whether it is installed or left over."""
    present = [flavour for flavour in FLAVOURS if not _is_absent(machine, flavour)]
    if not present:
        yield _no_flavour(machine)
    for flavour in present:
        yield from _check_wheels(machine, flavour)
        yield from _check_import(machine, flavour)
        yield from _check_loader_path(machine, flavour)
        yield from _check_gpus(machine, flavour)


def _is_absent(machine: Machine, flavour: Flavour) -> bool:
    return machine.imports[flavour.module].is_absent(flavour.module) and not flavour.distributions(machine)


def _no_flavour(machine: Machine) -> DoctorFinding:
    return DoctorFinding(
        name="no-tensorrt",
        severity="warning" if machine.driver.gpus else "note",
        found="neither TensorRT nor TensorRT-RTX is installed",
        why="no engine can be built or run; ONNX Runtime answers with runtime='onnxruntime'",
        cure="pip install 'torch2engine[rtx]'",
    )


def _check_wheels(machine: Machine, flavour: Flavour) -> Iterator[DoctorFinding]:
    """Wheels of one flavour for two CUDA versions, or of two versions."""
    wheels = flavour.distributions(machine)
    parts_of_names = {part for name in wheels for part in name.split("-")}
    cudas = sorted(part for part in parts_of_names if part.startswith("cu") and part[2:].isdigit())
    if len(cudas) > 1:
        kept = f"{flavour.package}-cu12" if machine.driver.cuda[0] == 12 else f"{flavour.package}-cu13"
        yield DoctorFinding(
            name="wheels-for-two-cudas",
            severity="fault",
            found=f"wheels of {flavour.title} for {' and '.join(cudas)}",
            why="they write into the same folder, so bindings of one meet libraries of the other",
            cure=f"pip uninstall -y {' '.join(sorted(wheels))} && pip install {kept}",
        )
        return
    parts = {name: version for name, version in wheels.items() if name.endswith(("-bindings", "-libs"))}
    if len(set(parts.values())) > 1:
        newest = max(parts.values(), key=release)
        listed = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
        yield DoctorFinding(
            name="wheels-of-two-versions",
            severity="fault",
            found=listed,
            why="bindings and libraries must be of one version",
            cure="pip install --force-reinstall " + " ".join(f"{name}=={newest}" for name in sorted(parts)),
        )


def _check_import(machine: Machine, flavour: Flavour) -> Iterator[DoctorFinding]:
    module = machine.imports[flavour.module]
    reinstall = f"pip install --force-reinstall --no-cache-dir --extra-index-url {_NVIDIA_INDEX} {flavour.package}"
    loader = read_loader_error(module.error)
    if loader is not None:
        yield _loader_finding(machine, flavour, loader, reinstall)
    elif module.missing is not None:
        yield fault(
            "tensorrt-stub",
            f"{flavour.package} {_version(machine, flavour)} without its module {module.missing}",
            "the wheel that pip found is a stub, which brings the real ones only from NVIDIA's index",
            reinstall,
        )
    elif module.error:
        yield fault(
            "tensorrt-broken",
            f"{flavour.title} is installed but can't be imported: {module.error}",
            "no engine can be built or run",
            reinstall,
        )
    elif not module.works:
        places = " ".join(module.folders)
        yield fault(
            "tensorrt-leftover",
            f"'{flavour.module}' is an empty folder ({places})",
            "Python imports it as a package without anything in it, and never gets to TensorRT",
            f"mv {places} {places}.old && {reinstall}",
        )


def _loader_finding(machine: Machine, flavour: Flavour, loader: LoaderError, reinstall: str) -> DoctorFinding:
    title = flavour.title
    foreign = _libraries(machine.folders_of("LD_LIBRARY_PATH"), flavour)
    if loader.kind == "symbol" and foreign:
        return fault(
            "library-path-trap",
            f"LD_LIBRARY_PATH holds {foreign[0]}, which lacks {loader.detail}",
            f"the loader takes it instead of the library that came with {title}",
            "unset LD_LIBRARY_PATH",
        )
    if loader.kind == "missing":
        return _missing_library(machine, flavour, loader, reinstall)
    reasons = {
        "damaged": (
            "library-damaged",
            f"{loader.library} is no library",
            "a download was cut off, or Git LFS left a pointer in its place",
        ),
        "foreign": (
            "library-foreign",
            f"{loader.library} is for another kind of machine",
            "it can't be loaded here",
        ),
        "symbol": (
            "library-of-another-version",
            f"{loader.library} needs the symbol {loader.detail}, which no library has",
            f"bindings and libraries of {title} are of different versions",
        ),
        "system": (
            "system-too-old",
            f"{loader.library} needs {loader.detail}, and the system has {machine.python['libc']}",
            f"this build of {title} is for newer systems",
        ),
    }
    name, found, why = reasons[loader.kind]
    cure = "use a newer system, e.g. a container of Ubuntu 24.04" if loader.kind == "system" else reinstall
    return fault(name, found, why, cure)


def _missing_library(machine: Machine, flavour: Flavour, loader: LoaderError, reinstall: str) -> DoctorFinding:
    """A library that the loader does not find: the driver's, one of another major version, or none at all."""
    if loader.library.startswith("libcuda.so"):
        return fault(
            "driver-library-missing",
            f"{flavour.title} needs {loader.library}, which is part of the driver",
            "there is no NVIDIA driver here, or the container does not see it",
            "install the driver, or start the container with `--gpus all`",
        )
    stem = loader.library.partition(".so")[0]
    places = [*machine.folders_of("LD_LIBRARY_PATH"), *_wheel_folders(machine)]
    others = [path.name for folder in places if folder.is_dir() for path in sorted(folder.glob(f"{stem}.so*"))]
    if others:
        return fault(
            "library-of-another-major-version",
            f"{flavour.title}'s bindings need {loader.library}, and there is {', '.join(dict.fromkeys(others))}",
            "bindings and libraries are of different major versions",
            reinstall,
        )
    return fault(
        "library-missing",
        f"{flavour.title} needs {loader.library}, which is nowhere on the loader's path",
        "the bindings are here, and the libraries are not",
        reinstall,
    )


def _check_loader_path(machine: Machine, flavour: Flavour) -> Iterator[DoctorFinding]:
    """A second TensorRT, which the loader finds before the wheel's."""
    found = _libraries(machine.folders_of("LD_LIBRARY_PATH"), flavour)
    wheels = _libraries(_wheel_folders(machine), flavour)
    if found and wheels and machine.imports[flavour.module].works:
        yield DoctorFinding(
            name="two-libraries",
            severity="warning",
            found=f"{found[0]} by LD_LIBRARY_PATH, and {wheels[0]} of the wheel",
            why="which of them is loaded depends on the order of imports",
            cure="unset LD_LIBRARY_PATH",
        )


def _check_gpus(machine: Machine, flavour: Flavour) -> Iterator[DoctorFinding]:
    """A driver or a GPU that this version does not run on."""
    version = _version(machine, flavour)
    driver = machine.driver
    wheels = flavour.distributions(machine)
    if driver.gpus and driver.cuda[0] == 12 and any("-cu13" in name for name in wheels):
        yield fault(
            "wheel-newer-than-driver",
            f"{flavour.title} for CUDA 13, and a driver for CUDA {driver.cuda[0]}.{driver.cuda[1]}",
            "the driver can't run it",
            f"update the NVIDIA driver, or pip uninstall -y {' '.join(sorted(wheels))} && "
            f"pip install {flavour.package}-cu12",
        )
    for name, capability in driver.gpus:
        dotted = f"{capability[0]}.{capability[1]}"
        if flavour.module == "tensorrt_rtx" and capability == (9, 0) and release(version) >= (1, 7):
            yield fault(
                "gpu-unsupported",
                f"{flavour.title} {version} and a {name} (compute capability {dotted})",
                f"{flavour.title} refuses engines on this GPU from 1.7 on",
                "pip install 'tensorrt-rtx==1.6.1.120', or use TensorRT",
            )
        elif capability < _OLDEST_CAPABILITY:
            yield fault(
                "gpu-unsupported",
                f"{flavour.title} {version} and a {name} (compute capability {dotted})",
                f"{flavour.title} needs a compute capability of 7.5 or higher",
                "use a newer GPU, or runtime='onnxruntime'",
            )


def _version(machine: Machine, flavour: Flavour) -> str:
    module: Imported = machine.imports[flavour.module]
    return module.version or next(iter(flavour.distributions(machine).values()), "")


def _wheel_folders(machine: Machine) -> list[Path]:
    """Where the wheels put their libraries."""
    names = ("tensorrt_libs", "tensorrt_rtx_libs")
    return [Path(folder) / name for folder in machine.python["path"] for name in names if folder]


def _libraries(folders: Sequence[Path], flavour: Flavour) -> list[Path]:
    return [path for folder in folders if folder.is_dir() for path in sorted(folder.glob(f"{flavour.library}*"))]

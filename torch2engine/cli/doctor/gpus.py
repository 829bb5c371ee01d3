"""Checks of the NVIDIA driver.

Enters: a `Machine`. Leaves: findings. Separate because each status by which the driver refuses to start has a cure of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch2engine.cli.doctor.doctor_finding import DoctorFinding, fault
from torch2engine.cli.doctor.machine import Machine

__all__ = ["check_driver"]

_KERNEL_MODULE = Path("/proc/driver/nvidia")
_NO_DEVICE = 100


@dataclass(frozen=True)
class _StartFailure:
    """A status by which the driver refuses to start.

    Args:
        name: of the finding.
        why: what the status means.
        cure: the line to type or the thing to do.
    """

    name: str
    why: str
    cure: str


# CUresult of cuda.h -> what it means when the driver starts
_START_FAILURES = {
    34: _StartFailure(
        "driver-stub",
        "the libcuda.so.1 that was loaded is the CUDA toolkit's stub, which no program can run with",
        "take the folder `stubs` out of LD_LIBRARY_PATH",
    ),
    101: _StartFailure(
        "driver-bad-device", "the driver does not know a device that was asked for", "unset CUDA_VISIBLE_DEVICES"
    ),
    802: _StartFailure(
        "driver-fabric",
        "the GPUs of this machine wait for NVIDIA's fabric manager",
        "sudo systemctl restart nvidia-fabricmanager",
    ),
    803: _StartFailure(
        "driver-mismatch",
        "the driver's library and its kernel module are of different versions, as after an update",
        "restart the machine",
    ),
    804: _StartFailure(
        "driver-compat",
        "the CUDA compatibility package is on the loader's path, and does not support this GPU",
        "take the folder `compat` out of LD_LIBRARY_PATH",
    ),
    999: _StartFailure(
        "driver-unknown",
        "the driver fails when it starts, mostly because its device files are missing",
        "sudo nvidia-modprobe -u -c=0, or restart the machine",
    ),
}


def check_driver(machine: Machine) -> Iterator[DoctorFinding]:
    """Look at the driver and at what hides its GPUs."""
    driver = machine.driver
    if not driver.has_library:
        yield _no_library(machine)
    elif driver.status == _NO_DEVICE or (driver.status == 0 and not driver.gpus):
        yield _no_gpu(machine)
    elif driver.status:
        unknown = _StartFailure(
            "driver-fails", f"cuInit answers {driver.status}", "see whether `nvidia-smi` lists the GPU"
        )
        failure = _START_FAILURES.get(driver.status, unknown)
        found = f"the NVIDIA driver does not start (CUDA error {driver.status})"
        yield fault(failure.name, found, failure.why, failure.cure)


def _no_library(machine: Machine) -> DoctorFinding:
    if _KERNEL_MODULE.is_dir():
        return DoctorFinding(
            name="driver-library-missing",
            severity="fault",
            found=f"the driver's kernel module, but not its library ({machine.driver.error})",
            why="no program can use the GPU; a container that was started without it looks like this",
            cure="start the container with `--gpus all`, or install the driver's user-space package",
        )
    return DoctorFinding(
        name="no-driver",
        severity="note",
        found="no NVIDIA driver",
        why="engines can be built here (by TensorRT-RTX) but not run; ONNX Runtime answers on the CPU",
        cure="deploy with runtime='onnxruntime', or --runtime onnxruntime",
    )


def _no_gpu(machine: Machine) -> DoctorFinding:
    visible = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return DoctorFinding(
            name="gpu-hidden",
            severity="warning",
            found=f"CUDA_VISIBLE_DEVICES='{visible}' hides every GPU",
            why="CUDA programs in this shell see no GPU",
            cure="unset CUDA_VISIBLE_DEVICES",
        )
    return DoctorFinding(
        name="no-gpu",
        severity="warning",
        found="a driver without a GPU",
        why="engines can be built here (by TensorRT-RTX) but not run",
        cure="see whether `nvidia-smi` lists the GPU, and start containers with `--gpus all`",
    )

"""`torch2engine.trt.gpu` against a driver: a small shared library that answers as libcuda does, loaded for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Two GPUs; the environment decides how cuInit ends and how many are visible.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int current = -1;
static int from_environment(const char *name, int otherwise) { char *v = getenv(name); return v ? atoi(v) : otherwise; }
int cuInit(unsigned flags) { return from_environment("FAKE_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = from_environment("FAKE_COUNT", 2); return 0; }
int cuDeviceGet(int *device, int index) { *device = 100 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 100 ? "NVIDIA H200" : "NVIDIA L4", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 100 ? 150000000000 : 24000000000; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = device == 100 ? (attribute == 75 ? 9 : 0) : (attribute == 75 ? 8 : 9); return 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuGetErrorName(int status, const char **text) {
  *text = status == 100 ? "CUDA_ERROR_NO_DEVICE" : status == 3 ? "CUDA_ERROR_NOT_INITIALIZED"
        : status == 906 ? "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT" : 0; return *text == 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)(size_t)device; return from_environment("FAKE_RETAIN", 0); }
int cuCtxSetCurrent(void *context) { current = (int)(size_t)context; return 0; }
int cuStreamGetCaptureInfo_v2(void *stream, int *state, unsigned long long *id, void **graph, void ***nodes,
                              size_t *count) {
  if (graph || nodes || count) return 1;
  if (stream == (void *)0xC0000000C) { *state = 1; return 906; }
  *state = stream == (void *)0xA0000000A ? 1 : stream == (void *)0xB0000000B ? 2 : 0;
  if (*state == 1) *id = 0x100000007;
  return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (current < 0) return 3; *free = 5l << 20; *total = 8l << 20; return 0; }
int cuCtxGetDevice(int *device) { if (current < 0) return 3; *device = current - 100; return 0; }
"""
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.159.03", size); return 0; }
"""


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with libcuda, and NVML beside it that works or doesn't."""
    folders: dict[str, Path] = {}
    for name, nvml in (("nvml", NVML), ("no nvml", "int nvmlInit_v2(void) { return 9; }")):
        libraries = {"cuda": DRIVER, "nvidia-ml": nvml}
        folders[name] = tmp_path_factory.mktemp(name)
        for library, code in libraries.items():
            source = folders[name] / f"{library}.c"
            source.write_text(code)
            target = folders[name] / f"lib{library}.so.1"
            subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(target), str(source)], check=True)
    return folders


def ask(code: str, folder: Path, **environment: str) -> Any:
    """Run code in a process whose driver lies in `folder`; its last line, as JSON."""
    code = f"import json\nfrom torch2engine.trt import gpu\nfrom torch2engine.core.errors import *\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def message(call: str, folder: Path, **environment: str) -> str:
    """The text of the InstallationError that a call raises."""
    code = f"try:\n    {call}\nexcept InstallationError as error:\n    print(json.dumps(str(error)))"
    return ask(code, folder, **environment)


FACTS = (
    "print(json.dumps([[g.index, g.name, g.compute_capability, g.driver, g.memory_bytes] for g in gpu.list_gpus()]))"
)


def test_gpus_lists_every_device_in_order(drivers: dict[str, Path]) -> None:
    """Name, compute capability, driver and memory are the driver's own, NVML's version included."""
    assert ask(FACTS, drivers["nvml"]) == [
        [0, "NVIDIA H200", [9, 0], "580.159.03", 150_000_000_000],
        [1, "NVIDIA L4", [8, 9], "580.159.03", 24_000_000_000],
    ]


def test_driver_is_the_cuda_version_without_nvml(drivers: dict[str, Path]) -> None:
    """Where NVML can't be asked the driver is named by the newest CUDA version that it supports."""
    assert [fact[3] for fact in ask(FACTS, drivers["no nvml"])] == ["13.1", "13.1"]


def test_gpus_is_empty_without_a_device(drivers: dict[str, Path]) -> None:
    """A machine without a usable GPU is an empty list, never an error."""
    assert ask(FACTS, drivers["nvml"], FAKE_INIT="100") == []
    assert ask(FACTS, drivers["nvml"], FAKE_COUNT="0") == []


def test_require_gpu_names_what_cuda_says(drivers: dict[str, Path]) -> None:
    """The error holds the driver's own word and what to check."""
    assert message("gpu.require_gpu()", drivers["nvml"], FAKE_INIT="100") == (
        "NVIDIA driver: got CUDA_ERROR_NO_DEVICE when it starts; expected a driver that starts; "
        "check that `nvidia-smi` works and that CUDA_VISIBLE_DEVICES shows the GPU"
    )
    assert message("gpu.require_gpu()", drivers["nvml"], FAKE_INIT="999") == (
        "NVIDIA driver: got error 999 when it starts; expected a driver that starts; check that "
        "`nvidia-smi` works and that CUDA_VISIBLE_DEVICES shows the GPU"
    )


def test_require_gpu_names_the_fork(drivers: dict[str, Path]) -> None:
    """After a fork the cure is the start method, not the driver."""
    assert message("gpu.require_gpu()", drivers["nvml"], FAKE_INIT="3") == (
        "NVIDIA driver: got CUDA_ERROR_NOT_INITIALIZED when it starts; expected a driver that "
        "starts; CUDA does not survive a fork: start this process with multiprocessing's 'spawn' "
        "method"
    )


def test_require_gpu_names_the_hidden_devices(drivers: dict[str, Path]) -> None:
    """A driver that works but shows nothing is another cause than one that doesn't start."""
    assert message("gpu.require_gpu()", drivers["nvml"], FAKE_COUNT="0") == (
        "NVIDIA driver: got no GPU; expected at least one; show one in CUDA_VISIBLE_DEVICES"
    )


def test_require_gpu_names_the_missing_library(drivers: dict[str, Path]) -> None:
    """Without libcuda the driver itself is missing."""
    call = "gpu.CUDA_LIBRARIES = ('libcuda-of-nobody.so.1',); gpu.require_gpu()"
    assert message(call, drivers["nvml"]) == (
        "NVIDIA driver: got no libcuda-of-nobody.so.1 that can be loaded; expected an installed "
        "driver; install the driver until `nvidia-smi` lists the GPU; start a container with `--gpus "
        "all`"
    )


def test_require_gpu_refuses_an_index_beyond_the_last(drivers: dict[str, Path]) -> None:
    """The error counts what is visible."""
    assert message("gpu.require_gpu(2)", drivers["nvml"]) == (
        "GPU 2: got 2 GPUs in this process; expected at least 3; use an index below 2, or show more "
        "of them in CUDA_VISIBLE_DEVICES"
    )
    assert ask("print(json.dumps(gpu.require_gpu(1).name))", drivers["nvml"]) == "NVIDIA L4"


def test_current_index_follows_the_thread_and_starts_nothing(drivers: dict[str, Path]) -> None:
    """No context means None, without initialising the driver; afterwards it is the context's device."""
    code = "a = gpu.current_gpu_index(); gpu.make_gpu_current(1); print(json.dumps([a, gpu.current_gpu_index()]))"
    assert ask(code, drivers["nvml"]) == [None, 1]
    assert ask("print(json.dumps(gpu.current_gpu_index()))", drivers["nvml"], FAKE_INIT="999") is None


def test_make_current_names_the_refusal(drivers: dict[str, Path]) -> None:
    """A GPU that is there but can't be used is named with CUDA's word."""
    assert message("gpu.make_gpu_current(0)", drivers["nvml"], FAKE_RETAIN="100") == (
        "GPU 0 (NVIDIA H200): got no context (CUDA_ERROR_NO_DEVICE); expected a GPU that can be "
        "used; see with `nvidia-smi` whether its memory is full or another process holds it "
        "exclusively"
    )


def test_capture_id_tells_streams_apart(drivers: dict[str, Path]) -> None:
    """The id of the capture that a stream takes part in, all 64 bits of it; None for a stream that does not."""
    code = "print(json.dumps([gpu.find_capture_id(stream) for stream in (0xA0000000A, 0xD0000000A, 0)]))"
    assert ask(code, drivers["nvml"]) == [0x100000007, None, None]


def test_capture_id_names_a_capture_that_broke(drivers: dict[str, Path]) -> None:
    """An invalidated capture, or a stream that the driver won't tell of, is a DeviceError with the cure."""
    code = """
texts = []
for stream in (0xB0000000B, 0xC0000000C):
    try:
        gpu.find_capture_id(stream)
    except DeviceError as error:
        texts.append(str(error))
print(json.dumps(texts))
"""
    cure = "leave what synchronises, allocates or uses the default stream out of the capture, and capture again"
    assert ask(code, drivers["nvml"]) == [
        f"CUDA graph capture: got a capture that is no longer valid; expected work that can be captured; {cure}",
        f"CUDA graph capture: got CUDA_ERROR_STREAM_CAPTURE_IMPLICIT; expected work that can be captured; {cure}",
    ]


def test_driver_that_is_missing_is_named_when_it_is_needed(drivers: dict[str, Path]) -> None:
    """Whoever needs the library itself gets the line that installs it."""
    text = message("gpu.CUDA_LIBRARIES = ('libcuda-of-nobody.so.1',); gpu.find_capture_id(0)", drivers["nvml"])
    assert text.startswith(
        "NVIDIA driver: got no libcuda-of-nobody.so.1 that can be loaded; expected an installed driver; "
        "install the driver"
    )


def test_free_memory_is_that_of_the_current_gpu(drivers: dict[str, Path]) -> None:
    """A thread without a CUDA context says nothing about memory."""
    code = "before = gpu.describe_free_memory()\ngpu.make_gpu_current(0)\n"
    code += "print(json.dumps([before, gpu.describe_free_memory()]))"
    assert ask(code, drivers["nvml"]) == ["", "5 of 8 MiB of GPU memory are free"]

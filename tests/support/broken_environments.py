"""Environments for the doctor: a healthy one, and ways to break it as users do.

Enters: a folder. Leaves: fake packages in it, real libraries that fail to load, and a driver that says what it is told.
A room of its own because the doctor must see true errors of Python and of the dynamic loader, without a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Environment", "compiled_driver"]

HEALTHY = {
    "numpy": "2.4.6",
    "onnx": "1.23.2",
    "onnxruntime": "1.32.0",
    "onnxscript": "0.7.2",
    "rich": "15.0.0",
    "platformdirs": "4.14.7",
}
RTX = ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
TENSORRT = ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu13-libs")

_TORCH = """
__version__ = {version!r}
class version:
    cuda = {cuda!r}
class cuda:
    is_available = staticmethod(lambda: True)
    get_arch_list = staticmethod(lambda: {architectures!r})
"""
# A package that loads its own library, as TensorRT's bindings do.
_BINDINGS = """
import ctypes, pathlib
ctypes.CDLL(str(pathlib.Path(__file__).with_name("bindings.so")))
__version__ = {version!r}
"""
_DRIVER = """
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
int cuInit(unsigned flags) { return number("FAKE_STATUS", 0); }
int cuDriverGetVersion(int *version) { *version = number("FAKE_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake GPU", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = number(attribute == 75 ? "FAKE_MAJOR" : "FAKE_MINOR", attribute == 75 ? 8 : 6);
    return 0;
}
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR"; return 0; }
"""


def compiled(path: Path, source: str, *flags: str) -> Path:
    """A shared library of some C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *flags, "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True)
    return path


def compiled_driver(folder: Path) -> Path:
    """The folder of a libcuda.so.1 whose answers are variables of the environment, FAKE_STATUS and so on."""
    return compiled(folder / "libcuda.so.1", _DRIVER).parent


class Environment:
    """Fake site-packages and variables. Its first state is healthy: a GPU, and everything that works with it.

    Args:
        folder: an empty one, for everything.
        driver: from `compiled_driver`.
    """

    def __init__(self, folder: Path, driver: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.here = folder / "here"
        self.here.mkdir(parents=True)
        (folder / "home").mkdir()
        self.variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(self.site),
            "LD_LIBRARY_PATH": str(driver),
        }
        for name, version in HEALTHY.items():
            self.install(name, version)
        self.install_torch()
        self.install("tensorrt_rtx", "1.6.1.120", distributions=RTX)

    def install(self, module: str, version: str, text: str = "", distributions: tuple[str, ...] = ()) -> Path:
        """A package, with the distributions that brought it; its file."""
        file = self.site / module.replace(".", "/") / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(version=version) if text else f"__version__ = {version!r}\n", encoding="utf-8")
        for name in distributions or (module,):
            self.distribute(name, version)
        return file

    def install_torch(self, version: str = "2.13.0+cu130", cuda: str | None = "13.0", sm: str = "sm_86") -> None:
        """A PyTorch for some CUDA and some GPUs."""
        text = _TORCH.format(version=version, cuda=cuda, architectures=[sm] if cuda else [])
        self.remove("torch")
        self.install("torch", version).write_text(text, encoding="utf-8")

    def distribute(self, name: str, version: str) -> None:
        """The metadata of a distribution, whether its package is there or not."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")

    def remove(self, *names: str) -> None:
        """Uninstall packages and distributions."""
        for name in names:
            for path in [self.site / name.replace("-", "_"), *self.site.glob(f"{name.replace('-', '_')}-*.dist-info")]:
                shutil.rmtree(path, ignore_errors=True)

    def remove_rtx(self) -> None:
        """A machine where TensorRT-RTX was never installed."""
        self.remove("tensorrt_rtx")
        for folder in self.site.glob("tensorrt_rtx*"):
            shutil.rmtree(folder)

    def bindings(self, version: str = "10.16.1.11") -> Path:
        """TensorRT's wheels with bindings that load a library; the path where that must lie."""
        return self.install("tensorrt", version, _BINDINGS, TENSORRT).with_name("bindings.so")

    def linked_bindings(self, soname: str, symbol: str = "createInferBuilder_INTERNAL", version_node: str = "") -> Path:
        """Bindings that need a library of this name; the library, which may then be removed or changed."""
        bindings = self.bindings()
        library = self.site / "tensorrt_libs" / soname
        flags = [f"-Wl,-soname,{soname}"]
        if version_node:
            script = self.folder / "versions"
            script.write_text(f"{version_node} {{ global: *; }};", encoding="utf-8")
            flags.append(f"-Wl,--version-script={script}")
        compiled(library, f"int {symbol}(void) {{ return 1; }}", *flags)
        source = f"int {symbol}(void);\nint make(void) {{ return {symbol}(); }}"
        compiled(bindings, source, str(library), f"-Wl,-rpath,{library.parent}")
        return library

    def with_variables(self, changes: Mapping[str, str]) -> None:
        """Set variables of the environment."""
        self.variables.update(changes)

"""The child process of the doctor: it imports packages and asks the driver, and may die of it.

Enters: a file to write to, and names of modules. Leaves: one JSON value for each step in that file, written at once, so
that a crash leaves everything before it. Separate because an import may print, crash or hang. It is run by its path
with Python's own library alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[3])


def main(report: Path, names: list[str]) -> None:
    """Write facts about this interpreter, its packages and the driver."""
    _write(report, "python", _python())
    _write(report, "distributions", _distributions())
    _write(report, "begin", {"name": "driver"})
    _write(report, "driver", _driver())
    for name in names:
        _write(report, "begin", {"name": name})
        _write(report, "import", _import(name))


def _write(report: Path, kind: str, facts: dict[str, Any]) -> None:
    with report.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"kind": kind, **facts}) + "\n")


def _python() -> dict[str, Any]:
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "system": platform.system(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "path": list(sys.path),
        "folder": str(Path.cwd()),
    }


def _distributions() -> dict[str, Any]:
    """Every installed distribution; a name may have several versions if the folders of the path disagree."""
    versions: dict[str, list[str]] = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name and distribution.version not in versions.setdefault(name, []):
            versions[name].append(distribution.version)
    return {"versions": versions}


def _driver() -> dict[str, Any]:
    """Ask the driver for its facts, by starting it."""
    # behind everything that the user has installed
    sys.path.append(_PACKAGE_PARENT)
    import ctypes

    from torch2engine.core.errors import InstallationError
    from torch2engine.trt.gpu import list_gpus, load_driver

    try:
        cuda = load_driver()
    except InstallationError:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            return {"library": False, "error": str(error)}
        return {"library": False, "error": ""}
    status = int(cuda.cuInit(0))
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    gpus = () if status else list_gpus()
    return {
        "library": True,
        "status": status,
        "cuda": [version.value // 1000, version.value % 1000 // 10],
        "gpus": [{"name": gpu.name, "capability": list(gpu.compute_capability), "driver": gpu.driver} for gpu in gpus],
    }


def _import(name: str) -> dict[str, Any]:
    """Import one module; say where it lies, or why that fails."""
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        kind = type(error).__name__
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        return {"name": name, "error": f"{kind}: {error}", "missing": missing, "frames": frames}
    file = getattr(module, "__file__", None)
    facts: dict[str, Any] = {
        "name": name,
        "file": file,
        "folders": [str(folder) for folder in getattr(module, "__path__", ())],
        "version": str(getattr(module, "__version__", "")),
    }
    if name == "torch" and hasattr(module, "version"):
        facts["cuda"] = module.version.cuda
        facts["available"] = bool(module.cuda.is_available())
        facts["architectures"] = list(module.cuda.get_arch_list())
    return facts


if __name__ == "__main__":
    # Python puts the folder of this file first, which would hide what the user has in the current folder.
    sys.path[0] = ""
    main(Path(sys.argv[1]), sys.argv[2:])

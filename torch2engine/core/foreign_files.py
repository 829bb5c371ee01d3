"""A path that a call can't take → the call that can.

Enters: a path. Leaves: a cure for an error's text. Separate because `deploy`, `build` and `load` each refuse files that
another of them takes.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["cure_for_path"]

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors")
_PLAN_SUFFIXES = (".plan", ".engine", ".trt")
_MANIFEST = "manifest.json"


def cure_for_path(path: Path) -> str:
    """The fix for a path that a call can't use; "" if the path does not show it.

    >>> cure_for_path(Path("net.onnx"))
    "build an engine of it with torch2engine.build('net.onnx')"
    """
    if path.suffix == ".onnx":
        return f"build an engine of it with torch2engine.build({str(path)!r})"
    if path.suffix in _TORCH_SUFFIXES:
        return (
            "make the module in Python, give it these weights with module.load_state_dict(...), "
            "and call torch2engine.deploy(module, sample_input)"
        )
    if path.suffix in _PLAN_SUFFIXES:
        return "deploy or build the model again: a plan alone does not tell what its inputs mean"
    if (path / _MANIFEST).is_file():
        return f"load it with torch2engine.load({str(path)!r})"
    return ""

"""Running NVIDIA ModelOpt without its remarks, and with its failures as typed errors.

Enters: a block of code that calls ModelOpt. Leaves: silence, or an error of torch2engine. Separate because ModelOpt
writes to loggers, to the root logger and to warnings, all of which belong to the user.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from torch2engine.core.errors import ExportError, InstallationError
from torch2engine.core.loggers import only_errors
from torch2engine.core.wording import quote
from torch2engine.onnx_graph.ort_session import import_onnxruntime

__all__ = ["quiet_modelopt"]

_TALKATIVE_LOGGERS = ("modelopt", "modelopt.onnx", "modelopt.onnx.autocast", "onnx_graphsurgeon", "onnxslim")


@contextmanager
def quiet_modelopt(task: str) -> Generator[None]:
    """Run ModelOpt without its remarks.

    Args:
        task: the words for it in an error, e.g. "precision 'fp16'".

    Raises:
        InstallationError: ModelOpt, or something that it needs, is not installed.
        ExportError: it failed.
    """
    root = logging.getLogger()
    silent = logging.NullHandler()
    root.addHandler(silent)  # AutoCast logs to the root logger too, which would add a permanent handler to it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_onnxruntime()  # ModelOpt imports it too, with its telemetry on
            importlib.import_module("modelopt.onnx.autocast")  # its import sets its loggers' levels
            with only_errors(_TALKATIVE_LOGGERS):
                yield
    except ImportError as error:
        raise InstallationError(
            "nvidia-modelopt",
            got=f"no module that can be imported ({error})",
            allowed=f"nvidia-modelopt for {task}",
            fix="pip install 'torch2engine[quantize]'",
        ) from error
    except (InstallationError, ExportError):
        raise
    except Exception as error:
        raise ExportError(
            task,
            got=f"a failure of ModelOpt: {quote(error)}",
            allowed="a lowered graph",
            fix="keep the modules that it stumbles over in Precision(keep_fp32=[...])",
        ) from error
    finally:
        root.removeHandler(silent)

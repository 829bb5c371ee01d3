"""`make package` runs it where nothing but the built wheel is installed.

Enters: an environment. Leaves: a line about what worked, or a traceback. Separate from the tests because no file of the
checkout may be importable.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch2engine as t2e

SITE = Path(sysconfig.get_path("purelib"))
COMMAND = str(Path(sysconfig.get_path("scripts")) / "torch2engine")


def main() -> None:
    """Import, the command line, the doctor, and a model that is deployed, saved and loaded."""
    assert Path(t2e.__file__) == SITE / "torch2engine" / "__init__.py", t2e.__file__
    assert (SITE / "torch2engine" / "py.typed").is_file()
    assert importlib.util.find_spec("tests") is None, "the checkout can be imported"
    assert "deploy" in subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    doctor = subprocess.run([COMMAND, "doctor", "--json"], capture_output=True, text=True, check=False)
    assert json.loads(doctor.stdout)["torch2engine"] == t2e.__version__
    import torch

    model, sample = torch.nn.Linear(4, 2), torch.rand(3, 4)
    module = t2e.deploy(model, sample, {"input": {0: "batch"}}, runtime="onnxruntime", progress=False)
    assert module.report.passed
    with tempfile.TemporaryDirectory() as folder:
        loaded = t2e.load(module.save(Path(folder, "model.t2e")))
        torch.testing.assert_close(loaded(sample), module(sample))
    sys.stdout.write(
        f"torch2engine {t2e.__version__} works with Python {sys.version.split()[0]}, torch {torch.__version__}\n"
    )


if __name__ == "__main__":
    main()

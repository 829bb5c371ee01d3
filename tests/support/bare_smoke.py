"""`make package` runs it where the built distribution is installed alone: no torch, no NumPy, no click.

Enters: an environment. Leaves: a line about what worked, or a traceback. Separate from `installed_smoke`, which runs
where the dependencies are installed too, and from the tests, since no file of the checkout may be importable.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch2engine as t2e

SITE = Path(sysconfig.get_path("purelib"))
COMMAND = str(Path(sysconfig.get_path("scripts")) / "torch2engine")


def ended(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)


def main() -> None:
    """Import, every file's syntax, the doctor, and what the other commands say."""
    assert Path(t2e.__file__) == SITE / "torch2engine" / "__init__.py", t2e.__file__
    assert (SITE / "torch2engine" / "py.typed").is_file()
    present = [name for name in ("tests", "torch", "numpy", "click") if importlib.util.find_spec(name)]
    assert present == [], f"{present} can be imported"
    assert compileall.compile_dir(SITE / "torch2engine", quiet=1, force=True), "a file is no Python of this version"
    doctor = ended("doctor", "--json")
    facts = json.loads(doctor.stdout)
    assert doctor.stderr == "", doctor.stderr
    assert facts["torch2engine"] == t2e.__version__
    missing = {finding["name"] for finding in facts["findings"]}
    assert {"torch-missing", "onnx-missing", "numpy-missing"} <= missing, missing
    assert "pip install" in ended("doctor").stdout
    for words in (["--help"], ["inspect", "model.t2e"]):
        other = ended(*words)
        assert other.returncode == 4, other
        assert "`pip install 'torch2engine[cli]'`" in other.stderr, other.stderr
    sys.stdout.write(f"torch2engine {t2e.__version__} alone works with Python {sys.version.split()[0]}\n")


if __name__ == "__main__":
    main()

"""torchvision's detector on a real engine: `examples/detect_torchvision.py`.

Enters: FCOS with random weights. Leaves: proof that its boxes are torchvision's. Separate because torchvision's own
operators do not load beside a CPU build of torch, so that no machine without a GPU runs this example.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.support.paths import REPOSITORY


def test_network_runs_in_engines_and_the_choice_of_boxes_in_pytorch() -> None:
    """The example compares the boxes; here, that an engine takes the most of the operators, and why none takes all."""
    command = [sys.executable, str(REPOSITORY / "examples" / "detect_torchvision.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^20 boxes, as torchvision finds them$", done.stdout, re.M)
    assert re.search(r"^\d+ of \d+ parts in engines", done.stdout, re.M)
    assert re.search(r"^  aten\.where at .*fcos\.py:\d+: the size of its result depends on values", done.stdout, re.M)

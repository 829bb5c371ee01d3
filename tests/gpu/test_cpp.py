"""The program of `examples/cpp` on a real engine: it answers as Python does.

Enters: the headers of TensorRT-RTX's SDK at $TENSORRT_RTX_ROOT/include, CMake, a C++ compiler. Leaves: proof, and the
figure `cpp.equal`. Apart from the other tests because a compiler makes what is tested.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.xdist_group("cpp")  # the program is built once

PROFILES = [{"batch": (1, 4, 8)}, {"batch": (16, 32, 32)}]


class Whole(nn.Module):
    """Computes with whole numbers below 2048, so that every kernel and even TF32 gives the same bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.head = nn.Linear(4, 5)
        for parameter in self.parameters():
            parameter.data = torch.randint(-1, 2, parameter.shape).float()

    def forward(self, images: torch.Tensor, offset: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.conv(images.float()).relu().amax((2, 3))
        scores = self.head(features) + offset
        return {"scores": scores, "sums": images.int().sum((1, 2, 3)), "best": scores.argmax(1)}


def inputs(batch: int) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 4, (batch, 3, 6, 7), dtype=torch.uint8, device="cuda")
    return {"images": images, "offset": torch.arange(5.0, device="cuda") - 2}


@pytest.fixture(scope="module")
def module() -> t2e.TRTModule:
    torch.manual_seed(0)
    deployed = t2e.deploy(Whole().cuda().eval(), inputs(4), {"images": {0: "batch"}}, profiles=PROFILES)
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


def library_in_use() -> Path:
    """The file of TensorRT-RTX that this process has loaded."""
    paths = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    return next(Path(path) for path in paths if "/libtensorrt_rtx.so" in path)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(module: t2e.TRTModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run_engine`, built with the SDK's headers for the library that answers the Python calls."""
    headers = Path(os.environ.get("TENSORRT_RTX_ROOT", ""), "include").absolute()
    if not (headers / "NvInferRuntime.h").is_file():
        pytest.fail(f"no {headers}/NvInferRuntime.h: set TENSORRT_RTX_ROOT to the SDK of TensorRT-RTX")
    root = tmp_path_factory.mktemp("sdk")
    (root / "include").symlink_to(headers)
    (root / "lib").mkdir()
    library = library_in_use()
    for name in ("libtensorrt_rtx.so", library.name):
        (root / "lib" / name).symlink_to(library)
    build = root / "build"
    options = f"-DTENSORRT_RTX_ROOT={root}", f"-DCMAKE_PREFIX_PATH={root}"
    for ended in (
        run("cmake", "-S", REPOSITORY / "examples" / "cpp", "-B", build, *options),
        run("cmake", "--build", build),
    ):
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return build / "run_engine"


def answer(program: Path, artifact: Path, given: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What the program writes for these inputs, read by the dtypes and shapes that it prints."""
    folder = artifact.parent
    shapes: list[str] = []
    for name, tensor in given.items():
        (folder / f"{name}.bin").write_bytes(tensor.cpu().numpy().tobytes())
        shapes.append(f"{name}={','.join(map(str, tensor.shape))}")
    ended = run(program, artifact, folder, *shapes)
    assert (ended.returncode, ended.stderr) == (0, "")
    answers: dict[str, np.ndarray] = {}
    for line in ended.stdout.splitlines():
        name, dtype, shape = line.split(" ")
        answers[name] = np.fromfile(folder / f"{name}.bin", dtype).reshape([int(size) for size in shape.split(",")])
    return answers


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_cpp_program_answers_as_python_does(
    module: t2e.TRTModule, program: Path, batch: int, tmp_path: Path, figure: Callable[[str, float], None]
) -> None:
    """Every output has the same dtype, shape and bits, at sizes of the first profile and of the second."""
    module.save(tmp_path / "model.t2e")
    given = inputs(batch)
    expected = {name: tensor.cpu().numpy() for name, tensor in module(**given).items()}
    answers = answer(program, tmp_path / "model.t2e", given)
    assert answers.keys() == expected.keys()
    for name, array in expected.items():
        assert answers[name].dtype == array.dtype
        np.testing.assert_array_equal(answers[name], array)
    assert len(np.unique(expected["scores"])) > 3
    figure("cpp.equal", 1)


def test_cpp_program_refuses_what_no_profile_has(module: t2e.TRTModule, program: Path, tmp_path: Path) -> None:
    """Sizes between the profiles, an input without a shape, too many bytes, and a folder without an engine."""
    module.save(tmp_path / "model.t2e")
    for name, tensor in inputs(8).items():
        (tmp_path / f"{name}.bin").write_bytes(tensor.cpu().numpy().tobytes())

    def refusal(artifact: str, *shapes: str) -> str:
        ended = run(program, tmp_path / artifact, tmp_path, *shapes)
        assert ended.returncode == 1
        return ended.stderr

    assert refusal("model.t2e", "images=12,3,6,7", "offset=5").startswith("shapes: got others than every profile; ")
    assert refusal("model.t2e", "offset=5").startswith("shapes: got none for a dynamic input; ")
    assert "images.bin: got 1008 bytes; expected 882; " in refusal("model.t2e", "images=7,3,6,7", "offset=5")
    assert "manifest.json: got no file that can be read; " in refusal("other.t2e")

"""What users write around a deployed model, and the types that their editors show for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from typing_extensions import assert_type

import torch2engine as t2e


class Detector(nn.Module):
    """A model of two inputs and two outputs, with types."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and scores."""
        boxes: torch.Tensor = self.head(x) * scale
        return boxes, boxes.sum(1)


def deploy_on_a_gpu(model: Detector, sample: torch.Tensor) -> torch.Tensor:
    """The result of deploy() is one class, and its calls have the types of the model's forward."""
    module = t2e.deploy(model, sample, {"x": {0: t2e.Axis("batch", 1, 8, 32)}}, precision="fp16", cache=False)
    assert_type(module, t2e.TRTModule[Detector])
    boxes, scores = module(sample, scale=2.0)
    assert_type(boxes, torch.Tensor)
    module.warmup([{"batch": 1}])
    report: t2e.DeployReport = module.report
    assert report.passed and module.memory_bytes > 0
    return scores


def deploy_anywhere(model: Detector, sample: torch.Tensor, runtime: Literal["tensorrt", "onnxruntime", "auto"]) -> Path:
    """A runtime that is chosen later gives a union, whose members are called and saved alike."""
    on_cpu = t2e.deploy(model, sample, runtime="onnxruntime")
    assert_type(on_cpu, t2e.ORTModule[Detector])
    module = t2e.deploy(model, sample, runtime=runtime)
    boxes, _ = module(sample)
    assert_type(boxes, torch.Tensor)
    return module.save("model.t2e")


def deploy_with_fallback(model: nn.Module, sample: torch.Tensor) -> str:
    """With fallback=True the module may be in parts; a model without types has calls without types."""
    module = t2e.deploy(model, sample, runtime="auto", fallback=True)
    answer: torch.Tensor = module(sample)
    notes = module.report.notes
    obstacles = module.obstacles if isinstance(module, t2e.PartsModule) else ()
    return f"{answer.shape} {notes} {len(obstacles)}"


def deploy_layers(sample: torch.Tensor) -> torch.Tensor:
    """A Sequential is called with anything, as in PyTorch."""
    module = t2e.deploy(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), sample, runtime="onnxruntime")
    answer: torch.Tensor = module(sample)
    return answer


def load_again(path: Path, sample: torch.Tensor) -> torch.Tensor:
    """What is loaded has no model to take types from; its annotation needs no parameters."""
    engine = t2e.load(path, runtime="tensorrt")
    assert_type(engine, t2e.TRTModule)
    module: t2e.TRTModule | t2e.ORTModule = t2e.load(path)
    answer: torch.Tensor = module(sample)
    return answer if module.report.verdict == "passed" else sample


def options() -> tuple[t2e.BuildConfig, t2e.RuntimeConfig, t2e.Precision]:
    """Words are literals, so an editor completes them and a checker finds a misspelt one."""
    return (
        t2e.BuildConfig(flavour="tensorrt_rtx", refittable=True, mutations="write_back"),
        t2e.RuntimeConfig(cuda_graphs="auto", output="static", out_of_range="split"),
        t2e.Precision("int8", method="entropy", keep_fp32=["head"]),
    )


def stages(model: Detector, sample: torch.Tensor) -> t2e.EngineArtifact:
    """Each stage alone has a type too."""
    artifact = t2e.export(model, sample, precision="bf16")
    parity = t2e.check(model, artifact, sample, tolerance=t2e.Tolerance(rel_l2=1e-3))
    assert_type(parity.raise_if_failed(), t2e.ParityReport)
    try:
        return t2e.build(artifact, {"batch": (1, 8, 32)}, cache=True)
    except t2e.BuildError as error:
        raise SystemExit(error.fix) from error

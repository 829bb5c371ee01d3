"""torch.compile with this package as its backend, and deploy(fallback=True), on real engines.

Enters: models that no single engine takes. Leaves: proof that engines and PyTorch together answer like eager. Separate
because streams, refits and the devices of both halves are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.support.fallback_models import FourObstacles, Pyramid, ThreeObstacles, line_with

# torch 2.11 imports its own deprecated functions when it is reset
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Every test begins without graphs of another one."""
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def _small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).cuda().eval()


def _close(got: object, expected: object) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_model_with_four_obstacles_answers_like_eager_and_is_explained() -> None:
    """Engines take all but the four places, which are listed by file and line, and nothing else is."""
    torch.manual_seed(0)
    model = FourObstacles().cuda().eval()
    x = torch.rand(7, 3, 8, 8, device="cuda")
    compiled = torch.compile(model, backend=t2e.compile_backend)
    for _ in range(2):
        _close(compiled(x), model(x))
    torch._dynamo.reset()
    explanation = t2e.explain(model, x)
    assert len(explanation.parts) == 5
    assert all(part.runs_in.startswith("TensorRT") for part in explanation.parts), str(explanation)
    assert sorted(obstacle.source for obstacle in explanation.obstacles) == sorted(
        line_with(text)
        for text in (
            "places = torch.nonzero(",
            "if rows.sum() > 0:",
            "turn = torch.linalg.qr(",
            "rows = rows[rows[:, 0] > 1.5]",
        )
    )


def test_weights_that_change_are_refitted_on_the_gpu() -> None:
    """A write through .data, which no version counter shows, reaches the engine before the next answer."""
    model = _small()
    x = torch.rand(4, 16, device="cuda")
    compiled = torch.compile(
        model, backend=t2e.compile_backend, options={"config": t2e.BuildConfig(refittable=True), "cache": False}
    )
    _close(compiled(x), model(x))
    model[0].weight.data.mul_(2)
    _close(compiled(x), model(x))


def test_many_sizes_on_a_side_stream_answer_like_eager() -> None:
    """Sizes that vary run in engines for ranges of sizes, ready on the caller's stream."""
    model = _small()
    compiled = torch.compile(model, backend=t2e.compile_backend)
    stream = torch.cuda.Stream()
    for batch in (3, 5, 6, 9, 17):
        x = torch.rand(batch, 16, device="cuda")
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            answer = compiled(x)
        torch.cuda.current_stream().wait_stream(stream)
        _close(answer, model(x))


def test_tensors_on_two_devices_are_left_to_pytorch() -> None:
    """A graph with a tensor on the CPU and others on the GPU has no engine; it says so and answers."""
    scale = torch.tensor(2.0)

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return (x * scale).exp().sqrt()

    x = torch.rand(4, 16, device="cuda")
    (part,) = t2e.explain(scaled, x).parts
    assert part.runs_in == "PyTorch"
    assert "devices cpu, cuda:0" in part.reason
    _close(torch.compile(scaled, backend=t2e.compile_backend)(x), scaled(x))


def test_model_in_parts_answers_like_eager_within_its_axis() -> None:
    """deploy(fallback=True) makes engines of what lies around the operators that it leaves in PyTorch."""
    torch.manual_seed(0)
    model = ThreeObstacles().cuda().eval()
    axes = {"x": {0: t2e.Axis("batch", 5, 7, 9)}}
    module = t2e.deploy(model, torch.rand(7, 3, 8, 8, device="cuda"), axes, fallback=True)
    assert isinstance(module, t2e.PartsModule)
    for batch in (5, 6, 9):
        x = torch.rand(batch, 3, 8, 8, device="cuda")
        _close(module(x), model(x))
    assert len(module.obstacles) == 3, str(module.report)
    explanation = module.explain(torch.rand(7, 3, 8, 8, device="cuda"))
    assert all(part.runs_in.startswith("TensorRT") for part in explanation.parts), str(explanation)


def test_saved_model_in_parts_is_loaded_on_the_gpu_and_on_the_cpu(tmp_path: Path) -> None:
    """One folder answers by TensorRT, and by ONNX Runtime on a machine that has no GPU; a refit reaches all parts."""
    torch.manual_seed(0)
    model = ThreeObstacles().cuda().eval()
    x = torch.rand(7, 3, 8, 8, device="cuda")
    config = t2e.BuildConfig(refittable=True)
    module = t2e.deploy(model, x, config=config, fallback=True, cache=False)
    assert isinstance(module, t2e.PartsModule)
    loaded = t2e.load(module.save(tmp_path / "model.t2e"))
    assert isinstance(loaded, t2e.PartsModule)
    _close(loaded(x), model(x))
    on_cpu = t2e.load(tmp_path / "model.t2e", runtime="onnxruntime")
    _close(on_cpu(x.cpu()), [tensor.cpu() for tensor in model(x)])
    torch.manual_seed(1)
    other = ThreeObstacles().cuda().eval()
    assert loaded.stale(other)
    loaded.refit(other)
    _close(loaded(x), other(x))
    again = t2e.load(loaded.save(tmp_path / "model.t2e"))
    _close(again(x), other(x))
    with pytest.raises(t2e.DeviceError, match="got device cpu; expected cuda:0"):
        loaded(x.cpu())


def test_model_on_the_cpu_is_deployed_in_parts_to_the_gpu() -> None:
    """As with one engine, the sample's device does not decide where TensorRT runs."""
    torch.manual_seed(0)
    model = ThreeObstacles().eval()
    x = torch.rand(7, 3, 8, 8)
    module = t2e.deploy(model, x, fallback=True)
    assert module.device == torch.device("cuda", torch.cuda.current_device())
    _close([tensor.cpu() for tensor in module(x.cuda())], list(model(x)))
    assert next(model.parameters()).device.type == "cpu"


def test_model_in_parts_on_a_side_stream_under_autocast_answers_like_eager() -> None:
    """Engines and PyTorch work on the caller's stream, in the model's own dtypes."""
    torch.manual_seed(0)
    model = ThreeObstacles().cuda().eval()
    x = torch.rand(7, 3, 8, 8, device="cuda")
    module = t2e.deploy(model, x, fallback=True)
    expected = model(x)
    stream = torch.cuda.Stream()
    for _ in range(3):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.autocast("cuda", dtype=torch.float16):
            answer = module(x)
        torch.cuda.current_stream().wait_stream(stream)
        _close(answer, expected)


def test_sizes_that_follow_from_an_images_height_are_axes_of_the_parts() -> None:
    """Parts that get halves of the image's sides answer all of them; operators of every kind stay in PyTorch."""
    torch.manual_seed(0)
    model = Pyramid().cuda().eval()
    labels = torch.tensor([3, 1, 3, 2], device="cuda")
    axes = {"images": {2: t2e.Axis("height", 16, 32, 48), 3: t2e.Axis("width", 16, 24, 48)}}
    module = t2e.deploy(model, (torch.rand(4, 3, 32, 24, device="cuda"), labels), axes, fallback=True)
    assert isinstance(module, t2e.PartsModule)
    left = {obstacle.operator for obstacle in module.obstacles}
    assert {"torch2engine_test.raise_by", "torch2engine_test.split", "aten.fft_rfft", "aten._unique2"} <= left
    for sides in ((16, 48), (47, 17)):
        images = torch.rand(4, 3, *sides, device="cuda")
        _close(module(images, labels), model(images, labels))


def test_submodule_whose_inputs_require_gradients_is_answered_by_pytorch() -> None:
    """A pipeline is deployed with gradients enabled, and training through it goes on as before."""
    model = nn.Sequential(nn.Linear(16, 16).cuda(), _small()).eval()
    x = torch.rand(4, 16, device="cuda")
    with torch.enable_grad():
        deployed = t2e.deploy_submodules(model, lambda: model(x), ["1"])
        with pytest.warns(UserWarning, match="gradients are needed, so PyTorch itself answers"):
            model(x).sum().backward()
    assert model[0].weight.grad is not None
    in_engine = model(x)
    deployed.restore()
    _close(in_engine, model(x))


def test_submodules_of_a_pipeline_answer_on_the_gpu() -> None:
    """Recorded sizes are axes of the engines, the whole call is compared, and restoring is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(_small(), nn.Linear(8, 4).cuda().eval())
    calls = [torch.rand(batch, 16, device="cuda") for batch in (2, 5, 9)]
    before = [model(x) for x in calls]
    deployed = t2e.deploy_submodules(model, lambda: [model(x) for x in calls], ["0"])
    _close(model(torch.ones(7, 16, device="cuda")), model[1](deployed.modules["0"](torch.ones(7, 16, device="cuda"))))
    deployed.restore()
    assert all(torch.equal(model(x), one) for x, one in zip(calls, before, strict=True))


def test_compiled_model_is_as_fast_as_eager_or_refused_with_both_times() -> None:
    """A whole is timed beside eager with real engines: large layers are kept or refused, and answers are right."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 512), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*layers).cuda().eval()
    x = torch.rand(64, 512, device="cuda")
    compiled, refusals = model, list[str]()
    try:
        compiled = t2e.compile_if_faster(model, x, options={"weights": "versioned", "cache": False})
    except t2e.BuildError as error:
        refusals.append(str(error))
    assert all("compiled model: got" in said and "where PyTorch takes" in said for said in refusals)
    _close(compiled(x), model(x))

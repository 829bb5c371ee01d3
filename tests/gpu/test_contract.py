"""The call contract of TRTModule on a real engine: right or refused, never wrong.

Enters: calls as users make them. Leaves: proof. Apart from the CPU tests because streams and device memory are real.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Nested, Result, Scale, Tiny, tiny_inputs
from torch2engine.core.dtypes import lossless_cast

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().cuda().eval()


@pytest.fixture(scope="module")
def module(model: nn.Module) -> t2e.TRTModule:
    deployed = t2e.deploy(model, tiny_inputs(), TINY_AXES)
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


@pytest.fixture(scope="module")
def double() -> t2e.TRTModule:
    """x * 2 on [n, 64], exact."""
    deployed = t2e.deploy(Scale(), torch.randn(4, 64, device="cuda"), {"x": {0: t2e.Axis("n", 1, 64, 4096)}})
    assert isinstance(deployed, t2e.TRTModule)
    return deployed


def _close(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-4)
        else:
            assert got[key] == value


@torch.no_grad()
def test_answer_has_the_models_types_and_values(model: nn.Module, module: t2e.TRTModule) -> None:
    """Every leaf of the result is the model's: computed, passed through, duplicated and constant ones."""
    for batch in (1, 5, 32):
        inputs = tiny_inputs(batch)
        got = module(*inputs)
        _close(got, model(*inputs))
        assert all(value.is_cuda for value in got.values() if isinstance(value, torch.Tensor))


def test_nested_arguments_and_results() -> None:
    """Nested dicts, tuples, lists and NamedTuples go in by keyword and come out in the model's own types."""
    n = t2e.Axis("n", 1, 4, 8)
    x, a, b = torch.randn(4, 6, device="cuda"), torch.randn(4, device="cuda"), torch.randn(4, 3, device="cuda")
    axes = {"batch.pixels": {0: n}, "states.0": {0: "n"}, "states.1": {0: "n"}}
    module = t2e.deploy(Nested(), {"batch": {"pixels": x}, "states": (a, b)}, axes)
    got = module(states=(a[:2], b[:2]), batch={"pixels": x[:2]})
    assert isinstance(got, Result) and isinstance(got.parts, list)
    torch.testing.assert_close(got.mean, x[:2].mean(1) + a[:2])
    torch.testing.assert_close(got.parts, [x[:2] * 2, b[:2] - 1])


def test_pitfall_01_result_waits_for_the_inputs_writer(double: t2e.TRTModule) -> None:
    """An input whose writer is still running on the caller's stream is read after it, on every kind of stream."""
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        x = torch.zeros(64, 64, device="cuda")
        fresh = torch.randn(64, 64, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            x.copy_(fresh)
            result = double(x) + 1
            x.fill_(torch.nan)
        torch.cuda.synchronize()
        assert torch.equal(result, fresh * 2 + 1)


def test_pitfall_02_result_outlives_later_calls(double: t2e.TRTModule) -> None:
    """A kept result is not changed by later calls."""
    x = torch.randn(64, 64, device="cuda")
    first = double(x)
    for _ in range(20):
        double(torch.randn(64, 64, device="cuda"))
    assert torch.equal(first, x * 2)


def test_pitfall_03_strides_and_alignment(double: t2e.TRTModule) -> None:
    """Transposed, sliced, expanded, misaligned and negative-bit inputs are read as PyTorch reads them."""
    big = torch.randn(64, 65, device="cuda")
    flat = torch.randn(64 * 64 + 1, device="cuda")
    inputs = {
        "transposed": torch.randn(64, 32, device="cuda").t(),
        "sliced": big[::2, 1:],
        "expanded": torch.randn(1, 64, device="cuda").expand(16, 64),
        "misaligned": flat[1:].view(64, 64),
        "negative": torch.randn(8, 64, dtype=torch.complex64, device="cuda").conj().imag,
    }
    assert inputs["misaligned"].data_ptr() % 256 and inputs["negative"].is_neg()
    for name, x in inputs.items():
        assert torch.equal(double(x), x * 2), name


@torch.no_grad()
def test_channels_last_input(model: nn.Module, module: t2e.TRTModule) -> None:
    """A channels_last input gives the model's answer."""
    x, scale = tiny_inputs(6)
    _close(module(x.to(memory_format=torch.channels_last), scale), model(x, scale))


def test_pitfall_07_memory_is_not_recycled_under_a_running_call(double: t2e.TRTModule) -> None:
    """Inputs and temporaries that are freed right after the call are not overwritten before the engine read them."""
    wrong = 0
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            for index in range(60):
                x = torch.full((64, 4096), float(index), device="cuda").t()
                torch.cuda._sleep(2_000_000)
                y = double(x)
                del x
                torch.full((64, 4096), -1.0, device="cuda")
                wrong += int((y != 2.0 * index).sum())
    assert wrong == 0


@pytest.mark.parametrize("target", DTYPES, ids=str)
def test_pitfall_11_dtypes_cast_losslessly_or_not_at_all(target: torch.dtype) -> None:
    """For every pair of dtypes the engine answers as PyTorch does on the cast input, or refuses with DtypeError."""

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype == torch.bool:
                return x.logical_not()
            return x.float() * 2 if x.dtype in (torch.int8, torch.uint8) else x * 2

    sample = torch.randint(0, 2, (4, 8), device="cuda").to(target)
    module = t2e.deploy(Double(), sample, {"x": {0: t2e.Axis("n", 1, 4, 8)}})
    for source in (*DTYPES, torch.float64, torch.int16):
        x = _extremes(source)
        names = (str(source).removeprefix("torch."), str(target).removeprefix("torch."))
        if lossless_cast(*names):
            result = module(x)
            wanted = Double()(x.to(target))
            assert result.dtype == wanted.dtype
            assert torch.equal(result, wanted)
        else:
            with pytest.raises(t2e.DtypeError, match=f"input 'x': got dtype {names[0]}; expected {names[1]}"):
                module(x)


def _extremes(dtype: torch.dtype) -> torch.Tensor:
    """(3, 8) values of a dtype that a narrower one would lose, small enough to be doubled."""
    if dtype == torch.bool:
        return torch.tensor([[True, False] * 4] * 3, device="cuda")
    if dtype.is_floating_point:
        large = torch.finfo(dtype).max / 4
        values = [0.0, -0.0, 1 + torch.finfo(dtype).eps, -large, large, torch.finfo(dtype).tiny * 4, 0.1, -3.0]
        return torch.tensor([values] * 3, dtype=dtype, device="cuda")
    info = torch.iinfo(dtype)
    values = [0, 1, info.max // 2 - 1, info.max // 2, info.min // 2, info.min // 2 + 1, 3, 5]
    return torch.tensor([values] * 3, dtype=dtype, device="cuda")


def test_refusals_name_subject_got_allowed_fix(module: t2e.TRTModule) -> None:
    """What can't be answered is refused before anything is enqueued, each with its own typed error."""
    x, scale = tiny_inputs(4)
    cases: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (
            t2e.DeviceError,
            "input 'x': got device cpu; expected cuda:0, where the module runs; move it",
            (x.cpu(), scale.cpu()),
        ),
        (t2e.ShapeError, "got batch = 33; expected 1..32; redeploy with Axis", tiny_inputs(33)),
        (t2e.ShapeError, "got batch = 3, but 4 in input 'x'", (x, scale[:3])),
        (t2e.ShapeError, "got shape \\[4, 3, 8\\] of 3 dimensions", (x[..., 0], scale)),
        (t2e.ShapeError, "got dimension 2 = 4", (x[:, :, :4], scale)),
        (t2e.ShapeError, "got batch = 0; expected 1..32", (x[:0], scale[:0])),
        (t2e.DtypeError, "got dtype float64; expected float32", (x.double(), scale)),
        (t2e.InputError, "argument 'scale': got no value", (x,)),
        (t2e.InputError, "expected its default 2.0", (x, scale, 3.0)),
        (t2e.InputError, "at most 3", (x, scale, 2.0, 1)),
        (t2e.InputError, "requires grad while grad is enabled", (x.clone().requires_grad_(), scale)),
    ]
    for error, text, arguments in cases:
        with pytest.raises(error, match=text):
            module(*arguments)
    with torch.no_grad():
        assert module(x.clone().requires_grad_(), scale)["logits"].shape == (4, 5)


def test_pitfall_25_threads_share_a_module(double: t2e.TRTModule) -> None:
    """Eight threads with their own streams and shapes get their own answers."""
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        stream = torch.cuda.Stream() if seed % 2 else torch.cuda.default_stream()
        with torch.cuda.stream(stream):
            for index in range(100):
                x = torch.randn(1 + (seed * 31 + index * 7) % 256, 64, device="cuda", generator=generator)
                if not torch.equal(double(x), x * 2):
                    wrong.append(f"thread {seed}, call {index}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_contexts_memory_is_not_shared_by_running_calls() -> None:
    """Calls from two streams that both have work queued do not overwrite each other's working memory."""
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()))).cuda()
    sample = torch.randn(4, 16, 64, 64, device="cuda")
    module = t2e.deploy(model, sample, {"input": {0: t2e.Axis("n", 1, 4, 32)}})
    assert isinstance(module, t2e.TRTModule)
    inputs = [torch.randn(32, 16, 64, 64, device="cuda") for _ in range(2)]
    wanted = [module(x) for x in inputs]
    assert module.memory_bytes > 1 << 20
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(5_000_000)
        got: list[torch.Tensor] = []
        for _ in range(4):
            for stream, x in zip(streams, inputs, strict=True):
                with torch.cuda.stream(stream):
                    got.append(module(x))
        torch.cuda.synchronize()
        assert all(torch.equal(result, wanted[index % 2]) for index, result in enumerate(got))


@torch.no_grad()
def test_last_profile_may_be_called_first(model: nn.Module, tmp_path: Path) -> None:
    """A loaded engine answers when its first call falls into its last profile, and then into the first."""
    profiles = [{"batch": (1, 1, 1)}, {"batch": (2, 8, 32)}]
    module = t2e.deploy(model, tiny_inputs(), {"x": {0: "batch"}, "scale": {0: "batch"}}, profiles=profiles)
    module.save(tmp_path / "tiny.t2e")
    loaded = t2e.load(tmp_path / "tiny.t2e")
    for batch in (9, 1, 32):
        inputs = tiny_inputs(batch)
        _close(loaded(*inputs), model(*inputs))


def test_tracing_and_tangents_are_refused(double: t2e.TRTModule) -> None:
    """torch.jit.trace and forward-mode AD, which would get a frozen answer or no tangent, are typed errors."""
    x = torch.randn(8, 64, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on jit
        with pytest.raises(t2e.InputError, match="traced or exported"):
            torch.jit.trace(double, x)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(t2e.InputError, match="forward-mode tangent"):
                double(dual)


@torch.no_grad()
def test_module_behaves_as_a_module(model: nn.Module, module: t2e.TRTModule) -> None:
    """.cuda(), .to(device), .train() and .eval() work; casts and moves to the CPU are refused with the reason."""
    parent = nn.Sequential(module)
    assert parent.cuda().to("cuda:0").train().eval() is parent
    inputs = tiny_inputs(2)
    _close(module(*inputs), model(*inputs))
    with pytest.raises(t2e.InputError, match="a cast to float16"):
        parent.half()
    with pytest.raises(t2e.DeviceError, match="a move to cpu"):
        module.cpu()
    with torch.inference_mode():
        _close(module(*inputs), model(*inputs))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_low_precision_models(dtype: torch.dtype) -> None:
    """A half or bfloat16 model becomes an engine of that dtype, inputs and outputs included."""
    model = Tiny().to("cuda", dtype).eval()
    module = t2e.deploy(model, tiny_inputs(dtype=dtype), TINY_AXES)
    inputs = tiny_inputs(7, dtype)
    got, wanted = module(*inputs), model(*inputs)
    assert got["logits"].dtype == dtype
    torch.testing.assert_close(got["logits"], wanted["logits"], rtol=5e-2, atol=2e-2)


def test_model_on_the_cpu_deploys_to_the_gpu() -> None:
    """A model and sample on the CPU give a module on the current GPU, checked against the CPU's answers."""
    module = t2e.deploy(Tiny(), tiny_inputs(device="cpu"), TINY_AXES)
    assert module.device == torch.device("cuda", torch.cuda.current_device())
    assert module.report is not None and module.report.passed


class Summary(nn.Module):
    """Results without dimensions, and an input without any."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": (x * scale).mean(), "first": x[0, 0], "rows": x * scale}


@pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])
@pytest.mark.parametrize("output", ["fresh", "static"])
def test_values_without_dimensions(graphs: bool | str, output: str) -> None:
    """Scalars go in and come out with no dimensions, the model's values and, unless static, memory of their own."""
    x, scale = torch.randn(4, 6, device="cuda"), torch.tensor(3.0, device="cuda")
    config = t2e.RuntimeConfig(cuda_graphs=graphs, output=output)
    module = t2e.deploy(Summary(), (x, scale), {"x": {0: t2e.Axis("n", 1, 4, 8)}}, runtime_config=config)
    for rows in (4, 7):
        x = torch.randn(rows, 6, device="cuda")
        for _ in range(6):
            got, wanted = module(x, scale), Summary()(x, scale)
            assert {name: value.shape for name, value in got.items()} == {
                name: value.shape for name, value in wanted.items()
            }
            for name, value in wanted.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_pitfall_22_calls_too_large_for_the_gpu_say_so() -> None:
    """A call whose working memory can't fit is a BuildError that names memory, and smaller calls still answer."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 1, 3)).cuda()
    x = torch.randn(2, 3, 64, 64, device="cuda")
    artifact = t2e.export(model, x, {"input": {0: t2e.Axis("n", 1, 2, 400_000)}})
    module = t2e.TRTModule(t2e.build(artifact))
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(module(x), wanted, rtol=1e-3, atol=1e-4)
    for _ in range(2):  # the second time at a shape that is known by now
        with pytest.raises((t2e.BuildError, torch.OutOfMemoryError)) as caught:
            module(x[:1].expand(200_000, 3, 64, 64))
        if isinstance(caught.value, t2e.BuildError):
            assert "smaller max in the profiles" in str(caught.value)
            assert caught.value.out_of_memory
        torch.cuda.empty_cache()
        # So known was the small shape before, whose context must not go on in memory that was given back.
        for _ in range(3):
            torch.testing.assert_close(module(x), wanted, rtol=1e-3, atol=1e-4)

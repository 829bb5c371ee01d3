"""Calls outside every profile on a real GPU: in chunks, by PyTorch, on every stream and in the user's CUDA graphs.

Enters: inputs that are too large. Leaves: proof that each is answered like by the model, or refused. Apart from the CPU
tests because captures, streams and the device that the model is on are real here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import Scale
from tests.gpu.scenarios import CALLS, MOST_ROWS, PAUSE, WIDTH, Engines, Subject, capturing, prepared_shapes

pytestmark = pytest.mark.xdist_group("out_of_range")

WAYS = pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])
OUTPUT = pytest.mark.parametrize("output", ["fresh", "static"])
WARNED = pytest.mark.filterwarnings("ignore:.*PyTorch answers:UserWarning")

SPLIT = t2e.RuntimeConfig(out_of_range="split")
EAGER = t2e.RuntimeConfig(out_of_range="eager")

EVEN = 5000  # 2500 + 2500
UNEVEN = 4999  # 2500 + 2499
THREE = 10_001  # 3334 + 3334 + 3333
INSIDE = 64

UNPROVED = "a call that has yet to prove that it can be split, during the capture of a CUDA graph"
UNPREPARED = "that no ordinary call since the last capture prepared"


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


def rows(size: int) -> torch.Tensor:
    return torch.randn(size, WIDTH, device="cuda")


def eager(engines: Engines, reference: nn.Module, name: str = "exact") -> t2e.TRTModule:
    """A module that falls back on `reference`."""
    return t2e.TRTModule(engines.artifacts[name], runtime_config=EAGER, reference=reference)


def captured(module: t2e.TRTModule, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of one call, after the ordinary call that prepares it."""
    module(x)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        result = module(x)
    return graph, result


def refused(module: t2e.TRTModule, x: torch.Tensor) -> str:
    """The text of a call's error in a capture, which is finished without the call and holds all else."""
    graph, count = torch.cuda.CUDAGraph(), torch.zeros((), device="cuda")
    with capturing(graph):
        count.add_(1)
        with pytest.raises(t2e.InputError) as caught:
            module(x)
        count.add_(1)
    graph.replay()
    assert float(count) == 2
    assert type(caught.value) is t2e.InputError
    return str(caught.value)


def left(module: t2e.TRTModule, x: torch.Tensor) -> str:
    """The text of a call's error that ends the capture, as it does for a user who does not catch it."""
    count = torch.zeros((), device="cuda")

    def capture() -> None:
        with capturing(torch.cuda.CUDAGraph()):
            count.add_(1)  # an empty graph would warn
            module(x)

    with pytest.raises(t2e.InputError) as caught:
        capture()
    assert type(caught.value) is t2e.InputError
    return str(caught.value)


def graphs_of(module: t2e.TRTModule) -> int:
    return sum(len(prepared.graphs) for prepared in prepared_shapes(module))


# Split


@WAYS
@OUTPUT
def test_split_answers_on_every_stream_and_its_results_stay(engines: Engines, graphs: bool | str, output: str) -> None:
    """Inputs are read once they are written, and no later call changes a result, be the engine's own static or not."""
    streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)]
    for subject in engines.subjects(out_of_range="split", cuda_graphs=graphs, output=output):
        subject.module(rows(EVEN))  # the proof, which waits for the GPU
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for stream in streams:
            for size in (EVEN, UNEVEN):
                x = torch.zeros(size, WIDTH, device="cuda")
                for _ in range(CALLS):
                    fresh = torch.randn_like(x)
                    torch.cuda.synchronize()
                    with torch.cuda.stream(stream):
                        torch.cuda._sleep(PAUSE)
                        x.copy_(fresh)
                        kept.append((subject.module(x), fresh))
                        x.fill_(torch.nan)
                    torch.cuda.synchronize()
        assert len({result.data_ptr() for result, _ in kept}) == len(kept)
        assert sum(subject.wrong(result, given) for result, given in kept) == 0
        if graphs is True:
            assert graphs_of(subject.module) > 0


def test_threads_on_streams_of_their_own_split_right(engines: Engines) -> None:
    """First calls of four threads, each on a stream of its own, are four proved and right answers."""
    subject = engines.fresh("deep", out_of_range="split")

    def work(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            x = rows(size)
            result = subject.module(x)
            torch.cuda.current_stream().synchronize()
        return result, x

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, (EVEN, UNEVEN, THREE, EVEN)))
    assert sum(subject.wrong(result, x) for result, x in answers) == 0
    assert subject.module._out_of_range._proof_record.proved == {"n"}


class Reader(nn.Module):
    """(batch, tokens, 4) -> the same, each token looking at all of its row and at none of another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def test_deploy_proves_on_the_engine_what_may_be_split() -> None:
    """The report says of every axis whether it is split; calls and captures need no proof any more."""
    axes = {"x": {0: t2e.Axis("batch", 1, 2, 4), 1: t2e.Axis("tokens", 2, 4, 8)}}
    module = t2e.deploy(Reader(), torch.randn(2, 4, 4, device="cuda"), axes, runtime_config=SPLIT)
    assert isinstance(module, t2e.TRTModule)
    assert module.report is not None
    assert module.report.passed
    batch, tokens = (note for note in module.report.notes if note.startswith("axis "))
    assert batch == "axis 'batch' may be split: 4 entries answer like 3 + 1"
    assert tokens.startswith("axis 'tokens' is never split: its entries may influence each other: MatMul (at ")
    assert f"note: {batch}" in str(module.report)
    x = torch.randn(11, 7, 4, device="cuda")
    assert UNPREPARED in refused(module, x)  # not UNPROVED
    graph, result = captured(module, x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(result, Reader()(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(module(x), Reader()(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(t2e.ShapeError, match="it can't be split: its entries may influence each other: MatMul"):
        module(torch.randn(3, 20, 4, device="cuda"))
    with pytest.raises(t2e.ShapeError, match="axes 'batch' and 'tokens' are both outside"):
        module(torch.randn(5, 9, 4, device="cuda"))


class Influence(nn.Module):
    """(batch, 6) -> (batch, 6), in which rows are not answered each on its own."""

    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(x)


INFLUENCES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: x - x.mean(0),
    "attention": lambda x: (x @ x.t()).softmax(-1) @ x,
}
BATCH = {"x": {0: t2e.Axis("batch", 1, 4, 8)}}


@pytest.mark.parametrize("how", INFLUENCES)
def test_model_whose_rows_influence_each_other_is_not_deployed_to_be_split(how: str) -> None:
    """deploy() refuses the policy, and names the operator."""
    model, sample = Influence(INFLUENCES[how]), torch.randn(4, 6, device="cuda")
    with pytest.raises(t2e.InputError) as caught:
        t2e.deploy(model, sample, BATCH, runtime_config=SPLIT)
    operator = {"mean": "ReduceMean", "attention": "MatMul"}[how]
    text = str(caught.value)
    assert f"axis 'batch' is never split: its entries may influence each other: {operator} (at " in text
    assert text.endswith("use out_of_range='eager' or 'error'")


@pytest.mark.parametrize("how", INFLUENCES)
@torch.no_grad()
def test_engine_whose_rows_influence_each_other_is_never_split(how: str) -> None:
    """The engine itself is asked, once; it goes on answering inside the range, and in captures refuses besides."""
    model = Influence(INFLUENCES[how])
    artifact = t2e.build(t2e.export(model, torch.randn(4, 6, device="cuda"), BATCH))
    # The pretence that no operator mixes rows leaves the examples alone to show it.
    module = t2e.TRTModule(artifact.replace(influences={"batch": None}), runtime_config=SPLIT)
    for x in (torch.randn(20, 6, device="cuda"), torch.zeros(12, 6, device="cuda")):
        with pytest.raises(
            t2e.ParityError, match="axis 'batch': got 8 entries that are not answered like 5 \\+ 3"
        ) as caught:
            module(x)
        title = f"8 entries of axis 'batch' whole vs in chunks, {module.runtime}"
        assert caught.value.report.subject == title
        assert UNPROVED in refused(module, x)
    inside = torch.randn(8, 6, device="cuda")
    torch.testing.assert_close(module(inside), model(inside), rtol=1e-3, atol=1e-4)


# Split, in the user's CUDA graphs


@WAYS
@OUTPUT
def test_pitfall_33_proved_split_works_in_a_users_graph(engines: Engines, graphs: bool | str, output: str) -> None:
    """Chunks of one shape and of two, of any strides: replays answer what is in the input now, between other calls."""
    for subject in engines.subjects(out_of_range="split", cuda_graphs=graphs, output=output):
        flat = torch.randn(EVEN * WIDTH + 1, device="cuda")
        inputs = {
            "even": rows(EVEN),
            "uneven": rows(UNEVEN),
            "three": rows(THREE),
            "transposed": torch.randn(WIDTH, UNEVEN, device="cuda").t(),
            "misaligned": flat[1:].view(EVEN, WIDTH),
        }
        for name, x in inputs.items():
            graph, result = captured(subject.module, x)
            for _ in range(3):
                x.normal_()
                graph.replay()
                other = rows(len(x))
                got = subject.module(other)
                assert [subject.wrong(result, x), subject.wrong(got, other)] == [0, 0], name


def test_users_graphs_of_one_split_run_at_the_same_time(engines: Engines) -> None:
    """Two captures of a call that is split, replayed on two streams at once, don't disturb each other."""
    subject = engines.fresh("deep", out_of_range="split")
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [rows(UNEVEN) for _ in streams]
    captures = [captured(subject.module, x) for x in inputs]
    for _ in range(CALLS):
        for x in inputs:
            x.normal_()
        torch.cuda.synchronize()
        for stream, (graph, _) in zip(streams, captures, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(PAUSE)
                graph.replay()
        torch.cuda.synchronize()
        assert [subject.wrong(got, x) for x, (_, got) in zip(inputs, captures, strict=True)] == [0, 0]


@pytest.mark.parametrize("attempt", [refused, left])
def test_pitfall_33_split_without_a_proof_is_refused_in_a_capture(
    engines: Engines, attempt: Callable[[t2e.TRTModule, torch.Tensor], str]
) -> None:
    """A proof waits for the GPU, so a capture has none; afterwards the module proves, splits and is captured."""
    subject = engines.fresh("deep", out_of_range="split")
    inside, x = rows(INSIDE), rows(EVEN)
    assert "the engine is not on the GPU yet" in attempt(subject.module, x)
    assert subject.wrong(subject.module(inside), inside) == 0
    assert UNPROVED in attempt(subject.module, x)
    assert subject.module._out_of_range._proof_record.proved == set()
    assert subject.wrong(subject.module(inside), inside) == 0
    _check_usable(subject, x)


@pytest.mark.parametrize("attempt", [refused, left])
@pytest.mark.parametrize(("size", "missing"), [(UNEVEN, 2499), (THREE, 3334)], ids=["halfway", "at once"])
def test_pitfall_33_split_in_a_capture_without_contexts_for_its_chunks_is_refused(
    engines: Engines, attempt: Callable[[t2e.TRTModule, torch.Tensor], str], size: int, missing: int
) -> None:
    """Though it is proved, a chunk whose shape nothing prepared is refused, be it the first one or a later one."""
    subject = engines.fresh("deep", out_of_range="split")
    subject.module(rows(EVEN))  # the proof, and chunks of 2500
    x = rows(size)
    text = attempt(subject.module, x)
    assert f"at shapes [{missing}, {WIDTH}] {UNPREPARED}" in text
    assert text.endswith("call the module once with these shapes right before the capture")
    _check_usable(subject, x)


def test_one_context_captures_chunks_of_one_shape_alone(engines: Engines) -> None:
    """With contexts=1 chunks of two shapes are refused in a capture however often they came before, and never wrong."""
    subject = engines.fresh("deep", out_of_range="split", contexts=1)
    x = rows(UNEVEN)
    for _ in range(3):
        assert subject.wrong(subject.module(x), x) == 0
        assert f"at shapes [2500, {WIDTH}] {UNPREPARED}" in refused(subject.module, x)
    _check_usable(subject, rows(EVEN))


def _check_usable(subject: Subject, x: torch.Tensor) -> None:
    """Ordinary calls and captures of this input are right."""
    assert subject.wrong(subject.module(x), x) == 0
    graph, result = captured(subject.module, x)
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert subject.wrong(result, x) == 0
    assert subject.wrong(subject.module(x), x) == 0


# Eager


class Trainee(nn.Module):
    """(batch, 6) -> (batch, 3), with all that training moves, and one layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm1d(6)
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout()
        self.second = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.drop(self.norm(self.first(self.frozen(x))).relu()))


def test_eager_is_the_models_own_answer_and_leaves_it_in_training() -> None:
    """What deploy() kept answers bit for bit as in inference mode, warns once, and trains on as if nothing had been."""
    model = Trainee().cuda().train()
    model.frozen.eval()
    model(torch.randn(4, 6, device="cuda")).sum().backward()
    module = t2e.deploy(model, torch.randn(4, 6, device="cuda"), BATCH, runtime_config=EAGER)
    x, inside = torch.randn(20, 6, device="cuda"), torch.randn(8, 6, device="cuda")
    modes = [inner.training for inner in model.modules()]
    grads = [parameter.grad for parameter in model.parameters()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    dice = torch.get_rng_state(), torch.cuda.get_rng_state()
    with torch.no_grad():
        twin = copy.deepcopy(model).eval()
        torch.testing.assert_close(module(inside), twin(inside), rtol=1e-3, atol=1e-4)
        with pytest.warns(UserWarning, match="PyTorch answers such calls") as caught:
            found = [module(x) for _ in range(3)]
        assert all(torch.equal(each, twin(x)) for each in found)
    (warning,) = caught
    assert str(warning.message).startswith("input 'x': got batch = 20; expected 1..8; PyTorch answers ")
    assert warning.filename == __file__
    assert len({each.data_ptr() for each in found}) == 3
    assert [inner.training for inner in model.modules()] == modes
    assert all(now.grad is grad for now, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), dice[0])
    assert torch.equal(torch.cuda.get_rng_state(), dice[1])


class Gambler(nn.Module):
    """x * 2, after a throw of the dice of both devices."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        torch.rand(3, device=x.device)
        return x * 2


@WARNED
def test_eager_draws_no_random_numbers_of_the_callers(engines: Engines) -> None:
    """A model that draws leaves the generators of CPU and GPU as they were."""
    module = eager(engines, Gambler())
    x = rows(EVEN)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert torch.equal(module(x), x * 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


@WARNED
def test_eager_answers_on_the_callers_stream(engines: Engines) -> None:
    """Inputs are read once they are written and before they are overwritten, on the default stream and on others."""
    subject = Subject(eager(engines, engines.models["deep"], "deep"), engines.models["deep"], 1e-5)
    x = torch.zeros(EVEN, WIDTH, device="cuda")
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        for _ in range(CALLS):
            fresh = torch.randn_like(x)
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(PAUSE)
                x.copy_(fresh)
                taken = subject.module(x).clone()
                x.fill_(torch.nan)
            torch.cuda.synchronize()
            assert subject.wrong(taken, fresh) == 0


def test_eager_model_that_is_on_the_cpu_is_refused(engines: Engines) -> None:
    """The model is not moved behind its owner's back; once the owner moves it, it answers."""
    model = copy.deepcopy(engines.models["deep"]).cpu()
    module = eager(engines, model, "deep")
    x, inside = rows(EVEN), rows(INSIDE)
    with pytest.raises(t2e.DeviceError) as caught:
        module(x)
    assert str(caught.value) == (
        f"the PyTorch module: got a module on cpu; expected one on the inputs' device, {x.device}, "
        f"for out_of_range='eager'; move it with .to('{x.device}')"
    )
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert Subject(module, engines.models["deep"], 1e-3).wrong(module(inside), inside) == 0
    model.cuda()
    with torch.no_grad(), pytest.warns(UserWarning, match="PyTorch answers such calls"):
        assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("attempt", [refused, left])
def test_pitfall_33_eager_is_refused_in_a_capture(
    engines: Engines, attempt: Callable[[t2e.TRTModule, torch.Tensor], str]
) -> None:
    """PyTorch's own answer takes more than an enqueue; calls outside captures have it, with the warning, afterwards."""
    module = eager(engines, Scale())
    inside, x = rows(INSIDE), rows(EVEN)
    assert "the engine is not on the GPU yet" in attempt(module, x)
    assert torch.equal(module(inside), inside * 2)
    for _ in range(2):
        text = attempt(module, x)
        assert "a call that PyTorch answers, during the capture of a CUDA graph" in text
    graph, result = captured(module, inside)
    inside.normal_()
    graph.replay()
    assert torch.equal(result, inside * 2)
    with pytest.warns(UserWarning, match=f"got n = {EVEN}; expected 1..{MOST_ROWS}; PyTorch answers"):
        assert torch.equal(module(x), x * 2)

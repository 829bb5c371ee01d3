"""Order and lifetimes of calls on every kind of stream, with CUDA graphs and without.

Enters: the callers' ways of `scenarios`. Leaves: proof that no answer is wrong, and that these tests would see it: with
any one of the executor's three waits taken away they find wrong answers. Separate from the contract because every test
here runs for every stream.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.gpu import scenarios
from tests.gpu.scenarios import CALLS, LONG_PAUSE, MOST_ROWS, WIDTH, Engines, Subject
from torch2engine.deployed.trt.stream_executor import StreamExecutor

pytestmark = pytest.mark.xdist_group("streams")

KINDS = ["default", "pool", "high priority", "external", "blocking"]


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


@pytest.fixture(scope="module")
def streams() -> dict[str, torch.cuda.Stream]:
    made = scenarios.streams()
    assert list(made) == KINDS
    return made


@pytest.fixture(params=[False, "auto", True], ids=["enqueued", "auto", "graphs"])
def subjects(engines: Engines, request: pytest.FixtureRequest) -> list[Subject]:
    return engines.subjects(cuda_graphs=request.param)


@pytest.fixture(params=KINDS)
def stream(streams: dict[str, torch.cuda.Stream], request: pytest.FixtureRequest) -> torch.cuda.Stream:
    return streams[request.param]


def test_pitfall_01_call_waits_for_the_inputs_writer(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """An input that is still to be written on the caller's stream is read after that."""
    assert [scenarios.delayed_producer(subject, stream) for subject in subjects] == [0, 0]


def test_pitfall_01_reader_waits_for_the_result(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """The next kernel on the caller's stream reads the finished result."""
    assert [scenarios.early_consumer(subject, stream) for subject in subjects] == [0, 0]


def test_pitfall_02_results_outlive_later_calls(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """Results that are kept have memory of their own and stay as they were."""
    assert [scenarios.kept_results(subject, stream) for subject in subjects] == [0, 0]


def test_pitfall_03_strides_and_alignment(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """Transposed, sliced, expanded, misaligned and negated inputs are read as what they show."""
    assert [scenarios.awkward_inputs(subject, stream) for subject in subjects] == [0, 0]


def test_pitfall_07_input_may_be_overwritten_at_once(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """The next kernel on the caller's stream may write into the input."""
    assert [scenarios.overwritten_input(subject, stream) for subject in subjects] == [0, 0]


def test_pitfall_07_memory_is_not_recycled_under_a_running_call(
    subjects: list[Subject], stream: torch.cuda.Stream
) -> None:
    """Inputs and temporaries that are freed right after the call keep their values until the engine has read them."""
    assert [scenarios.recycled_memory(subject, stream) for subject in subjects] == [0, 0]


@pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])
@pytest.mark.parametrize("lanes", [1, 2, 4], ids=lambda lanes: f"{lanes} at once")
def test_streams_take_over_from_each_other(
    engines: Engines, streams: dict[str, torch.cuda.Stream], lanes: int, graphs: bool | str
) -> None:
    """With more streams than may compute at once, each waits for the one whose memory it takes over."""
    subjects = engines.subjects(cuda_graphs=graphs, streams=lanes)
    callers = [*streams.values(), torch.cuda.Stream()]
    for some in (callers[1:3], callers):
        assert [scenarios.switched_streams(subject, some) for subject in subjects] == [0, 0]


@pytest.mark.parametrize("graphs", [False, True], ids=["enqueued", "graphs"])
def test_pitfall_25_threads_take_over_from_each_other(engines: Engines, graphs: bool) -> None:
    """Eight threads on streams of their own, at many shapes, share two lanes and get their own answers."""
    subjects = engines.subjects(cuda_graphs=graphs, streams=2, contexts=3)

    def wrong(seed: int) -> int:
        found = 0
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.cuda.stream(torch.cuda.Stream() if seed % 4 else torch.cuda.default_stream()):
            for index in range(60):
                rows = (1, 64, 100, 1000, MOST_ROWS)[(seed + index // 3) % 5]
                x = torch.randn(rows, WIDTH, device="cuda", generator=generator)
                found += sum(subject.wrong(subject.module(x), x) for subject in subjects)
        return found

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(wrong, range(8))) == [0] * 8


def test_calls_do_not_wait_for_the_gpu(subjects: list[Subject], stream: torch.cuda.Stream) -> None:
    """At shapes that came before, calls return while the GPU is still busy with what came before them."""
    for subject in subjects:
        x = torch.randn(100, WIDTH, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(CALLS):
                subject.module(x)
            stream.synchronize()
            torch.cuda._sleep(LONG_PAUSE)
            awake = torch.cuda.Event()
            awake.record()
            results = [subject.module(x), subject.module(x)]
            assert not awake.query()
        torch.cuda.synchronize()
        assert [subject.wrong(result, x) for result in results] == [0, 0]


def _two_callers(subject: Subject, stream: torch.cuda.Stream, pause: int) -> int:
    return scenarios.switched_streams(subject, [stream, torch.cuda.Stream()], pause)


# The wait that is taken away -> the kind of stream, CUDA graphs or not, and what must then go wrong. A graph may be
# launched on the default stream itself, so only enqueues go through the side stream.
REMOVALS: list[tuple[str, str, bool, Callable[[Subject, torch.cuda.Stream, int], int]]] = [
    ("_fork", "default", False, scenarios.delayed_producer),
    ("_join", "default", False, scenarios.early_consumer),
    ("_join", "default", False, scenarios.overwritten_input),
    ("_take_over", "pool", False, _two_callers),
    ("_take_over", "pool", True, _two_callers),
]


@pytest.mark.parametrize(
    ("wait", "kind", "graphs", "scenario"), REMOVALS, ids=[f"{row[0]}-{row[3].__name__}-{row[2]}" for row in REMOVALS]
)
def test_ordering_tests_can_fail(
    engines: Engines,
    streams: dict[str, torch.cuda.Stream],
    monkeypatch: pytest.MonkeyPatch,
    wait: str,
    kind: str,
    graphs: bool,
    scenario: Callable[[Subject, torch.cuda.Stream, int], int],
) -> None:
    """Without one of the waits the scenario that needs it finds wrong elements, and with it none."""

    def count() -> int:
        return scenario(engines.fresh("deep", cuda_graphs=graphs, streams=1), streams[kind], LONG_PAUSE)

    with monkeypatch.context() as patch:
        patch.setattr(StreamExecutor, wait, lambda *arguments: None)
        # Other processes use the GPU too, so not every race is lost.
        assert any(count() > 0 for _ in range(5))
    torch.cuda.synchronize()
    assert count() == 0

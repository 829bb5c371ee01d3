"""CUDA graphs that the module makes by itself.

Enters: calls at recurring and changing addresses. Leaves: proof that a replayed answer is the plain one.
Apart from the streams because here the addresses are what matters.
"""

from __future__ import annotations

import copy
import gc
import random
import threading

import pytest
import torch
from torch import nn

import torch2engine as t2e
from tests.gpu.models import TINY_AXES, Tiny, tiny_inputs
from tests.gpu.scenarios import CALLS, PAUSE, WIDTH, Engines, Subject, prepared_shapes, run_together

pytestmark = pytest.mark.xdist_group("graphs")

WAYS = pytest.mark.parametrize("graphs", [False, "auto", True], ids=["enqueued", "auto", "graphs"])
GRAPHS = pytest.mark.parametrize("graphs", ["auto", True], ids=["auto", "graphs"])
SHAPES = (1, 7, 64, 256, 1000)


@pytest.fixture(scope="module")
def engines() -> Engines:
    return Engines()


@WAYS
def test_static_results_are_left_alone_by_another_stream(engines: Engines, graphs: bool | str) -> None:
    """A stream that comes when all places are taken gets results of its own: the first one still reads the old ones."""
    subject = engines.fresh("exact", cuda_graphs=graphs, output="static", streams=1)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    x, other = torch.randn(64, WIDTH, device="cuda"), torch.randn(64, WIDTH, device="cuda")
    torch.cuda.synchronize()
    for _ in range(CALLS):
        with torch.cuda.stream(first):
            result = subject.module(x)
            torch.cuda._sleep(PAUSE)
            kept = result + 0
        with torch.cuda.stream(second):
            later = subject.module(other) + 0
        torch.cuda.synchronize()
        assert subject.wrong(kept, x) == 0
        assert subject.wrong(later, other) == 0


@GRAPHS
@pytest.mark.parametrize("output", ["fresh", "static"])
def test_graphs_answer_bit_for_bit_as_an_enqueue(engines: Engines, graphs: bool | str, output: str) -> None:
    """With graphs, fresh or static, every call at every shape gives the very bits of a call without."""
    plain = engines.subjects(cuda_graphs=False)
    for index, subject in enumerate(engines.subjects(cuda_graphs=graphs, output=output)):
        for rows in (*SHAPES, *SHAPES):
            x = torch.randn(rows, WIDTH, device="cuda")
            wanted = plain[index].module(x)
            for _ in range(CALLS):
                assert torch.equal(subject.module(x), wanted)
                x = torch.randn(rows, WIDTH, device="cuda")
                wanted = plain[index].module(x)


@WAYS
def test_results_are_fresh(engines: Engines, graphs: bool | str) -> None:
    """Each result has memory of its own, though all inputs had one address, and no later call changes it."""
    for subject in engines.subjects(cuda_graphs=graphs):
        x = torch.empty(64, WIDTH, device="cuda")
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for _ in range(3 * CALLS):
            x.normal_()
            pairs.append((x.clone(), subject.module(x)))
        assert len({result.data_ptr() for _, result in pairs}) == len(pairs)
        assert sum(subject.wrong(result, given) for given, result in pairs) == 0


@WAYS
def test_static_results_are_the_same_tensors(engines: Engines, graphs: bool | str) -> None:
    """output="static" hands out one result for each shape, which the next call at that shape overwrites."""
    for subject in engines.subjects(cuda_graphs=graphs, output="static"):
        addresses: dict[int, set[int]] = {}
        for index in range(6 * CALLS):
            x = torch.randn(SHAPES[index % 3], WIDTH, device="cuda")
            result = subject.module(x)
            assert subject.wrong(result, x) == 0
            addresses.setdefault(len(x), set()).add(result.data_ptr())
        assert [len(found) for found in addresses.values()] == [1, 1, 1]
        assert len(set.union(*addresses.values())) == 3
        first, second = (torch.randn(64, WIDTH, device="cuda") for _ in range(2))
        kept = subject.module(first)
        assert subject.module(second).data_ptr() == kept.data_ptr()
        assert subject.wrong(kept, second) == 0


@WAYS
@pytest.mark.parametrize("output", ["fresh", "static"])
@torch.no_grad()
def test_every_kind_of_output_goes_through_graphs(graphs: bool | str, output: str) -> None:
    """Computed, passed-through, doubled and constant results stay the model's, call after call."""
    model = Tiny().cuda().eval()
    artifact = t2e.build(t2e.export(model, tiny_inputs(), TINY_AXES))
    module = t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(cuda_graphs=graphs, output=output))
    for index in range(4 * CALLS):
        inputs = tiny_inputs((4, 9)[index % 2])
        got, wanted = module(*inputs), model(*inputs)
        assert got.keys() == wanted.keys()
        assert (got["classes"], got["nothing"]) == (5, None)
        for name in ("logits", "scale", "hidden", "again"):
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=1e-4)


@WAYS
def test_many_addresses_in_turn(engines: Engines, graphs: bool | str) -> None:
    """More inputs than any number of graphs, at three shapes, in random order: each gets its own answer each time."""
    chance = random.Random(0)
    for subject in engines.subjects(cuda_graphs=graphs):
        inputs = [torch.randn(rows, WIDTH, device="cuda") for rows in (3, 64, 500) for _ in range(40)]
        wrong = 0
        for _ in range(600):
            x = chance.choice(inputs)
            if chance.random() < 0.3:
                x.normal_()
            wrong += subject.wrong(subject.module(x), x)
        assert wrong == 0


@WAYS
def test_addresses_are_recycled_with_other_contents_and_shapes(engines: Engines, graphs: bool | str) -> None:
    """An address that was a small input is a large one next, or a result, and is read as what it is now."""
    chance = random.Random(1)
    for subject in engines.subjects(cuda_graphs=graphs):
        memory = torch.empty(1000 * WIDTH, device="cuda")
        wrong = 0
        for index in range(300):
            rows = chance.choice(SHAPES)
            if index % 2:  # this address at every shape
                x = memory[: rows * WIDTH].view(rows, WIDTH).normal_()
            else:  # whatever address the allocator gives, results' among them
                x = torch.randn(rows, WIDTH, device="cuda")
            wrong += subject.wrong(subject.module(x), x)
            del x
        assert wrong == 0


@WAYS
def test_other_weights_are_not_answered_by_old_graphs(graphs: bool | str) -> None:
    """After load_state_dict the same input, at the same address, gets the other weights' answer."""
    x = torch.randn(64, WIDTH, device="cuda")
    modules: list[t2e.TRTModule] = []
    for seed in range(2):
        torch.manual_seed(seed)
        artifact = t2e.build(t2e.export(nn.Linear(WIDTH, WIDTH).cuda(), x, {"input": {0: t2e.Axis("n", 1, 64, 128)}}))
        modules.append(t2e.TRTModule(artifact, runtime_config=t2e.RuntimeConfig(cuda_graphs=graphs)))
    answers = [[module(x) for _ in range(CALLS)][-1].clone() for module in modules]
    assert not torch.equal(*answers)
    modules[0].load_state_dict(modules[1].state_dict())
    for _ in range(CALLS):
        assert torch.equal(modules[0](x), answers[1])


@GRAPHS
def test_inference_mode_and_normal_mode_share_graphs(engines: Engines, graphs: bool | str) -> None:
    """A module whose first calls were in inference mode answers outside of it, and the other way round."""
    for first in (True, False):
        subject = engines.fresh("exact", cuda_graphs=graphs)
        for inference in (first, not first, first):
            with torch.inference_mode(inference):
                for _ in range(CALLS):
                    x = torch.randn(64, WIDTH, device="cuda")
                    result = subject.module(x)
                    assert result.is_inference() == inference
                    assert torch.equal(result, x * 2)


@WAYS
def test_copies_keep_graphs_apart(engines: Engines, graphs: bool | str) -> None:
    """A deep copy of a module with graphs makes its own, and outlives the first."""
    subject = engines.fresh("deep", cuda_graphs=graphs)
    x = torch.randn(64, WIDTH, device="cuda")
    for _ in range(CALLS):
        subject.module(x)
    twin = Subject(copy.deepcopy(subject.module), subject.model, subject.tolerance)
    assert twin.module.runtime_config == subject.module.runtime_config
    del subject
    assert sum(twin.wrong(twin.module(x), x) for _ in range(CALLS)) == 0


@pytest.mark.parametrize("output", ["fresh", "static"])
@WAYS
def test_pitfall_36_dropped_graphs_give_their_memory_back(engines: Engines, graphs: bool | str, output: str) -> None:
    """Without the module all device memory of its graphs, contexts and static results is PyTorch's again."""
    engines.subjects()  # what is made once is made
    x = [torch.randn(rows, WIDTH, device="cuda") for rows in SHAPES]
    gc.collect()
    before = torch.cuda.memory_allocated()
    subject = engines.fresh("deep", cuda_graphs=graphs, output=output)
    for _ in range(CALLS):
        for given in x:
            subject.module(given)
    assert torch.cuda.memory_allocated() > before + (1 << 20)
    del subject
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_threads_may_synchronise_while_the_module_may_make_graphs(engines: Engines) -> None:
    """ "auto" makes no graph while another thread may wait for the whole device, which a capture would make fail."""
    subjects = [engines.fresh("exact", cuda_graphs="auto", streams=1) for _ in range(3)]
    wrong: list[int] = []
    done = threading.Event()
    waits = 0

    def call() -> None:
        try:
            for subject in subjects:
                for rows in range(1, 200):
                    x = torch.randn(rows, WIDTH, device="cuda")
                    wrong.extend(subject.wrong(subject.module(x), x) for _ in range(5))
        finally:
            done.set()

    def wait() -> None:
        nonlocal waits
        while not done.is_set():
            torch.cuda.synchronize()
            waits += 1

    run_together([call, wait])
    assert waits > 100
    assert sum(wrong) == 0
    assert _graphs(subjects[0].module) == 0


def test_auto_makes_graphs_when_it_is_alone(engines: Engines) -> None:
    """With no other thread about, recurring addresses soon have a graph; with one that idles, none is made."""
    x = torch.randn(64, WIDTH, device="cuda")
    alone = engines.fresh("exact", cuda_graphs="auto")
    for _ in range(CALLS):
        alone.module(x)
    assert _graphs(alone.module) > 0
    crowded = engines.fresh("exact", cuda_graphs="auto")
    stop = threading.Event()
    thread = threading.Thread(target=lambda: stop.wait())
    thread.start()
    try:
        for _ in range(CALLS):
            assert crowded.wrong(crowded.module(x), x) == 0
        assert _graphs(crowded.module) == 0
    finally:
        stop.set()
        thread.join()


def _graphs(module: t2e.TRTModule) -> int:
    return sum(len(prepared.graphs) for prepared in prepared_shapes(module))

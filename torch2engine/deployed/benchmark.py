"""A deployed module, and the model beside it → `BenchmarkReport`: host and device time of a call.

Enters: a module, and the model that it came from. Leaves: medians and 95th percentiles, measured side by side after a
comparison of the answers. Separate because it compares before it times: a fast wrong answer is no result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from torch2engine.capture.examples import bind_examples, read_examples
from torch2engine.capture.host_trial import find_unsafe_inputs
from torch2engine.capture.parity_cases import ParityCase
from torch2engine.capture.reference import Reference, outputs_by_name
from torch2engine.capture.rounding_sensitivity import measure_sensitivity
from torch2engine.capture.undisturbed import training_flags_off, undisturbed
from torch2engine.capture.unwrap import unwrap
from torch2engine.core.config import Tolerances
from torch2engine.core.errors import DeviceError, InputError
from torch2engine.core.pytree import as_inputs, bind
from torch2engine.core.spec import Profile, Signature
from torch2engine.deployed.inputs_of_calls import InputsOfCalls
from torch2engine.deployed.made_inputs import case_name, corner_sizes, named_examples, random_cases
from torch2engine.deployed.throughput import (
    ThroughputRow,
    batch_axis,
    best_rates,
    items_per_call,
    lines_of,
    measure_rates,
    read_counts,
)
from torch2engine.deployed.timing import Call, Timing, measure
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import ParityReport
from torch2engine.parity.tolerance_bounds import Bounds
from torch2engine.trt.gpu import require_gpu

if TYPE_CHECKING:
    from torch2engine.deployed.deployed_module import DeployedModule

__all__ = ["BenchmarkReport", "BenchmarkRow", "ThroughputRow", "Timing", "benchmark", "device_of", "measure"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """The times of one candidate on one input.

    Args:
        case: e.g. "batch 8".
        candidate: e.g. "TensorRT-RTX 1.6.1.120" or "PyTorch eager".
        timing: what a call takes.
        sizes: the axes' sizes in this case.
    """

    case: str
    candidate: str
    timing: Timing
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def bottleneck_us(self) -> float:
        """The median time of a call on the host or on the device, whichever takes longer."""
        return max(self.timing.host_us, self.timing.device_us or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "case": self.case,
            "candidate": self.candidate,
            "sizes": dict(self.sizes),
            **asdict(self.timing),
        }


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """The cost of a call by input and candidate. Printed, it is a table in plain text.

    Args:
        subject: the GPU's name, or "CPU".
        precision: the arithmetic of the module, e.g. "fp16".
        rows: one per case and candidate.
        parity: the comparison with the model on the inputs that were timed; None without a model.
        throughput: the module's rate for each input and number of streams, where rates were asked for.
    """

    subject: str
    precision: str
    rows: tuple[BenchmarkRow, ...]
    parity: ParityReport | None = None
    throughput: tuple[ThroughputRow, ...] = ()

    @property
    def best_rates(self) -> tuple[ThroughputRow, ...]:
        """The highest rate for each input; sorted by `items`, it is the curve of the rate against the batch."""
        return best_rates(self.throughput)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return {
            "subject": self.subject,
            "precision": self.precision,
            "rows": [row.to_json() for row in self.rows],
            "parity": None if self.parity is None else self.parity.to_json(),
            "throughput": [row.to_json() for row in self.throughput],
        }

    def __str__(self) -> str:
        head = ["case", "candidate", "host µs", "p95", "device µs", "p95"]
        cells = [head, *([row.case, row.candidate, *_figures(row.timing)] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        lines = [
            "  ".join(f"{cell:{'<' if column < 2 else '>'}{widths[column]}}" for column, cell in enumerate(row))
            for row in cells
        ]
        if self.parity is None:
            judged = "answers not compared: no model was given"
        else:
            worst = self.parity.worst
            judged = "parity passed" + ("" if worst is None else f", rel-l2 at most {worst.rel_l2:.2e}")
        title = f"{self.precision} on {self.subject}, time per call, median and 95th percentile; {judged}"
        rates = ["items per second, calls in flight on several streams:", *lines_of(self.throughput)]
        return "\n".join([title, *(line.rstrip() for line in lines), *(rates if self.throughput else [])])


def _figures(timing: Timing) -> list[str]:
    values = (timing.host_us, timing.host_p95_us, timing.device_us, timing.device_p95_us)
    return ["-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:.0f}" for value in values]


def benchmark(
    module: DeployedModule[Any],
    model: nn.Module | None = None,
    *,
    sizes: Iterable[Mapping[str, int]] | None = None,
    inputs: Any = None,
    examples: Iterable[Any] | None = None,
    tolerance: Tolerances | None = None,
    rounds: int = 15,
    calls: int | None = None,
    warmup: int = 20,
    streams: int | Sequence[int] | None = None,
    batches: int | Sequence[int] | None = None,
) -> BenchmarkReport:
    """Time a deployed module's calls and, beside them, the model's in PyTorch eager.

    With a model the answers are compared first. The model is timed in evaluation mode under the process's own settings
    (TF32, attention kernels, ...), and left as it was.

    Args:
        module: the module that is timed; it is called as a user calls it, from the current stream.
        model: the model that it was deployed from, on the module's device.
        sizes: axis sizes, one mapping for each input to be timed, e.g. ``[{"batch": 1}, {"batch": 32}]``; an axis that
            is left out has its opt size. By default min, opt and max of the first profile. Inputs are invented: random
            floats, random bytes of images, and True. Other integers are 0, or 1 where the input's name ends in "mask".
        inputs: one input to be timed, in the form of deploy's sample_input, instead of `sizes`.
        examples: several of them, at different sizes, instead of `inputs`.
        tolerance: by default `Tolerance.default` of the module's precision.
        rounds, calls, warmup: as for `measure`.
        streams: also measure how many items a second the module answers while calls are in flight on so many streams,
            e.g. ``(1, 2, 4)``; see `measure_rates`. None: no rates.
        batches: sizes of the axis that inputs begin with, e.g. ``(1, 8, 32)``, instead of `sizes`.

    Raises:
        ParityError: the module does not answer like the model; nothing is timed.
        InputError, ShapeError: two of sizes, batches, inputs and examples are given, or the module or the model does
            not take the inputs. Also more streams than `RuntimeConfig.streams`, and streams on the CPU.
        DeviceError: the model is on another device.
        InstallationError: no GPU for an engine.
    """
    device = device_of(module)
    stream_counts = [] if streams is None else _stream_counts(module, streams, device)
    if batches is not None:
        _refuse_two(batches=batches, sizes=sizes, inputs=inputs, examples=examples)
        axis = batch_axis(module.signature)
        sizes = [{axis: batch} for batch in read_counts("batches", batches)]
    reference = None if model is None else _reference(module, model)
    if reference is not None:
        _check_device(reference.model, device)
    is_real = inputs is not None or examples is not None
    cases = _real_cases(module, sizes, inputs, examples, device) if is_real else _made_cases(module, sizes, device)
    if reference is not None and not is_real:
        _require_safe(reference, cases)
    parity = None if reference is None else _compared(module, reference, cases, tolerance)
    rows: list[BenchmarkRow] = []
    for case, leaves in cases.items():
        inputs_of_calls = InputsOfCalls.of(module.signature, leaves)
        on_same_values = inputs_of_calls.on_same_values
        candidates: dict[str, Call] = {module.runtime: on_same_values(inputs_of_calls.call_of(module))}
        with torch.no_grad():
            if reference is None:
                timings = measure(candidates, device=device, rounds=rounds, calls=calls, warmup=warmup)
            else:
                eager = inputs_of_calls.call_of(reference.model)
                if any(module.signature.preprocess):  # which an eager call makes each time, too
                    eager = functools.partial(reference.call, inputs_of_calls.leaves)
                candidates["PyTorch eager"] = on_same_values(eager)
                with training_flags_off(
                    reference.model
                ):  # not `undisturbed`, which sets slower arithmetic than the user's
                    timings = measure(candidates, device=device, rounds=rounds, calls=calls, warmup=warmup)
        axis_sizes = module.signature.resolve([leaf.shape for leaf in leaves])
        rows += [
            BenchmarkRow(case=case, candidate=name, timing=timing, sizes=axis_sizes) for name, timing in timings.items()
        ]
    throughput = _rates(module, cases, stream_counts, device) if stream_counts else ()
    subject = "CPU" if device.type == "cpu" else require_gpu(device.index).name
    return BenchmarkReport(
        subject=subject, precision=module.precision, rows=tuple(rows), parity=parity, throughput=throughput
    )


def _stream_counts(module: DeployedModule[Any], streams: object, device: torch.device) -> list[int]:
    """Read how many streams there shall be at a time.

    Raises:
        InputError: no positive numbers, more than compute at once, or a module on the CPU.
    """
    if device.type == "cpu":
        raise InputError(
            "streams",
            got=f"{streams!r} for a module on the CPU",
            allowed="streams of a GPU",
            fix="leave it out, or deploy with runtime='tensorrt'",
        )
    counts = read_counts("streams", streams)
    most = module.runtime_config.streams
    fix = f"load the module with RuntimeConfig(streams={max(counts)})"
    return read_counts("streams", streams, most, fix)


def _rates(
    module: DeployedModule[Any],
    cases: Mapping[str, Sequence[torch.Tensor]],
    stream_counts: Sequence[int],
    device: torch.device,
) -> tuple[ThroughputRow, ...]:
    """The module's rate for each case and number of streams; each stream has inputs of its own."""
    signature = module.signature
    candidates: dict[str, list[Call]] = {}
    pairs = [(case, count) for case in cases for count in stream_counts]
    for case, leaves in cases.items():
        copies = [[leaf.clone() for leaf in leaves] for _ in range(max(stream_counts))]
        inputs_of_calls = [InputsOfCalls.of(signature, copy) for copy in copies]
        calls = [one.on_same_values(one.call_of(module)) for one in inputs_of_calls]
        candidates |= {f"{case}, {count} streams": calls[:count] for count in stream_counts}
    rates = measure_rates(candidates, device)
    return tuple(
        ThroughputRow(
            case=case,
            streams=count,
            items=items_per_call(signature, cases[case]),
            rate=rate,
            sizes=signature.resolve([leaf.shape for leaf in cases[case]]),
        )
        for (case, count), rate in zip(pairs, rates.values(), strict=True)
    )


def _refuse_two(**options: object) -> None:
    """Refuse two ways to say which inputs are timed.

    Raises:
        InputError: naming both.
    """
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        both = f"both {given[0]} and {given[1]}"
        raise InputError("benchmark", got=both, allowed="one of them", fix=f"leave out {given[0]}")


def _reference(module: DeployedModule[Any], model: nn.Module) -> Reference:
    return Reference.for_signature(unwrap(model), module.signature)


def device_of(module: DeployedModule[Any]) -> torch.device:
    """Where a module runs, or would run.

    Raises:
        InstallationError: no GPU for an engine.
    """
    if module.device is not None:
        return module.device
    require_gpu()
    return torch.device("cuda", torch.cuda.current_device())


def _check_device(model: nn.Module, device: torch.device) -> None:
    strays = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers()) if tensor.device != device}
    if strays:
        raise DeviceError(
            "model",
            got=f"a model on {', '.join(sorted(strays))}",
            allowed=f"one on the module's device, {device}",
            fix=f"move it with .to('{device}')",
        )


def _require_safe(reference: Reference, cases: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Refuse invented inputs with which the model may end the process's CUDA context.

    Raises:
        InputError: the model fails on them on the CPU, or can't be tried there.
    """
    with undisturbed(reference.model):
        unsafe = find_unsafe_inputs(reference, cases)
    for name, reason in unsafe.items():
        raise InputError(
            f"benchmark of '{name}'",
            got=f"a made-up input that may end the process's CUDA context ({reason})",
            allowed="inputs that the model answers on the CPU, too",
            fix="pass real ones as examples=[...]",
        )


def _compared(
    module: DeployedModule[Any],
    reference: Reference,
    cases: Mapping[str, Sequence[torch.Tensor]],
    tolerance: Tolerances | None,
) -> ParityReport:
    """Parity on every case.

    Raises:
        ParityError: a case failed.
    """
    signature = module.signature
    runtime_kind = module._backend.runtime_kind  # pyright: ignore[reportPrivateUsage]  # kin of it
    bounds = Bounds.of(tolerance, module.precision, runtime_kind)
    names = [spec.name for spec in signature.outputs]
    report = ParityReport((), f"PyTorch vs {module.runtime}", bounds.tolerance)
    with undisturbed(reference.model):
        answered = [
            ParityCase(name, tuple(leaves), outputs_by_name(reference(leaves), signature.output, names))
            for name, leaves in cases.items()
        ]
        answered = measure_sensitivity(reference, signature, answered, (module.precision,))
    for case in answered:
        with torch.no_grad():
            answer = module.infer([leaf.clone() for leaf in case.inputs])
        sensitivity = case.sensitivity.get(module.precision)
        report = report.add(compare(case.outputs, answer, bounds, case=case.name, sensitivity=sensitivity))
    report.raise_if_failed()
    return report


def _live_values(module: DeployedModule[Any]) -> list[torch.Tensor]:
    """The values of the module's live parameters now."""
    return [tensor.detach() for tensor in module.live_parameters.values()]


def _real_cases(
    module: DeployedModule[Any],
    sizes: Iterable[Mapping[str, int]] | None,
    inputs: Any,
    examples: Iterable[Any] | None,
    device: torch.device,
) -> dict[str, Sequence[torch.Tensor]]:
    """Return the caller's own inputs by the case's name.

    Raises:
        InputError: more than one of the three, or what `bind_examples` refuses.
    """
    signature = module.signature
    _refuse_two(sizes=sizes, inputs=inputs, examples=examples)
    if inputs is not None:
        one = as_inputs(inputs)
        leaves = [*cast("list[torch.Tensor]", bind(signature.parameters, one.args, one.kwargs)), *_live_values(module)]
        return {case_name(signature.resolve([leaf.shape for leaf in leaves])): leaves}
    profiles = module._artifact.profiles  # pyright: ignore[reportPrivateUsage]  # the same folder
    bound = bind_examples(signature, profiles, read_examples(examples) or (), _live_values(module))
    return named_examples(signature, bound, device)


def _made_cases(
    module: DeployedModule[Any], sizes: Iterable[Mapping[str, int]] | None, device: torch.device
) -> dict[str, list[torch.Tensor]]:
    """Return made-up inputs by the case's name.

    Raises:
        InputError: sizes of no axis, or none.
    """
    signature = module.signature
    profiles = module._artifact.profiles  # pyright: ignore[reportPrivateUsage]  # the same folder
    all_sizes = corner_sizes(profiles) if sizes is None else list(sizes)
    all_sizes = [_with_opt_sizes(signature, profiles, given) for given in all_sizes]
    cases = random_cases(signature, all_sizes, device, _live_values(module))
    if not cases:
        raise InputError("sizes", got="none", allowed="at least one mapping", fix="leave it out for min, opt and max")
    return cases


def _with_opt_sizes(signature: Signature, profiles: Sequence[Profile], given: Mapping[str, int]) -> dict[str, int]:
    """Complete the sizes of the axes. The module itself decides whether it answers them.

    Raises:
        InputError: no such axis, or no positive int.
    """
    known = {axis.name for axis in signature.axes}
    for name, size in given.items():
        if name not in known or type(cast("object", size)) is not int or size < 1:
            raise InputError(
                "sizes",
                got=f"{name!r}: {size!r}",
                allowed="positive ints for the axes " + ", ".join(sorted(known))
                if known
                else "{}, since the module has no axes",
                fix="name axes of the module, or leave sizes out",
            )
    return {**(profiles[0].sizes(1) if profiles else {}), **given}

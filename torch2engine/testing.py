"""For test suites: compare a candidate with its reference on given inputs.

Enters: two callables and inputs in the forms of deploy's sample_input. Leaves: a `ParityReport`, or a `ParityError`
whose message is its table. Separate because it compares any callable as deploy compares an engine: a deployed module,
an ORTModule, a rewritten layer. It compares the structure of the result too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from torch2engine.capture.torch_types import dtype_name
from torch2engine.core.config import Tolerance
from torch2engine.core.errors import InputError
from torch2engine.core.precisions import DEFAULT_PRECISION, lowest_cast_precision
from torch2engine.core.pytree import Flat, Inputs, as_inputs, flatten, leaf_paths, unflatten, unique_names
from torch2engine.core.spec import Tree
from torch2engine.core.wording import with_article
from torch2engine.parity.compare import compare
from torch2engine.parity.parity_report import OutputParity, ParityReport
from torch2engine.parity.tolerance_bounds import Bounds

__all__ = ["assert_parity", "assert_parity_on_each"]

_SUBJECT = "reference vs candidate"
__tracebackhide__ = True  # pytest then shows the caller's line, and none of this file


def assert_parity(
    reference: Callable[..., Any],
    candidate: Callable[..., Any],
    inputs: Any,
    *,
    tolerance: Tolerance | None = None,
    precision: str | None = None,
) -> ParityReport:
    """Assert that a candidate answers one call like its reference: same structure, same values within a tolerance.

    Each gets its own clones of all tensors. Both run without grad, in the mode (training or not) that they are in.

    Args:
        reference, candidate: modules or functions.
        inputs: a Tensor; a tuple or list of positional arguments; a Mapping of keyword arguments; or `Inputs`.
        tolerance: the bounds; None means the default of `precision`.
        precision: "fp32", "tf32", "fp16" or "bf16"; None means that of the reference's outputs with the fewest digits.

    Returns:
        the report; its notes say if one of the two writes into its inputs. What both write is compared, too.

    Raises:
        ParityError: they differ; the message says where, and holds the table.
        InputError: inputs in another form, both tolerance and precision, or a result that is no pytree of tensors.

    >>> from torch2engine.testing import assert_parity
    >>> report = assert_parity(torch.nn.GELU(), torch.nn.functional.gelu, torch.linspace(-3, 3, 50))
    >>> report.passed
    True
    """
    report = _compare_call(reference, candidate, inputs, tolerance, precision, case="")
    report.raise_if_failed()
    return report


def assert_parity_on_each(
    reference: Callable[..., Any],
    candidate: Callable[..., Any],
    cases: Mapping[str, Any] | Iterable[Any],
    *,
    tolerance: Tolerance | None = None,
    precision: str | None = None,
) -> ParityReport:
    """Assert parity on several calls, and name every case that fails, not only the first.

    It is not an option of `assert_parity`, because there a list of tensors is one call: its positional arguments.

    Args:
        reference, candidate: modules or functions.
        cases: inputs by case name, or an iterable of inputs, named "0", "1", ...; each in a form of `assert_parity`.
        tolerance, precision: as in `assert_parity`; without both, the first case's outputs decide for all.

    Returns:
        one report with the rows of all cases.

    Raises:
        ParityError: a case differs, or there is none.
        InputError: as in `assert_parity`.

    >>> from torch2engine.testing import assert_parity_on_each
    >>> report = assert_parity_on_each(model, module, {"one": sample[:1], "all": sample})
    >>> [row.case for row in report.rows]
    ['one', 'all']
    """
    named_cases: Iterable[tuple[str, Any]]
    if isinstance(cases, Mapping):
        named_cases = cast("Mapping[str, Any]", cases).items()
    else:
        named_cases = ((str(number), inputs) for number, inputs in enumerate(cases))
    report: ParityReport | None = None
    for name, inputs in named_cases:
        if report is None:
            report = _compare_call(reference, candidate, inputs, tolerance, precision, case=name)
        else:
            report = report.merge(_compare_call(reference, candidate, inputs, report.tolerance, None, case=name))
    if report is None:
        report = ParityReport((), _SUBJECT, _choose_tolerance(tolerance, precision, []))
    report.raise_if_failed()
    return report


def _compare_call(
    reference: Callable[..., Any],
    candidate: Callable[..., Any],
    inputs: Any,
    tolerance: Tolerance | None,
    precision: str | None,
    case: str,
) -> ParityReport:
    call_inputs = as_inputs(inputs)
    reference_call = _call(reference, call_inputs)
    expected = flatten(reference_call.result, "output", result=True)
    # Copies: a candidate that shares state with the reference must not overwrite the answer that it is compared with.
    expected = replace(expected, leaves=[leaf.detach().clone() for leaf in expected.leaves])
    chosen_tolerance = _choose_tolerance(tolerance, precision, expected.leaves)
    candidate_call = _call(candidate, call_inputs)
    rows = _compare_results(expected, candidate_call.result, chosen_tolerance, case)
    rows += _compare_writes(reference_call, candidate_call, chosen_tolerance, case)
    of_case = f" of case '{case}'" if case else ""
    notes = [f"the reference writes into input '{name}'{of_case}" for name in reference_call.written]
    notes += [f"the candidate writes into input '{name}'{of_case}" for name in candidate_call.written]
    return ParityReport(tuple(rows), _SUBJECT, chosen_tolerance, tuple(notes))


def _compare_results(expected: Flat, result: Any, tolerance: Tolerance, case: str) -> list[OutputParity]:
    """Compare structure, constants and tensors of a candidate's result."""
    rows: list[OutputParity] = []
    try:
        answer = flatten(result, "output", result=True)
    except InputError as error:
        rows.append(OutputParity("output", case, False, f"structure: {error}"))
    else:
        difference = _difference(expected.tree, answer.tree, "output")
        if difference:
            rows.append(OutputParity("output", case, False, f"structure: {difference}"))
        rows.extend(compare(_by_name(expected), _by_path(answer, expected), tolerance, case=case))
    if not rows:
        # Two results without any tensor: their constants were compared, but that is no parity of a model.
        rows.append(OutputParity("output", case, False, "the reference returns no tensor, so nothing was compared"))
    return rows


def _compare_writes(reference: _Call, candidate: _Call, tolerance: Tolerance, case: str) -> list[OutputParity]:
    """Compare the new values of the inputs that both wrote into; where one alone does, notes say so."""
    both = [name for name in reference.written if name in candidate.written]
    expected = {f"{name} (written)": reference.written[name] for name in both}
    answer = {f"{name} (written)": candidate.written[name] for name in both}
    return list(compare(expected, answer, tolerance, case=case)) if both else []


def _choose_tolerance(tolerance: Tolerance | None, precision: str | None, outputs: list[torch.Tensor]) -> Tolerance:
    if tolerance is not None:
        if precision is not None:
            raise InputError(
                "assert_parity",
                got=f"both tolerance and precision={precision!r}",
                allowed="one of them",
                fix="leave out precision",
            )
        return Bounds.of(tolerance, DEFAULT_PRECISION).tolerance
    dtypes = {dtype_name(output.dtype) for output in outputs}
    return Tolerance.default(precision or lowest_cast_precision(dtypes) or DEFAULT_PRECISION)


@dataclass(frozen=True)
class _Call:
    """The result of a call, and the inputs that it wrote into, by name, with their new values."""

    result: Any
    written: dict[str, torch.Tensor]


def _call(function: Callable[..., Any], inputs: Inputs) -> _Call:
    """Call a function with clones of the inputs."""
    clones: dict[int, torch.Tensor] = {}  # one clone per tensor, so that one tensor passed twice stays one
    originals: dict[str, torch.Tensor] = {}

    def cloned(value: Any, name: str) -> Any:
        flat = flatten(value, name)
        originals.update(_by_name(flat))
        return unflatten(flat.tree, [clones.setdefault(id(leaf), leaf.detach().clone()) for leaf in flat.leaves])

    args = [cloned(value, str(position)) for position, value in enumerate(inputs.args)]
    kwargs = {name: cloned(value, name) for name, value in inputs.kwargs.items()}
    with torch.no_grad():
        result = function(*args, **kwargs)
    after = {name: clones[id(leaf)] for name, leaf in originals.items()}
    return _Call(result, {name: leaf for name, leaf in after.items() if not _unchanged(originals[name], leaf)})


def _unchanged(before: torch.Tensor, after: torch.Tensor) -> bool:
    if before.shape != after.shape:
        return False
    before = before.detach()
    return bool(((before == after) | ((before != before) & (after != after))).all())


def _by_name(flat: Flat) -> dict[str, torch.Tensor]:
    return dict(zip(flat.names, flat.leaves, strict=True))


def _by_path(got: Flat, expected: Flat) -> dict[str, torch.Tensor]:
    """The candidate's tensors under the reference's names for the same paths; names alone can collide."""
    names = dict(zip(leaf_paths(expected.tree), expected.names, strict=True))
    paths = leaf_paths(got.tree)
    others = [name for path, name in zip(paths, got.names, strict=True) if path not in names]
    renamed = iter(unique_names(others, taken=expected.names))
    return {names[path] if path in names else next(renamed): leaf for path, leaf in zip(paths, got.leaves, strict=True)}


def _difference(expected: Tree, got: Tree, path: str) -> str:
    """The first place where two results are not of one structure, or ""."""
    keys = set if expected.kind in ("dict", "mapping") else tuple
    if (expected.kind, expected.type_name) != (got.kind, got.type_name) or keys(expected.keys) != keys(got.keys):
        return f"{path} is {_described(got)}, the reference's is {_described(expected)}"
    if expected.kind == "constant" and not _same_constant(expected.value, got.value):
        return f"{path} is {got.value!r}, the reference's is {expected.value!r}"
    children = dict(zip(got.keys, got.children, strict=True))
    for key, child in zip(expected.keys, expected.children, strict=True):
        difference = _difference(child, children[key], f"{path}.{key}")
        if difference:
            return difference
    return ""


def _same_constant(expected: Any, got: Any) -> bool:
    return type(expected) is type(got) and (expected == got or (expected != expected and got != got))


def _described(tree: Tree) -> str:
    if tree.kind == "tensor":
        return "a tensor"
    if tree.kind == "constant":
        return repr(tree.value)
    name = tree.type_name.rpartition(":")[2] or tree.kind
    return f"{with_article(name)} of {', '.join(map(str, tree.keys)) or 'nothing'}"

"""Whether a signature and the tensors of a graph or an engine agree.

Enters: a signature, and tensors as a graph or an engine names them. Leaves: nothing, or the first difference. Separate
because a manifest is compared by the same rules with an ONNX graph and with an engine.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch2engine.artifact.onnx_outline import OutlineTensor
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.spec import Dim, Signature, TensorSpec

__all__ = ["check_agreement"]


def check_agreement(
    signature: Signature,
    inputs: Sequence[OutlineTensor],
    outputs: Sequence[OutlineTensor],
    *,
    subject: str,
    is_engine: bool = False,
) -> None:
    """Compare names, their order, dtypes, ranks and sizes.

    Args:
        signature: what the manifest says.
        inputs, outputs: the tensors of the graph or engine.
        subject: its name in the error, e.g. "an engine".
        is_engine: whether TensorRT gives the tensors. An engine has an order of its own, and may lack inputs that it
            never reads.

    Raises:
        SchemaError: the first difference.
    """
    for what, specs, found in (("input", signature.inputs, inputs), ("output", signature.outputs, outputs)):
        names = [tensor.name for tensor in found]
        expected = [spec.name for spec in specs]
        may_lack = is_engine and what == "input"
        agrees = set(names) <= set(expected) and (may_lack or len(names) == len(expected))
        if not agrees or not (is_engine or names == expected):
            raise SchemaError(
                f"{subject} with {_listed(names, what)}", f"{_listed(expected, what)}, as the manifest says"
            )
        by_name = {tensor.name: tensor for tensor in found}
        for spec in specs:
            if spec.name in by_name:
                _compare_tensor(spec, by_name[spec.name], what, subject)


def _listed(names: Sequence[str], what: str) -> str:
    return f"the {what}s " + ", ".join(f"'{name}'" for name in names) if names else f"no {what}s"


def _compare_tensor(spec: TensorSpec, found: OutlineTensor, what: str, subject: str) -> None:
    if found.dtype != spec.dtype:
        got = f"{subject} whose {what} '{spec.name}' has dtype {found.dtype}"
        raise SchemaError(got, f"{spec.dtype}, as the manifest says")
    if found.shape is None:
        return
    fits = len(found.shape) == len(spec.shape) and all(
        _fits(expected, size, what) for expected, size in zip(spec.shape, found.shape, strict=True)
    )
    if not fits:
        got = f"{subject} whose {what} '{spec.name}' has shape {_written(found.shape)}"
        raise SchemaError(got, f"{_written(spec.shape)}, as the manifest says")


def _written(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join("?" if size == "" else str(size) for size in shape) + "]"


def _fits(expected: Dim, found: Dim, what: str) -> bool:
    """Whether a dimension agrees with the manifest's; a graph need not know the sizes of its outputs."""
    if isinstance(expected, int):
        return not isinstance(found, int) or found == expected
    return what == "output" or not isinstance(found, int)

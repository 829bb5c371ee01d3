"""The table {aten operator: decomposition}, and its installation in torch.onnx.

Enters: the tables of the operator families. Leaves: a context in which torch.onnx decomposes these operators by them.
Separate because it alone knows how torch.onnx chooses a decomposition.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from torch2engine.exporter.decompositions.activations import ACTIVATIONS
from torch2engine.exporter.decompositions.aliases import ALIASES
from torch2engine.exporter.decompositions.attention import ATTENTION, needs_exact_attention
from torch2engine.exporter.decompositions.bags import BAGS
from torch2engine.exporter.decompositions.bessel import BESSEL
from torch2engine.exporter.decompositions.bits import BITS
from torch2engine.exporter.decompositions.cholesky import CHOLESKY
from torch2engine.exporter.decompositions.complex_numbers import COMPLEX_NUMBERS
from torch2engine.exporter.decompositions.counting import COUNTING
from torch2engine.exporter.decompositions.device_forms import DEVICE_FORMS
from torch2engine.exporter.decompositions.diagonals import DIAGONALS
from torch2engine.exporter.decompositions.distances import DISTANCES
from torch2engine.exporter.decompositions.division import DIVISION
from torch2engine.exporter.decompositions.error_function import ERROR_FUNCTION
from torch2engine.exporter.decompositions.folding import FOLDING
from torch2engine.exporter.decompositions.fourier import FOURIER
from torch2engine.exporter.decompositions.gamma_functions import GAMMA_FUNCTIONS
from torch2engine.exporter.decompositions.grids import GRIDS
from torch2engine.exporter.decompositions.grouped_products import GROUPED_PRODUCTS, grouped_products_of_transformers
from torch2engine.exporter.decompositions.linear_algebra import LINEAR_ALGEBRA
from torch2engine.exporter.decompositions.logarithms import LOGARITHMS
from torch2engine.exporter.decompositions.matrix_functions import MATRIX_FUNCTIONS
from torch2engine.exporter.decompositions.normalizing import NORMALIZING
from torch2engine.exporter.decompositions.ordering import ORDERING
from torch2engine.exporter.decompositions.pooling import POOLING
from torch2engine.exporter.decompositions.rearranging import REARRANGING
from torch2engine.exporter.decompositions.reductions import REDUCTIONS
from torch2engine.exporter.decompositions.resizing import RESIZING
from torch2engine.exporter.decompositions.running import RUNNING
from torch2engine.exporter.decompositions.scattering import SCATTERING
from torch2engine.exporter.decompositions.signs import SIGNS
from torch2engine.exporter.decompositions.size_division import floor_negative_sizes
from torch2engine.exporter.decompositions.small_types import SMALL_TYPES
from torch2engine.exporter.decompositions.sorting import SORTING
from torch2engine.exporter.decompositions.splits import SPLITS
from torch2engine.exporter.decompositions.stacking import STACKING
from torch2engine.exporter.decompositions.transposed_convolutions import TRANSPOSED_CONVOLUTIONS
from torch2engine.exporter.decompositions.triangles import TRIANGLES

__all__ = ["NAMED", "PYTORCHS", "decompositions", "exact_decompositions", "find_operator"]

NAMED: Mapping[str, Callable[..., Any]] = {
    **ATTENTION,
    **LOGARITHMS,
    **ERROR_FUNCTION,
    **GAMMA_FUNCTIONS,
    **BESSEL,
    **ORDERING,
    **RUNNING,
    **POOLING,
    **DISTANCES,
    **ALIASES,
    **COMPLEX_NUMBERS,
    **COUNTING,
    **SCATTERING,
    **REARRANGING,
    **BAGS,
    **BITS,
    **DIAGONALS,
    **FOLDING,
    **FOURIER,
    **GROUPED_PRODUCTS,
    **LINEAR_ALGEBRA,
    **NORMALIZING,
    **CHOLESKY,
    **MATRIX_FUNCTIONS,
    **GRIDS,
    **SORTING,
    **TRANSPOSED_CONVOLUTIONS,
    **SMALL_TYPES,
    **REDUCTIONS,
    **RESIZING,
    **STACKING,
    **SIGNS,
    **DIVISION,
    **DEVICE_FORMS,
    **SPLITS,
    **ACTIVATIONS,
}
# torch.onnx ignores label smoothing, and refuses probabilities as a target; TensorRT has none of ONNX's losses.
PYTORCHS = ("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss_forward", "nll_loss2d_forward")
_EXPORTER_TABLE = "torch.onnx._internal.exporter._decomp"


@cache
def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return {operator overload: decomposition} for the operators that this torch has; it is the same at each call."""
    pytorchs: Any = torch.export.default_decompositions()
    named = {find_operator(name): decomposition for name, decomposition in NAMED.items()}
    kept: dict[Any, Callable[..., Any]] = {find_operator(name): pytorchs[find_operator(name)] for name in PYTORCHS}
    found = {operator: decomposition for operator, decomposition in {**kept, **named}.items() if operator is not None}
    return MappingProxyType(found)


def find_operator(name: str) -> Any:
    """Find "logit" or "pow.Tensor_Scalar"; None where this torch lacks the operator."""
    packet_name, _, overload_name = name.partition(".")
    packet: Any = getattr(torch.ops.aten, packet_name, None)
    return getattr(packet, overload_name or "default", None)


def _with_second_choice(
    exact: Mapping[Any, Callable[..., Any]], torchs: Mapping[Any, Callable[..., Any]]
) -> dict[Any, Callable[..., Any]]:
    """The decompositions of this table. Where one returns NotImplemented, torch's own is used, if it has one."""

    def either(first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
        def decomposition(*args: Any, **options: Any) -> Any:
            result = first(*args, **options)
            return second(*args, **options) if result is NotImplemented else result

        return decomposition

    return {
        operator: either(first, torchs[operator]) if operator in torchs else first for operator, first in exact.items()
    }


@contextmanager
def exact_decompositions(
    program: torch.export.ExportedProgram, is_refittable: bool = False
) -> Generator[torch.export.ExportedProgram]:
    """Let torch.onnx decompose by this table first.

    torch.onnx has no public option for this: its `custom_translation_table` takes ONNX functions only. A separate
    `run_decompositions` is the second choice, because it traces the program again, which doubles the time of an export.

    Args:
        program: divisions of its sizes are changed in place.
        is_refittable: whether other weights can be given to the engine of the graph.

    Returns:
        the program to give to torch.onnx.
    """
    floor_negative_sizes(program)
    exact = {**decompositions(), **grouped_products_of_transformers()}
    if is_refittable:
        exact.update({find_operator(name): decomposition for name, decomposition in TRIANGLES.items()})
    if not needs_exact_attention(program, is_refittable):
        del exact[find_operator("scaled_dot_product_attention")]
    try:
        exporter: Any = importlib.import_module(_EXPORTER_TABLE)
        before = exporter.create_onnx_friendly_decomposition_table
    except (ImportError, AttributeError):  # other versions
        pytorchs: Any = torch.export.default_decompositions()
        yield program.run_decompositions(_with_second_choice(exact, pytorchs))
        return

    def with_exact(onnx_registered_ops: Any) -> dict[Any, Callable[..., Any]]:
        torchs = before(onnx_registered_ops)
        return {**torchs, **_with_second_choice(exact, torchs)}

    exporter.create_onnx_friendly_decomposition_table = with_exact
    try:
        yield program
    finally:
        exporter.create_onnx_friendly_decomposition_table = before

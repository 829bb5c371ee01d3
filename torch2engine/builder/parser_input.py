"""The path of an ONNX file → the model that TensorRT's parser reads in its place.

Enters: the path, and what is built of it. Leaves: the bytes to parse instead, or nothing. Separate because the file is
read once and written once, however many changes its builder needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from torch2engine.builder.own_constants import constant_names, name_own_constants
from torch2engine.builder.rewrites.activation_products_to_unfused import separate_activations
from torch2engine.builder.rewrites.attention_to_one_node import fuse_attention
from torch2engine.builder.rewrites.attention_to_three_dimensions import fold_heads
from torch2engine.builder.rewrites.bytes_to_int32 import widen_bytes
from torch2engine.builder.rewrites.cyclic_shifts_to_slices import slice_cyclic_shifts
from torch2engine.builder.rewrites.long_sums_to_short_sums import split_long_sums
from torch2engine.builder.rewrites.misread_nodes_to_importer_form import importer_form
from torch2engine.builder.rewrites.projections_to_one_product import merge_projections
from torch2engine.builder.rewrites.recurrent_layers_to_scans import scan_recurrent_layers
from torch2engine.builder.rewrites.short_products_to_multiplications import write_out_short_products
from torch2engine.builder.rewrites.single_group_norms_to_operators import write_out_single_group_norms
from torch2engine.builder.rewrites.zero_rows_to_after_product import zero_rows_later
from torch2engine.onnx_graph.model_bytes import take_pieces

__all__ = ["parser_input"]

# (ModelProto, the folder of its external data) -> the model with the change; None where it needs none
_Change: TypeAlias = Callable[[Any, Path], Any | None]

_FOR_ALL: tuple[_Change, ...] = (importer_form, widen_bytes)
_FOR_RTX: tuple[_Change, ...] = (
    zero_rows_later,
    separate_activations,
    write_out_single_group_norms,
    slice_cyclic_shifts,
    write_out_short_products,
)
# Not where weights can be replaced later: those of a loop and of a merged product follow from the file's, and the scale
# of folded attention is a weight that no module has.
_FOR_FIXED_WEIGHTS: tuple[_Change, ...] = (scan_recurrent_layers, fold_heads, merge_projections)


def parser_input(
    path: Path, *, is_rtx: bool, cuts_sums: bool, is_refittable: bool = False, fuses_attention: bool = True
) -> bytes | None:
    """Change a model into the form that its builder needs.

    Args:
        path: the ONNX file; its external data lie beside it.
        is_rtx: whether TensorRT-RTX builds it.
        cuts_sums: whether TensorRT-RTX gets long float32 sums in pieces. A refit finds weights by their names in the
            file, so those of a refittable engine stay whole. TF32 rounds more than a long sum.
        is_refittable: whether the engine's weights can be replaced. Constants that a change adds then have names by
            which a refit knows them.
        fuses_attention: whether TensorRT-RTX gets attention as one node.

    Returns:
        the model to parse in the file's place; None if the file is right as it is.
    """
    import onnx  # only here: it takes long to load

    changes = [*_FOR_ALL]
    if is_rtx and fuses_attention:
        changes.append(fuse_attention)
    if is_rtx:
        changes.extend(_FOR_RTX)
    if is_rtx and not is_refittable:
        changes.extend(_FOR_FIXED_WEIGHTS)
    if is_rtx and cuts_sums:
        changes.append(split_long_sums)
    model: Any = onnx.load(str(path), load_external_data=False)
    earlier = constant_names(model)
    is_changed = False
    for change in changes:
        changed = change(model, path.parent)
        if changed is not None:
            model = changed
            is_changed = True
    if is_changed and is_refittable:
        name_own_constants(model, earlier)
    return b"".join(take_pieces(model)) if is_changed else None

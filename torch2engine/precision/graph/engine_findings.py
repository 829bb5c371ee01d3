"""An engine's profiles, graph and layers → what makes it slower than it could be.

Enters: an artifact, what its arithmetic was found to be, and TensorRT's list of its layers. Leaves: findings. Separate
because these rules need neither a call nor a GPU: deploy() applies them once, and the report keeps what they find.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.core.finding import Finding
from torch2engine.core.precision_report import (
    UNKNOWN,
    MultiplyAddNode,
    PrecisionReport,
    named_modules,
    total_multiply_adds,
)
from torch2engine.core.precisions import DEFAULT_PRECISION
from torch2engine.core.spec import Profile, Signature
from torch2engine.onnx_graph.attention_blocks import AttentionBlock, find_attention_blocks
from torch2engine.precision.graph.engine_layers import Layer, Multiplies, read_layers

__all__ = [
    "attention_blocks_of",
    "engine_findings",
    "layer_findings",
    "precision_findings",
    "profile_findings",
    "unfused_blocks",
]

_FAR_ABOVE_OPT = 8  # max as a multiple of opt
_FAR_BELOW_OPT = 32  # opt as a multiple of min
_LEAST_ISLAND = 0.01  # share of the multiply-adds
_MOVES_DATA = re.compile(r"reformat|reshape|cast|copy|shuffle|transpose|permute", re.IGNORECASE)
_MOST_MOVES = 0.25  # share of the layers
_FEWEST_MOVES = 8


def engine_findings(
    artifact: EngineArtifact, computed: PrecisionReport | None = None, layers: str = ""
) -> tuple[Finding, ...]:
    """Apply the rules that need no call.

    Args:
        artifact: the engine; without its ONNX model nothing is said about attention.
        computed: the precisions that the engine computes in; None where they are not known.
        layers: TensorRT's list of the engine's layers; "" where the engine is not live.
    """
    found = profile_findings(artifact.signature, artifact.profiles)
    if computed is not None:
        found += precision_findings(computed.products)
    entries = read_layers(layers)
    if entries:
        found += layer_findings(entries, attention_blocks_of(artifact))
    return tuple(found)


def profile_findings(signature: Signature, profiles: Sequence[Profile]) -> list[Finding]:
    """Apply the rules on the sizes of calls."""
    return [*_wide_profiles(signature, profiles), *_fixed_batch(signature)]


def precision_findings(nodes: Sequence[MultiplyAddNode]) -> list[Finding]:
    """Apply the rules on the types that products are computed in."""
    return [*_precision_not_taken(nodes), *_float32_islands(nodes)]


def layer_findings(layers: Sequence[Layer], blocks: Sequence[AttentionBlock]) -> list[Finding]:
    """Apply the rules on the layers of an engine.

    Args:
        layers: of the engine.
        blocks: the attention in the ONNX model that it was built from.
    """
    return [*_moves(layers), *_unfused_attention(blocks, layers)]


def _wide_profiles(signature: Signature, profiles: Sequence[Profile]) -> Iterable[Finding]:
    """Axes whose ends are far from the size that kernels are chosen for."""
    for number, profile in enumerate(profiles):
        for name, (low, opt, high) in profile.ranges.items():
            if high >= _FAR_ABOVE_OPT * opt:
                measured = f"its largest size is {high / opt:.0f} times its opt"
            elif opt >= _FAR_BELOW_OPT * low:
                measured = f"its opt is {opt / low:.0f} times its smallest size"
            else:
                continue
            yield Finding(
                name="wide profile",
                measured=f"axis '{name}' of profile {number} is {low}..{high} with opt {opt}: {measured}",
                why="TensorRT chooses kernels for opt and plans memory for the largest size; far from opt both are bad",
                suggestion=f"two profiles: profiles={_two_profiles(signature, profile, name)}",
            )


def _two_profiles(signature: Signature, profile: Profile, name: str) -> list[dict[str, tuple[int, int, int]]]:
    """A profile cut in two along one axis, in the form of deploy's `profiles`."""
    low, opt, high = profile.ranges[name]
    step = next((axis.multiple_of for axis in signature.axes if axis.name == name), 1)

    def between(smaller: int, larger: int) -> int:
        return max(smaller, round(math.sqrt(smaller * larger) / step) * step)

    if high >= _FAR_ABOVE_OPT * opt:
        middle = between(opt, high)
        halves = ((low, opt, middle), (middle, between(middle, high), high))
    else:
        middle = between(low, opt)
        halves = ((low, between(low, middle), middle), (middle, opt, high))
    ranges = {axis: (sizes[0], sizes[1], sizes[2]) for axis, sizes in profile.ranges.items()}
    return [{**ranges, name: half} for half in halves]


def _fixed_batch(signature: Signature) -> Iterable[Finding]:
    """Inputs that all hold exactly one entry along their first axis."""
    shapes = [spec.shape for spec in signature.call_inputs if spec.shape]
    if not shapes or any(shape[0] != 1 for shape in shapes):
        return
    axes = ", ".join(f"{spec.name!r}: {{0: 'batch'}}" for spec in signature.call_inputs if spec.shape)
    yield Finding(
        name="small batch",
        measured="every input holds 1 entry along its first axis, and that axis is fixed",
        why="One entry rarely fills a GPU, and several mostly take little longer",
        suggestion=f"if entries are independent, a sample of several with dynamic_axes={{{axes}}}",
    )


def _precision_not_taken(nodes: Sequence[MultiplyAddNode]) -> Iterable[Finding]:
    """Products that the graph has in a low precision, and the engine in another one."""
    others = [node for node in nodes if node.precision != DEFAULT_PRECISION and _is_computed_otherwise(node)]
    if not others:
        return
    modules = named_modules(node.module for node in others)
    words = sorted({f"{node.precision} in {node.engine}" for node in others})
    yield Finding(
        name="precision not taken",
        measured=f"{_share(others, nodes)} of the multiply-adds are computed in another type than the graph's "
        f"({', '.join(words)}): {modules}",
        why="TensorRT has no kernel in that type for them, so they gain no speed and pay for the casts around them",
        suggestion="Precision(..., keep_fp32=[...]) with these modules, or fp16, which has most kernels",
    )


def _is_computed_otherwise(node: MultiplyAddNode) -> bool:
    return node.engine not in ("", UNKNOWN, node.precision)


def _float32_islands(nodes: Sequence[MultiplyAddNode]) -> Iterable[Finding]:
    """Products that a lowered graph leaves in float32."""
    islands = [node for node in nodes if node.precision == DEFAULT_PRECISION]
    if (
        not islands
        or len(islands) == len(nodes)
        or total_multiply_adds(islands) < _LEAST_ISLAND * total_multiply_adds(nodes)
    ):
        return
    yield Finding(
        name="float32 islands",
        measured=f"{len(islands)} of {len(nodes)} products, with {_share(islands, nodes)} of the multiply-adds, are in "
        f"float32: {named_modules(node.module for node in islands)}",
        why="Float32 products are the slowest, and each change of type is a copy",
        suggestion="calibration=[...] with real inputs, a larger budget, or another precision; keep_fp32 names modules "
        "that stay on purpose",
    )


def _moves(layers: Sequence[Layer]) -> Iterable[Finding]:
    """Layers that compute nothing."""
    moves = [layer for layer in layers if _MOVES_DATA.fullmatch(layer.kind)]
    if len(moves) < _FEWEST_MOVES or len(moves) < _MOST_MOVES * len(layers):
        return
    kinds = ", ".join(sorted({layer.kind for layer in moves}))
    yield Finding(
        name="reformats",
        measured=f"{len(moves)} of {len(layers)} layers only move or convert data ({kinds})",
        why="Each reads and writes whole tensors without computing anything",
        suggestion="one precision for neighbouring modules, and fewer transposes and reshapes in forward()",
    )


def _unfused_attention(blocks: Sequence[AttentionBlock], layers: Sequence[Layer]) -> Iterable[Finding]:
    """Attention whose products are layers of their own."""
    types = _types_of_products(layers)
    unfused = unfused_blocks(blocks, layers)
    if not unfused:
        return
    computed_in = {types[name] for block in unfused for name in (block.scores, block.result) if name in types}
    is_wide = computed_in == {DEFAULT_PRECISION}
    yield Finding(
        name="unfused attention",
        measured=f"separate products in {', '.join(sorted(computed_in))} compute {len(unfused)} of {len(blocks)} "
        f"attention blocks: {named_modules(block.module for block in unfused)}",
        why="The scores, length times length for each head, go through memory several times",
        suggestion="precision='fp16' or 'bf16': fused kernels exist for half precision"
        if is_wide
        else "F.scaled_dot_product_attention with heads of 16 to 256 entries, in multiples of 8, in fp16 or bf16",
    )


def unfused_blocks(blocks: Sequence[AttentionBlock], layers: Sequence[Layer]) -> list[AttentionBlock]:
    """Find the attention whose products are layers of their own.

    Args:
        blocks: the attention in the ONNX model that the engine was built from.
        layers: of the engine.
    """
    types = _types_of_products(layers)
    return [block for block in blocks if types.keys() & {block.scores, block.result}]


def _types_of_products(layers: Sequence[Layer]) -> dict[str, str]:
    """{node: the type that a layer of its own computes it in}, for matrix products and convolutions."""
    return {name: layer.precision for layer in layers if layer.multiplies == Multiplies.SURELY for name in layer.nodes}


def attention_blocks_of(artifact: EngineArtifact) -> tuple[AttentionBlock, ...]:
    """The attention in the ONNX model that the engine was built from; none where that model is not here."""
    path = artifact.checked_onnx_path
    if path is None:
        return ()
    import onnx  # only here: a saved engine may be read without it

    return find_attention_blocks(onnx.load(str(path), load_external_data=False))


def _share(some: Sequence[MultiplyAddNode], nodes: Sequence[MultiplyAddNode]) -> str:
    return f"{100 * total_multiply_adds(some) / (total_multiply_adds(nodes) or 1):.1f} %"

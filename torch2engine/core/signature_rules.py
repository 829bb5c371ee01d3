"""The rules that a signature in a manifest must keep, beyond the type of each field.

Enters: JSON values of an axis or a signature, whose fields have the right types. Leaves: nothing, or a `SchemaError`
that names the field. Separate because these rules compare fields with each other, and the classes of `spec` hold data.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from typing import Any

from torch2engine.core.json_rules import SchemaError, field_error
from torch2engine.core.live_parameter_data import check_live_inputs
from torch2engine.core.size_expression import parse_size_expression
from torch2engine.core.structure import TREE_JSON

__all__ = ["check_signature", "check_sizes"]


def check_sizes(members: dict[str, Any], where: str) -> None:
    sizes = [members["min"], members["opt"], members["max"]]
    if sizes != sorted(sizes):
        raise field_error(sizes, where, "min <= opt <= max")
    if any(size % members["multiple_of"] for size in sizes):
        raise field_error(sizes, where, f"multiples of {members['multiple_of']}")


def _check_effects(members: dict[str, Any], where: str) -> None:
    """Each written input has an output of its own, of its dtype; what is refilled has tensors that there are."""
    inputs = {tensor["name"]: tensor["dtype"] for tensor in members["inputs"]}
    outputs = {tensor["name"]: tensor["dtype"] for tensor in members["outputs"]}
    for index, write in enumerate(members.get("writes", [])):
        pair = [write["input"], write["output"]]
        found = [inputs.pop(pair[0], None), outputs.pop(pair[1], None)]  # popped: no other write may name them
        if None in found or found[0] != found[1]:
            raise field_error(pair, f"{where}.writes[{index}]", "an input, and an output of its dtype, named once")
    known = {tensor["name"] for tensor in (*members["inputs"], *members["outputs"])}
    for index, refill in enumerate(members.get("refills", [])):
        names = refill["tensors"]
        if not known.issuperset(names) or TREE_JSON.decode(refill["tree"]).leaves() != len(names):
            raise field_error(names, f"{where}.refills[{index}].tensors", "an input or output for each tensor")


def _check_counts(members: dict[str, Any], where: str) -> None:
    """The parameters hold every input of a call; the result, and what the model writes, hold every output."""
    trees = [parameter["tree"] for parameter in members["parameters"] if parameter["tree"] is not None]
    tensors = sum(TREE_JSON.decode(tree).leaves() for tree in trees)
    given = [tensor for tensor in members["inputs"] if "live" not in tensor]
    if tensors != len(given):
        got = f"{tensors} tensors in manifest field {where}.parameters"
        raise SchemaError(got, f"one for each of {len(given)} inputs")
    in_result = TREE_JSON.decode(members["output"]).leaves()
    written = {write["output"] for write in members.get("writes", [])}
    written.update(name for refill in members.get("refills", []) for name in refill["tensors"])
    others = [tensor["name"] for tensor in members["outputs"][in_result:]]
    if in_result > len(members["outputs"]) or not written.issuperset(others):
        got = f"{in_result} tensors in manifest field {where}.output"
        raise SchemaError(got, f"one for each of {len(members['outputs'])} outputs that the model does not write")


def check_signature(members: dict[str, Any], where: str) -> None:
    """Names are unique, the inputs use the axes that there are, and there are as many tensors as the trees hold."""
    _check_effects(members, where)
    written = {write["input"] for write in members.get("writes", [])}
    check_live_inputs(members["inputs"], written, f"{where}.inputs")
    _check_counts(members, where)
    axes = [axis["name"] for axis in members["axes"]]
    tensors = [tensor["name"] for tensor in (*members["inputs"], *members["outputs"])]
    for subject, names in (("axes", axes), ("tensors", tensors)):
        for name, count in Counter(names).most_common(1):
            if count > 1:
                raise SchemaError(f"its manifest has {count} {subject} named {reprlib.repr(name)}", "names are unique")
    dims = {dim for tensor in members["inputs"] for dim in tensor["shape"] if isinstance(dim, str)}
    used = {dim for dim in dims if dim.isidentifier()}
    for expression in dims - used:
        try:
            derived_from = parse_size_expression(expression).axes
        except ValueError as error:
            raise SchemaError(f"its manifest has an input of size {reprlib.repr(expression)}", str(error)) from None
        if not derived_from <= used:
            raise SchemaError(f"its manifest has an input of size {expression!r}", f"its axes are {sorted(used)}")
    if used != set(axes):
        raise SchemaError(
            f"its manifest's inputs use the axes {sorted(used)}",
            f"they must be those in {where}.axes: {sorted(axes)}",
        )

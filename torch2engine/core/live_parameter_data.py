"""Parameters and buffers that are inputs of the engine, as plain data, and their values in a manifest.

Enters: paths in the model, and values as bytes. Leaves: `LiveParameter`, and text for JSON; or an error for members
that don't fit together. Separate from `spec` because everything about live parameters that needs no torch is here.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch2engine.core.json_rules import TEXT, Object, SchemaError, check_names, field_error, word

__all__ = ["LIVE_JSON", "LiveParameter", "check_live_inputs", "check_live_values", "decode_value", "encode_value"]


@dataclass(frozen=True)
class LiveParameter:
    """A parameter or buffer of the model that is an input of the engine.

    Args:
        path: its dotted name in the model.
        kind: "parameter" or "buffer".
    """

    path: str
    kind: str


LIVE_JSON = Object(LiveParameter, {"path": TEXT, "kind": word(("parameter", "buffer"))})


def encode_value(value: bytes) -> str:
    """A tensor's bytes as text.

    >>> decode_value(encode_value(bytes([1, 2])))
    b'\\x01\\x02'
    """
    return base64.b64encode(value).decode("ascii")


def decode_value(text: str) -> bytes:
    """The inverse of `encode_value`."""
    return base64.b64decode(text, validate=True)


def check_live_inputs(inputs: Sequence[Mapping[str, Any]], written: set[str], where: str) -> None:
    """Check that live parameters are the last inputs, of fixed sizes, each named once, and written by nobody.

    Args:
        inputs: of a signature, as JSON objects.
        written: names of the inputs that the model writes into.
        where: the place of the inputs, for an error.

    Raises:
        SchemaError: the first one that is not so.
    """
    live = [tensor for tensor in inputs if "live" in tensor]
    if list(inputs[len(inputs) - len(live) :]) != live:
        raise SchemaError(f"an input of a call behind a live parameter in {where}", "live parameters last")
    for path, count in Counter(tensor["live"]["path"] for tensor in live).most_common(1):
        if count > 1:
            raise field_error(path, where, "each live parameter once")
    for tensor in live:
        is_fixed = all(isinstance(dim, int) for dim in tensor["shape"]) and "preprocess" not in tensor
        if not is_fixed or tensor["name"] in written:
            raise field_error(tensor["name"], where, "a live parameter of fixed sizes, which the model does not write")


def check_live_values(values: object, inputs: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check that there is a value for each live parameter, of its size.

    Args:
        values: input name -> text of `encode_value`.
        inputs: of a signature, as JSON objects.
        where: the place of the values, for an error.

    Raises:
        SchemaError: the first one that is not so.
    """
    live = {tensor["name"]: tensor for tensor in inputs if "live" in tensor}
    for name, text in check_names(values, where, list(live)).items():
        size = math.prod(live[name]["shape"]) * _item_bytes(live[name]["dtype"])
        try:
            found = len(decode_value(text)) if isinstance(text, str) else -1
        except (ValueError, binascii.Error):
            found = -1
        if found != size:
            raise field_error(text, f"{where}[{name!r}]", f"{size} bytes in base64")


def _item_bytes(dtype: str) -> int:
    """The bytes of one element, by the number in the dtype's name.

    >>> _item_bytes("bfloat16"), _item_bytes("bool"), _item_bytes("float8_e4m3fn")
    (2, 1, 1)
    """
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(1, int(bits[0]) // 8)

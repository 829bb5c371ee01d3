"""The dtypes of PyTorch by their names, and which casts between them lose nothing.

Enters: names of dtypes. Leaves: facts about them. Separate, and without torch, so that a Processor refuses a lossy
array as a deployed module refuses a lossy tensor.
"""

from __future__ import annotations

__all__ = ["DTYPES", "lossless_cast", "lossless_sources"]

# They decide whether every value of one dtype exists in another. Of integers: the bits without the sign. Of floats: the
# bits of integers that are exact, and the bits of the exponent.
_INTEGER_BITS = {"uint8": 8, "int8": 7, "int16": 15, "int32": 31, "int64": 63}
_FLOAT_BITS = {"float16": (11, 5), "bfloat16": (8, 8), "float32": (24, 8), "float64": (53, 11)}

# Every dtype that PyTorch has.
DTYPES = frozenset(f"{sign}{bits}" for sign in ("int", "uint") for bits in (*range(1, 9), 16, 32, 64)) | {
    *("bool", "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
}


def lossless_cast(source: str, target: str) -> bool:
    """Tell whether every value of dtype `source` survives a cast to dtype `target` unchanged.

    Args:
        source, target: dtype names as PyTorch spells them, e.g. ``"float16"``.

    >>> lossless_cast("float16", "float32"), lossless_cast("float64", "float32"), lossless_cast("int32", "float32")
    (True, False, False)
    """
    if source == target:
        return True
    if source in _FLOAT_BITS and target in _FLOAT_BITS:
        return all(s <= t for s, t in zip(_FLOAT_BITS[source], _FLOAT_BITS[target], strict=True))
    if source in _INTEGER_BITS and target in _INTEGER_BITS:
        signed_to_unsigned = source != "uint8" and target == "uint8"
        return _INTEGER_BITS[source] <= _INTEGER_BITS[target] and not signed_to_unsigned
    return False


def lossless_sources(target: str) -> list[str]:
    """List the other dtypes whose values all survive a cast to this one.

    >>> lossless_sources("int32")
    ['uint8', 'int8', 'int16']
    """
    return [dtype for dtype in (*_FLOAT_BITS, *_INTEGER_BITS) if dtype != target and lossless_cast(dtype, target)]

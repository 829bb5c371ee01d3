"""Whether an archive of torch.export can be loaded without running code from it.

Enters: the bytes of a ``.pt2`` file that anybody may have written. Leaves: an archive with the parts that were checked,
and nothing else. Separate because torch.export.load trusts its file: it unpickles objects, imports modules by name, and
evaluates the text of symbolic sizes as Python (torch 2.11 to 2.13).
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any, cast

from torch2engine.core.json_rules import SchemaError, is_array, is_object

__all__ = ["checked_archive"]

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
    rf"|{re.escape(_MODEL)}|{re.escape(_SAMPLES)}|{re.escape(_CONFIGS[0])}|{re.escape(_CONFIGS[1])}"
)

_OPERATOR = re.compile(r"torch\.ops\.(?!_)\w+\.\w+(\.\w+)?|_operator\.[a-z]+_?|math\.[a-z]+|torch\.(_sym_|sym_)[a-z_]+")
_READS_FILES = "torch.ops.aten.from_file"
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")

# torch writes a symbolic size as calls of these constructors of sympy and of torch.utils._sympy.functions.
_CONSTRUCTORS = frozenset(
    {
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Min",
        "Max",
        "Mod",
        "Abs",
        "floor",
        "ceiling",
        "Tuple",
        "Piecewise",
        "ExprCondPair",
        "Equality",
        "Unequality",
        "LessThan",
        "GreaterThan",
        "StrictLessThan",
        "StrictGreaterThan",
        "Eq",
        "Ne",
        "Le",
        "Ge",
        "Lt",
        "Gt",
        "And",
        "Or",
        "Not",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
        "IsNonOverlappingAndDenseIndicator",
        "BitwiseFn_bitwise_and",
        "BitwiseFn_bitwise_or",
    }
)
_CONSTANTS = ("true", "false", "oo", "int_oo")
_NAME = re.compile(r"[A-Za-z_]\w*")


def checked_archive(data: bytes | memoryview) -> bytes:
    """Check an archive of one exported program, and write it anew without sample inputs and without guards.

    The new archive holds what was checked, byte for byte: two readers of one damaged file may see different contents.

    Raises:
        SchemaError: it holds pickled objects, sizes or operators that are no plain data, or foreign files.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
            root = archive.infolist()[0].filename.partition("/")[0]
    except (zipfile.BadZipFile, OSError, IndexError, NotImplementedError, RuntimeError) as error:
        raise SchemaError(f"a program that is no archive ({error})", "what torch.export.save writes") from error
    for name in members:
        if not _MEMBER.fullmatch(name):
            raise SchemaError(f"a program with a file '{name}'", "a program of plain tensors")
    for name in _CONFIGS:
        _check_tensors(_json(members, name))
    model = _json(members, _MODEL)
    _check_model(model)
    model["guards_code"] = []  # text of Python; the module that calls the program checks sizes itself
    members[_MODEL] = json.dumps(model).encode()
    members[_SAMPLES] = b""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)  # the same bytes at any time
    return written.getvalue()


def _json(members: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(members[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise SchemaError(f"a program without a valid '{name}'", "what torch.export.save writes") from error
    if not is_object(value):
        raise SchemaError(f"a program without a valid '{name}'", "what torch.export.save writes")
    return value


def _check_tensors(config: dict[str, Any]) -> None:
    tensors = config.get("config")
    for name, entry in (tensors if is_object(tensors) else {}).items():
        if not is_object(entry) or entry.get("use_pickle") is not False or not is_object(entry.get("tensor_meta")):
            raise SchemaError(f"a program with a pickled tensor '{name}'", "a program of plain tensors")


def _check_model(model: dict[str, Any]) -> None:
    for field, text in _texts(model, ""):
        if field == "target" and not (_OPERATOR.fullmatch(text) and not text.startswith(_READS_FILES)):
            raise SchemaError(f"a program with operator '{text[:100]}'", "operators of PyTorch, or registered ones")
        if field == "expr_str" and not _is_size(text):
            raise SchemaError(f"a program with size '{text[:100]}'", "sizes of numbers and symbols")
        if field in ("in_spec", "out_spec") and not _is_plain_structure(text):
            raise SchemaError("a program whose call takes other containers", "tuples, lists and dicts")


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, with the name of the field that holds it."""
    waiting: list[tuple[str, Any]] = [(field, value)]
    while waiting:
        name, item = waiting.pop()
        if is_object(item):
            waiting += item.items()
        elif is_array(item):
            waiting += [(name, entry) for entry in item]
        elif isinstance(item, str):
            yield name, item


def _is_size(text: str) -> bool:
    """Whether a text calls nothing but constructors of symbolic sizes, on numbers, names and each other."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_size_node(tree.body)


def _is_size_node(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        value = cast("object", node.value)
        return isinstance(value, (bool, int, float)) or (isinstance(value, str) and bool(_NAME.fullmatch(value)))
    if isinstance(node, ast.Name):
        return node.id in _CONSTANTS or bool(re.fullmatch(r"[suz]\d+", node.id))
    if isinstance(node, ast.UnaryOp):
        return _is_size_node(node.operand)
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, ast.Pow) and _is_size_node(node.left) and _is_size_node(node.right)
    if isinstance(node, ast.Call):
        constructs = isinstance(node.func, ast.Name) and node.func.id in _CONSTRUCTORS
        return constructs and all(map(_is_size_node, [*node.args, *(keyword.value for keyword in node.keywords)]))
    return False


def _is_plain_structure(text: str) -> bool:
    """Whether the structure of a call is made of Python's own containers, which need no import."""
    try:
        structure: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    waiting = [structure]
    while waiting:
        item = waiting.pop()
        if is_array(item):
            waiting += item
        elif is_object(item):
            if item.get("type") not in _CONTAINERS:
                return False
            waiting.append(item.get("children_spec"))
    return True

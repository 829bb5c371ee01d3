"""The ONNX graph of an artifact: which data files it needs, and whether the manifest agrees with it.

Enters: the bytes of model.onnx. Leaves: the names of its data files, or an ArtifactError. Separate because an artifact
that is made, loaded or received goes through the same checks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch2engine.artifact.agreement import check_agreement
from torch2engine.artifact.file_access import FileRecord, OpenFile
from torch2engine.artifact.files import ArtifactFiles, disk_errors
from torch2engine.artifact.manifest import NAME
from torch2engine.artifact.manifest_fields import FILE_NAME
from torch2engine.artifact.onnx_outline import Message, OnnxOutline, read_outline
from torch2engine.artifact.saved_folder import ONNX, PLAN, RUNTIME_CACHE, WEIGHTS, check_complete
from torch2engine.core.errors import ArtifactError
from torch2engine.core.json_rules import SchemaError
from torch2engine.core.spec import Signature

__all__ = ["check_graph", "data_files_in", "is_model_file"]

_AGAIN = "save it again or restore it from a copy"
_OTHERS = (PLAN, WEIGHTS, RUNTIME_CACHE)
_TAKEN = (NAME, ONNX, *_OTHERS)


def is_model_file(name: str) -> bool:
    """Whether a file of an artifact is model.onnx or belongs to it: the data files may have any other names."""
    return name not in _OTHERS


def data_files_in(folder: Path) -> list[str]:
    """The data files that the model.onnx of a folder needs; none if there is no model.onnx.

    Raises:
        ArtifactError: it is no ONNX file, a data file is missing, or one does not lie in the folder.
    """
    if not (folder / ONNX).is_file():
        return []
    with disk_errors(folder, ONNX):
        data = OpenFile(folder / ONNX).read()
    names = _outline(data, str(folder)).data_files
    present = [name for name in names if (folder / name).is_file()]
    check_complete(present, list(names), str(folder))
    return present


def check_graph(signature: Signature, files: ArtifactFiles) -> None:
    """Compare model.onnx, if it is here, with the manifest: its inputs, its outputs and its data files.

    Args:
        signature: the manifest's.
        files: the artifact's, each of them verified.

    Raises:
        ArtifactError: the first difference.
    """
    if ONNX not in files.names:
        return
    where = str(files)
    outline = _outline(files.read(ONNX), where)
    check_complete(files.names, list(outline.data_files), where)
    try:
        _check_sizes(outline.data_files, {name: files.record(name) for name in outline.data_files})
        check_agreement(signature, outline.inputs, outline.outputs, subject=f"a '{ONNX}'")
    except SchemaError as error:
        raise ArtifactError(
            f"artifact '{where}'", got=error.got, allowed=error.allowed, fix=_AGAIN, path=_path(where)
        ) from None


def _outline(data: Message, where: str) -> OnnxOutline:
    try:
        outline = read_outline(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArtifactError(
            f"artifact '{where}'",
            got=f"a '{ONNX}' that can't be read ({reason})",
            allowed="an ONNX file",
            fix=_AGAIN,
            path=_path(where),
        ) from error
    _check_places(outline.data_files, where)
    return outline


def _check_places(names: Collection[str], where: str) -> None:
    """Refuse data files that a saved folder can't hold: those elsewhere, and those with a name that we use."""
    for name in names:
        if name in _TAKEN or not FILE_NAME.fullmatch(name):
            raise ArtifactError(
                f"artifact '{where}'",
                got=f"external data in '{name}'",
                allowed=f"files beside {ONNX}, with names of letters, digits, '_', '.' and '-'",
                fix="write the model anew, e.g. onnx.save_model(onnx.load(path), path, save_as_external_data=True, "
                f"location='{ONNX}.data')",
                path=_path(where),
            )


def _check_sizes(least_bytes: Mapping[str, int], records: Mapping[str, FileRecord]) -> None:
    for name, least in least_bytes.items():
        if records[name].size_bytes < least:
            got = f"{records[name].size_bytes} bytes in '{name}'"
            raise SchemaError(got, f"{least} or more, as '{ONNX}' says")


def _path(where: str) -> str:
    """The path of model.onnx; "" for an artifact in memory, which has none."""
    return str(Path(where) / ONNX) if Path(where).is_absolute() else ""

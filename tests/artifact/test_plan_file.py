"""`torch2engine.artifact.plan_file`: engine files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torch2engine.artifact.plan_file import read_plan_file
from torch2engine.core.errors import ArtifactError

BARE = b"ftrt" + bytes(20) + bytes([10, 16, 1, 11]) + b"the layers"
METADATA = {"names": {"0": "person"}, "task": "detect", "stride": 32}


def with_metadata(plan: bytes, text: str) -> bytes:
    """A plan as ultralytics writes it: the length of the JSON, the JSON, the plan."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data + plan


@pytest.mark.parametrize(("magic", "flavour"), [(b"ftrt", "tensorrt"), (b"vtrt", "tensorrt_rtx")])
def test_bare_plan_tells_its_flavour_and_version(magic: bytes, flavour: str, tmp_path: Path) -> None:
    """trtexec and Polygraphy write nothing but the plan."""
    data = magic + BARE[4:]
    (tmp_path / "net.engine").write_bytes(data)
    file = read_plan_file(tmp_path / "net.engine")
    assert (file.flavour, file.version, bytes(file.plan)) == (flavour, "10.16.1.11", data)
    assert file.metadata == {}


def test_metadata_of_ultralytics_is_taken_off(tmp_path: Path) -> None:
    """TensorRT gets the plan alone, and the metadata is kept."""
    (tmp_path / "yolo.engine").write_bytes(with_metadata(BARE, json.dumps(METADATA)))
    file = read_plan_file(tmp_path / "yolo.engine")
    assert (bytes(file.plan), file.version) == (BARE, "10.16.1.11")
    assert file.to_json()["metadata"] == METADATA


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ftrt",
        BARE[:27],
        b"\x08\x07\x12\x07pytorch" + bytes(40),  # an ONNX file
        with_metadata(BARE, "{no JSON"),
        with_metadata(BARE[4:], "{}"),
        (1 << 30).to_bytes(4, "little") + b"{" + BARE,
    ],
)
def test_file_without_a_plan_is_refused(data: bytes, tmp_path: Path) -> None:
    """A file that is cut off, or of another format, is named with its first bytes."""
    path = tmp_path / "net.engine"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_plan_file(path)
    assert str(caught.value) == (
        f"engine file '{path}': got a file that begins with {data[:8]!r}; expected a plan of TensorRT or TensorRT-RTX; "
        "build the engine again"
    )


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """The system's own words say why."""
    with pytest.raises(ArtifactError, match="No such file or directory") as caught:
        read_plan_file(tmp_path / "net.engine")
    assert caught.value.path == str(tmp_path / "net.engine")

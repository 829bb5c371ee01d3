"""Small artifacts for tests: facts with every feature in them, files of a few bytes.

Enters: a folder. Leaves: artifacts, saved or fresh, and manifests sealed by a second implementation of the rules. A
room of its own because the tests of artifacts and the mutations share it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from onnx import StringStringEntryProto, TensorProto, helper

from torch2engine.artifact.engine_artifact import EngineArtifact
from torch2engine.artifact.manifest_fields import Hardware
from torch2engine.artifact.onnx_artifact import OnnxArtifact
from torch2engine.core.spec import Axis, Parameter, Profile, Signature, TensorSpec, Tree

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch", 3)), TensorSpec("states.0", "int64", ("batch",))),
    outputs=(TensorSpec("logits", "float32", ("2*batch", 10)),),
    axes=(Axis("batch", 1, 4, 8),),
    parameters=(
        Parameter("x", "positional", Tree("tensor")),
        Parameter("states", "keyword", Tree("list", (0, 1), (Tree("tensor"), Tree("constant", value=None)))),
        Parameter("fill", "keyword", None, float("-inf")),
    ),
    output=Tree("namedtuple", ("logits",), (Tree("tensor"),), type_name="models:Output"),
)
PROFILES = (Profile({"batch": (1, 4, 8)}), Profile({"batch": (1, 1, 1)}))
HARDWARE = Hardware(
    flavour="tensorrt",
    flavour_version="10.16.1.11",
    gpu="NVIDIA H200",
    compute_capability=(9, 0),
    driver="580.95.05",
)
VERSIONS = {"torch": "2.9.0", "onnx": "1.18.0"}


def onnx_bytes(text: str = "an ONNX model", data_file: str = "model.onnx.data") -> bytes:
    """An ONNX file with the tensors of SIGNATURE, whose only weight lies in a data file."""
    where = [StringStringEntryProto(key="location", value=data_file)]
    weight = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.extend(where)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("states.0", TensorProto.INT64, ["batch"]),
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["2*batch", 10])
    return helper.make_model(helper.make_graph([], text, inputs, [output], [weight])).SerializeToString()


def fresh_onnx(folder: Path, text: str = "an ONNX model", owner: object = None) -> OnnxArtifact:
    """An ONNX artifact as export leaves it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx_bytes(text))
    (folder / "model.onnx.data").write_bytes(b"weights of " + text.encode())
    return OnnxArtifact(
        folder, signature=SIGNATURE, profiles=PROFILES, precision="fp32", versions=VERSIONS, owner=owner
    )


def fresh_engine(
    folder: Path, text: str = "an ONNX model", hardware: Hardware = HARDWARE, plan: bytes = b"a plan"
) -> EngineArtifact:
    """An engine as build leaves it in a folder, with its ONNX files."""
    onnx = fresh_onnx(folder / "onnx", text)
    place = folder / "engine"
    place.mkdir()
    (place / "model.plan").write_bytes(plan + b" of " + text.encode())
    (place / "runtime.cache").write_bytes(b"kernels of " + text.encode())
    return EngineArtifact.from_onnx(onnx, place, hardware=hardware)


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest's bytes with the digest that belongs to them."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(_written(rest)).hexdigest()
    return _written({**rest, "digest": digest})


def _written(data: dict[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"

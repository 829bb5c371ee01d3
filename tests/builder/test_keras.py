"""A file that tf2onnx wrote of a Keras model: ONNX from elsewhere, with everything that is odd about it.

Enters: tests/support/keras_cnn/cnn.onnx and Keras' answers, which the script beside them made with TensorFlow. Leaves:
proof that such a file builds as it stands and means what Keras meant.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import torch2engine as t2e
from tests.support.paths import SUPPORT
from torch2engine.core.errors import DynamicAxisError
from torch2engine.core.spec import Axis, TensorSpec
from torch2engine.onnx_graph.ort_session import OrtSession

FOLDER = SUPPORT / "keras_cnn"
PATH = FOLDER / "cnn.onnx"
BATCH = "unk__52"  # tf2onnx's name for a dimension that has none


def test_kept_file_is_small_and_tf2onnxs_own() -> None:
    """It has what only tf2onnx writes: NHWC between Transposes, an axis that it named, its opsets."""
    model = onnx.load(PATH)
    assert sum(path.stat().st_size for path in (PATH, FOLDER / "answers.npz")) < 20_000
    assert (model.producer_name, [(one.domain, one.version) for one in model.opset_import]) == (
        "tf2onnx",
        [("", 15), ("ai.onnx.ml", 2)],
    )
    assert [node.op_type for node in model.graph.node].count("Transpose") == 2


def test_kept_file_answers_like_keras() -> None:
    """ONNX Runtime computes what Keras computed when the file was made."""
    kept = np.load(FOLDER / "answers.npz")
    (answers,) = OrtSession(PATH)({"image": kept["images"]}).values()
    assert len(np.unique(kept["answers"].round(3))) > 10
    np.testing.assert_allclose(answers, kept["answers"], rtol=1e-4, atol=1e-5)


def test_engine_is_built_under_keras_names() -> None:
    """TensorRT-RTX builds it; names, layout and the axis are the file's own."""
    engine = t2e.build(PATH, profiles={BATCH: (1, 8, 32)})
    assert engine.signature.inputs == (TensorSpec("image", "float32", (BATCH, 8, 8, 3)),)
    assert [spec.name for spec in engine.signature.outputs] == ["Identity:0"]
    assert engine.signature.axes == (Axis(BATCH, 1, 8, 32),)
    assert engine.versions["producer"].startswith("tf2onnx 1.17")


def test_axis_that_tf2onnx_named_is_told() -> None:
    """Whoever does not know the name reads it in the error."""
    with pytest.raises(DynamicAxisError) as caught:
        t2e.build(PATH)
    assert str(caught.value) == (
        f"profiles: got no range of axis '{BATCH}' (dimension 0 of input 'image'); expected (min, "
        f"opt, max) for every dynamic axis; e.g. profiles={{'{BATCH}': (1, 8, 32)}}"
    )

"""Take a Keras model through ONNX to an engine, with no PyTorch model anywhere.

Enters: a small Keras CNN; where TensorFlow or tf2onnx is missing, the file that they made of one, with Keras' answers.
Leaves: ONNX Runtime's answers beside Keras', and an engine, whose answers are compared too where there is a GPU.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

import torch2engine as t2e

KEPT = Path(__file__).resolve().parent.parent / "tests" / "support" / "keras_cnn"


def exported(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write a Keras model to `path`; images and what Keras answers to them."""
    import keras
    import tensorflow as tf
    import tf2onnx

    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.layers.Input((32, 32, 3)), keras.layers.Conv2D(16, 3, activation="relu"), *head])
    signature = [tf.TensorSpec([None, 32, 32, 3], tf.float32, name="image")]
    call = tf.function(lambda image: model(image, training=False), input_signature=signature)
    tf2onnx.convert.from_function(call, input_signature=signature, output_path=str(path))
    images = np.random.default_rng(0).random((5, 32, 32, 3), np.float32)
    return images, model(images, training=False).numpy()


if missing := [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]:
    print(f"not installed: {', '.join(missing)}; the export is skipped, a file that tf2onnx wrote is taken")
    path, kept = KEPT / "cnn.onnx", np.load(KEPT / "answers.npz")
    images, answers = kept["images"], kept["answers"]
else:
    path = Path(tempfile.mkdtemp()) / "keras.onnx"
    images, answers = exported(path)

found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
print(f"ONNX Runtime and Keras differ by {abs(found - answers).max():.1e}")
assert np.allclose(found, answers, rtol=1e-4, atol=1e-5)

batch = onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param  # as tf2onnx named it
engine = t2e.build(path, profiles={batch: (1, 8, 32)})
print(f"built from {engine.versions['producer']}: {engine.signature.inputs[0]}")
if torch.cuda.is_available():
    (answer,) = t2e.Processor(engine).infer(images).values()
    print(f"the engine and Keras differ by {abs(answer - answers).max():.1e}")
    assert np.allclose(answer, answers, rtol=1e-3, atol=1e-4)
else:
    print("running it takes a GPU, so its answers are not compared here")

"""Write cnn.onnx and answers.npz beside this file, with TensorFlow and tf2onnx, which the tests do without.

    pip install tensorflow-cpu tf2onnx && python tests/support/keras_cnn/make.py

Enters: nothing. Leaves: a small Keras CNN as tf2onnx writes it (NHWC input, a batch axis that it named, Transposes),
and what Keras itself answers. A file of its own because a graph made by hand would be what we think that tf2onnx does.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx

HERE = Path(__file__).resolve().parent
keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential(
    [
        layers.Input((8, 8, 3), name="image"),
        layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.DepthwiseConv2D(3, strides=2, padding="same"),
        layers.Flatten(),
        layers.Dense(10, activation="softmax"),
    ]
)
chance = np.random.default_rng(0)
for weight in model.weights:  # fresh ones are zeros and ones in part, which tf2onnx leaves out
    signs = chance.choice([1, 1, -1], weight.shape) if len(weight.shape) > 1 else 1  # no variance is negative
    weight.assign(chance.uniform(0.1, 0.5, weight.shape) * signs)
images = chance.random((5, 8, 8, 3), np.float32)
signature = [tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")]
call = tf.function(lambda image: model(image, training=False), input_signature=signature)
tf2onnx.convert.from_function(call, input_signature=signature, output_path=str(HERE / "cnn.onnx"))
np.savez_compressed(HERE / "answers.npz", images=images, answers=model(images, training=False).numpy())

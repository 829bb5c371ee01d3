"""Numbers and names that several folders must agree on.

Enters: nothing. Leaves: constants. Separate because the folders that use them never import each other.
"""

from __future__ import annotations

__all__ = ["BUILDER_CONSTANT", "EXTERNAL_ABOVE_BYTES", "MODULE_KEY", "NOT_IN_NUMPY", "RANDOM_SEED", "SOURCE_KEY"]

# How the names of weights begin that the builder adds to a refittable engine. They follow from no module.
BUILDER_CONSTANT = "torch2engine.constant."

# Weights above this go into a file beside the ONNX graph. Protobuf holds 2 GiB, and the graph itself needs room too.
EXTERNAL_ABOVE_BYTES = 1_800_000_000

# Keys of a node's metadata in an ONNX graph: the path of its torch module, and "FILE:LINE" of the user's code.
MODULE_KEY = "torch2engine.module"
SOURCE_KEY = "torch2engine.source"

# Dtypes of inputs and outputs that numpy itself does not have; the package ml_dtypes adds them to numpy.
NOT_IN_NUMPY = ("bfloat16", "float8_e4m3fn")

# Every generator starts from it, so that two runs make the same inputs and orders.
RANDOM_SEED = 20170727

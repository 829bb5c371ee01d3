"""ONNX models on disk: reading, writing, walking and running them.

Enters: an ONNX file. Leaves: the same graph changed, or the answers of ONNX Runtime. A room of its own because
exporter, builder, precision and modules all work on ONNX graphs and never import each other.
"""

"""`OnnxArtifact` → `EngineArtifact`: TensorRT's parser and builder, in a child process.

Enters: an ONNX file. Leaves: a plan with its manifest, or an error that names every node at fault. A room of its own
because a builder may crash or hang, and must not take the caller along.
"""

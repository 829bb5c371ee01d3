"""The ONNX Runtime backend of deployed modules.

Enters: an OnnxArtifact. Leaves: `ORTModule`. A folder of its own because a backend is one folder.
"""

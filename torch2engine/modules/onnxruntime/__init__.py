"""The ONNX Runtime backend of deployed modules.

Enters: an OnnxArtifact. Leaves: `ORTModule`. Separate because a backend is one folder: `module` is what users call,
`backend` keeps the contract of `torch2engine.modules.backend`.
"""

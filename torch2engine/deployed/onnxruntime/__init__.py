"""The ONNX Runtime backend of deployed modules.

Enters: an OnnxArtifact. Leaves: `ORTModule`. Separate because a backend is one folder. Users call `ort_module`, and
`ort_backend` keeps the contract of `torch2engine.deployed.backend`.
"""

"""Artifacts on disk: `OnnxArtifact`, `EngineArtifact`, their manifests, and the engine cache.

Enters: models between two stages. Leaves: folders that appear whole or not at all. Separate because serving reads
them without torch.

Public: `onnx_artifact.OnnxArtifact`, `engine_artifact.EngineArtifact`, `load.load_artifact`, `cache.EngineCache`.
"""

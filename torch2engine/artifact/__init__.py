"""What lies on disk: `OnnxArtifact`, `EngineArtifact`, their manifests, and the engine cache.

Enters: models between two stages. Leaves: folders that appear whole or not at all. A room of its own because serving
reads them without torch.
"""

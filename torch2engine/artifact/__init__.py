"""Artifacts on disk: `OnnxArtifact`, `EngineArtifact`, `PartsArtifact`, `BundleArtifact`, and the engine cache.

Enters: models between two stages. Leaves: folders that appear whole or not at all. Separate because serving reads
them without torch.

Public: `agreement`, `artifact`, `atomic_folder`, `bundle`, `bundle_artifact`, `engine_artifact`, `engine_cache`,
`file_access`, `files`, `load_artifact`, `manifest`, `manifest_fields`, `model_graph`, `onnx_artifact`,
`onnx_outline`, `parts_artifact`, `plan_file`, `saved_folder`, `scratch_folder`. The other files belong to this folder
alone.
"""

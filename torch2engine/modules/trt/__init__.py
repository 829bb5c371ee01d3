"""The TensorRT backend of deployed modules.

Enters: an EngineArtifact. Leaves: `TRTModule`. A folder of its own because a backend is one folder.
"""

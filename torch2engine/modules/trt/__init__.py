"""The TensorRT backend of deployed modules.

Enters: an EngineArtifact. Leaves: `TRTModule`. Separate because a backend is one folder. `module` is what users call,
and `backend` keeps the contract of `torch2engine.modules.backend`. The rest runs an engine on one device.
"""

"""The TensorRT backend of deployed modules.

Enters: an EngineArtifact. Leaves: `TRTModule`. Separate because a backend is one folder. Users call `trt_module`, and
`trt_backend` keeps the contract of `torch2engine.deployed.backend`. The other files run an engine on one device.
"""

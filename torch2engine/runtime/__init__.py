"""Running a saved engine without torch.

Enters: an EngineArtifact and device addresses. Leaves: work on streams. A room of its own so that it needs neither
torch nor onnx.
"""

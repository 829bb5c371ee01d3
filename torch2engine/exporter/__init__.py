"""`CapturedCall` → `OnnxArtifact`: guards proved, operators translated, axes symbolic.

Enters: a captured call. Leaves: an ONNX graph with names, axes and origins. A room of its own because all that is
particular to torch.export and torch.onnx stays here.
"""

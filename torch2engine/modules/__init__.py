"""Deployed modules: one nn.Module face over an engine or over ONNX Runtime.

Enters: an artifact. Leaves: a module that is called like the model. A room of its own because TRTModule and ORTModule
keep the same contract.
"""

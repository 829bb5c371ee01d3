"""Running a saved engine without torch.

Enters: an EngineArtifact and device addresses or numpy arrays. Leaves: answers. A room of its own so that serving
needs neither torch nor onnx: `engine` holds the live engine, `processor` feeds it from numpy.
"""

"""The only door to TensorRT and the driver: flavours, engines, execution contexts, CUDA graphs.

Enters: an engine artifact and device addresses. Leaves: work on streams. A room of its own because it needs neither
torch nor ONNX.
"""

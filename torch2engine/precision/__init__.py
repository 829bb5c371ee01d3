"""Lower precisions, written into the ONNX graph itself.

Enters: a float32 ONNX model and calibration data. Leaves: the same model in float16 or bfloat16, or quantised, and the
means to see what that costs. A room of its own because every flavour of TensorRT takes the graph's word for it.
"""

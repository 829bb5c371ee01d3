"""Rewriting and measuring ONNX graphs in lower precisions.

Enters: ONNX models. Leaves: ONNX models and figures. A folder of its own because none of it needs torch.
"""

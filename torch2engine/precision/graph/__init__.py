"""Rewriting and measuring ONNX graphs in lower precisions.

Enters: ONNX models. Leaves: ONNX models and figures. Separate because none of it needs torch.

- `cast`: makes a graph float16 or bfloat16, by `modelopt`.
- `quantize`: makes a graph int8, fp8, or int4 in its weights, by `calibrate_ranges` and `quantized_writer`.
- `tensor_maxima`: measures how large each tensor becomes.
- `mixed_precision`: runs a model with any of its modules in a low type.
- `count_nodes`: which nodes are low.
- `count_multiply_adds`, `engine_layers`: what the arithmetic of a graph and of an engine is.
- `attention_outcomes`: which attention is fused, and why other attention is not.
- `engine_findings`: what makes an engine slower than it could be, as far as it shows without a call.
"""

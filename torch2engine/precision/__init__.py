"""Lower precisions, written into the ONNX graph itself.

Enters: a float32 ONNX model and calibration data. Leaves: the same model in float16 or bfloat16, or quantised, and
reports on what that costs. Separate because every flavour of TensorRT computes in the types that the graph has.

- `validate`: refuses precisions and options that don't go together.
- `calibration`: reads calibration data, and evaluates a user's metric on it.
- `lower`: makes a lowered model within its tolerance or budget; `lower_graph` makes one, and `budget_search` others.
- `lowered_parity`: the cases and the tolerance for the comparison of a lowered model.
- `retype_weights`: keeps a refittable model's weight program in step with the lowered graph.
- `computed_precisions`, `engine_precision`, `module_sensitivity`: what a model computes in, whether an engine does
  so, and what a low precision would cost each module.
- `graph`: rewriting and measuring ONNX graphs, without torch.

Public: `engine_precision`, `graph.engine_findings`, `lower`, `lowered_model`, `lowered_parity`, `module_sensitivity`,
`computed_precisions`, `validate`. The other files belong to this folder alone.
"""

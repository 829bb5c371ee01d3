"""ONNX models on disk: reading, writing, walking and running them.

Enters: an ONNX file. Leaves: the same graph changed, or the answers of ONNX Runtime. Separate because exporter,
builder, precision and modules all work on ONNX graphs and never import each other.

- `model_file`: reads and writes a model, whatever its size.
- `model_bytes`: writes a model as bytes, quickly.
- `walk`: visits the nodes and tensors of a graph and of the graphs inside its nodes.
- `tensor_types`: finds the element type of each tensor.
- `tensor_shapes`: writes the shapes of tensors back that a tool has lost.
- `node_origins`: reads and writes which torch module each node comes from.
- `ort_session`: runs a model by ONNX Runtime.
- `attention_blocks`: finds the matrix products on both sides of each softmax.
- `integer_choices`: finds what integer outputs were chosen from.
- `strict_rounding`: rewrites a model so that ONNX Runtime rounds like a GPU.
- `axis_flow`: proves that the entries along a dynamic axis don't influence each other.

Public: `attention_blocks`, `axis_flow.analysis`, `integer_choices`, `model_bytes`, `model_file`, `module_outputs`,
`node_origins`, `ort_session`, `strict_rounding`, `tensor_shapes`, `tensor_types`, `walk`.
"""

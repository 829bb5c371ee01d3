"""A proof that the entries along a dynamic axis don't influence each other, read from an ONNX graph.

Enters: an ONNX model and the places of an axis. Leaves: nothing to object, or the operator that mixes the axis.
Separate because an example proves nothing. An influence may show only for values or sizes that the example lacks.

Every tensor gets one of five values (`values`): the same for every size, a size, entries along one dimension, the
numbers of the entries, or mixed. Every operator has a rule, which gives the values of its outputs. An operator without
a rule mixes. So the result "independent" holds for all inputs and all sizes.

- `sizes`: products of whole numbers and symbols, the sizes of dimensions.
- `values`: what is known of a tensor.
- `node_view`: a node as the rules read it.
- `size_rules`: operators that compute sizes.
- `layout_rules`: operators that move entries.
- `compute_rules`: operators that compute with them.
- `analysis`: the walk over a graph, with its branches and loops.
"""

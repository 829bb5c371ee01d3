"""Rewrites of an ONNX graph: each gives one operator the form that TensorRT builds right, or faster.

Enters: an ONNX model in memory. Leaves: a changed model, or None where nothing has to change. Separate because
`parser_input` applies them to what the parser reads: the ONNX file on disk stays as it was exported. A file is named
by the operator and the form that it gets.

What TensorRT refuses or misreads:
- `bytes_to_int32`: computes with int32 what a model computes with bytes, which TensorRT only casts.
- `misread_nodes_to_importer_form`: respells nodes that some importer of TensorRT misreads.

What TensorRT-RTX computes wrongly:
- `activation_products_to_unfused`: keeps a linear layer and its activation apart from the product behind them.
- `long_sums_to_short_sums`: cuts float32 sums that TensorRT-RTX rounds too much.
- `short_products_to_multiplications`: writes the product of a few elements as multiplications.
- `single_group_norms_to_operators`: writes out group norms of one group, which it takes for instance norms.

What TensorRT-RTX computes faster:
- `attention_to_one_node`: writes each half precision attention as one Attention node.
- `attention_to_three_dimensions`: writes attention of fixed sizes with batch and heads in one dimension.
- `cyclic_shifts_to_slices`: writes a cyclic shift as two slices and their Concat.
- `projections_to_one_product`: computes queries, keys and values by one product.
- `recurrent_layers_to_scans`: computes a recurrent layer's product with the input once, before the loop.
- `zero_rows_to_after_product`: makes masked rows zero behind the product that joins the heads.

What they share: `node_reading` tells what a node is, `node_replacement` puts other nodes in its place.

The folder belongs to the builder, but for `attention_to_one_node`.
"""

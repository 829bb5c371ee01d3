"""A captured call → `OnnxArtifact`: guards proved, operators translated, axes symbolic.

Enters: a captured call. Leaves: an ONNX graph with names, axes and origins. Separate because all that is particular to
torch.export and torch.onnx stays here.

Other folders call `export_onnx.export_onnx`, or `functional_program.export_functional_program` for a graph that is cut
into parts. The steps of the first, in this order:

- `trace`: torch.export, of the `flat_module`; `refusals` says in the user's words why it refuses. Meanwhile
  `recurrent` keeps recurrent layers whole, `traceable_functions` values unread, and `tensor_indices` indices tensors.
  `group_convolutions` replaces convolutions whose groups are a size.
- `sizes`: dynamic sizes stay symbols while torch traces; afterwards the program is proved at every size.
- `masked_rows`, `value_checks`: writes at a mask become `torch.where`, and checks of values are taken out.
- `axis_symbols`: works the outputs' shapes out.
- `translate`: `decompositions`, `batch_norm`, torch.onnx with its `operator_registry`, then `optimize`;
  `trace_weights` for a model that can be refitted.
- `onnx_names`: the user's names and every node's origin.
- `export_context`: what holds for the time of an export. `fake_quant` and `given_masks` keep the model's own quantisers
  and the masks of nn.Transformer, `quiet_exporters` gives silence, and `composite_operators`, `composite_kernels` and
  `size_arithmetic` save torch.export work that it repeats.
- `torch_program`: facts about torch's program; `free_sizes` finds the nodes whose sizes depend on values.

Public: `export_onnx`, `flat_module`, `free_sizes`, `functional_program`. The other files belong to this folder alone.
"""

"""Reads the live PyTorch model: its signature, its answers, its weights.

Enters: a module and a sample. Leaves: a captured call, and parity cases with the reference's answers. Separate because
this is the only stage that runs the user's model.

- `unwrap`: the user's module below torch.compile and DataParallel.
- `undisturbed`, `process_state`: run a module in exact arithmetic, without lasting side effects.
- `signature`, `axes`: sample_input and dynamic_axes become a `captured_call`.
- `reference`: the module as a function from flat inputs to named outputs.
- `call_effects`: what a call changes in its arguments becomes outputs, or is refused.
- `parameter_writes`: undoes what a call writes into parameters and gradients, and names it.
- `device_asserts`, `host_trial`: invented inputs run on the CPU before they may end a GPU's context.
- `invented_inputs`: the sample at other sizes, and random values like it, as plausible as possible.
- `examples`: real inputs at other sizes, which the caller may give instead.
- `own_profiles`: an optimization profile for each size that the user names.
- `recording`: the sample, the axes and the examples of calls that the user's own code makes.
- `live_parameters`: parameters and buffers that become inputs, and their values.
- `module_calls`: what each module of the model returned in one call.
- `parity_cases`: the inputs and answers that every candidate is compared on.
- `rounding_sensitivity`: how far the reference's answers move by rounding alone.
- `function_rounding`: functions such as the sigmoid, whose rounding the inputs' does not show.
- `shared_copy`: a copy of the model that has the model's own weights, and nothing else of it.
- `fingerprint`: whether weights have changed.
- `weight_program`, `refit_operators`: how an ONNX graph's weights follow from the module's.
- `hashable_sizes`: symbolic sizes as keys of a model's own caches.
- `source_lines`, `torch_types`: the user's line for a message, and PyTorch's dtypes by name.

Public: `captured_call`, `examples`, `fingerprint`, `hashable_sizes`, `host_trial`, `live_parameters`, `module_calls`,
`parity_cases`, `process_state`, `recording`, `reference`, `rounding_sensitivity`, `shared_copy`, `signature`,
`source_lines`, `torch_types`, `undisturbed`, `unwrap`, `weight_program`. The other files belong to this folder alone.
"""

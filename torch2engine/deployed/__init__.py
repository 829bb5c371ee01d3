"""Deployed modules: one nn.Module face over a backend, with weight sync, out-of-range policy and benchmark.

Enters: an artifact. Leaves: a module that is called like the model. Separate because every backend keeps the same
contract: `deployed_module` is the face, `module_access` what the package's own steps do with it, `backend` the
contract, `trt`, `onnxruntime` and `live` the backends, and `backend_table` lists those whose modules can be saved.

Public: `backend`, `backend_table`, `deploy_report`, `deployed_module`, `direct_call`, `explanation`, `fresh_outputs`,
`judge`, `live.live_module`, `live.live_program`, `live_tensors`, `made_inputs`, `module_access`,
`onnxruntime.ort_module`, `speed_at_opt`, `timing`, `torch_state`, `trt.trt_backend`, `trt.trt_module`, `weight_sync`,
`whole_graph`. The other files belong to this folder alone.
"""

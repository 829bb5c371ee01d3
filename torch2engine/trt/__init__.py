"""The only door to TensorRT and the driver: flavours, engines, execution contexts, CUDA graphs.

Enters: an engine artifact and device addresses. Leaves: work on streams. Separate because it needs neither torch
nor ONNX.

Public: `bindings`, `context`, `context_pool`, `cuda_graph`, `cuda_graph_policy`, `engine`, `foreign_plan`, `gpu`,
`live_engines`, `local_hardware`, `memory`, `working_memory`. The other file belongs to this folder alone.
"""

"""`OnnxArtifact` → `EngineArtifact`: TensorRT's parser and builder, in a child process.

Enters: an ONNX file. Leaves: a plan with its manifest, or an error that names every unsupported node. Separate because
a builder may crash or hang, and must not take its caller along.

    build             the public step `build`
    load_or_build     loads an engine from the cache, or builds it; stores it once its caller accepts it
    source            which profiles and precision are built; onnx_file reads ONNX from elsewhere
    child_process     runs the build where it can crash; plan talks to TensorRT's builder there
    child_watch       ends a builder process that is stopped, hangs or takes too long
    parser_input      reads the ONNX file once, and applies the rewrites to what the parser gets
    rewrites/         one file for each operator that gets another form: `attention_to_one_node` and others
    own_constants     names the constants that these add to a refittable engine
    kernel_processes  compiles a live engine's kernels in processes side by side; kernels does it in each
    unsupported       lists every node that TensorRT can't build; blamed_nodes those that a failed build names
    onnx_fingerprint  hashes what decides the engine, for cache keys

Public: `build`, `kernel_processes`, `load_or_build`, `onnx_file`, `onnx_fingerprint`, `rewrites.attention_to_one_node`,
`source`. The other files belong to this folder alone.
"""

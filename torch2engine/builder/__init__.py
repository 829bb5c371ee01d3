"""`OnnxArtifact` → `EngineArtifact`: TensorRT's parser and builder, in a child process.

Enters: an ONNX file. Leaves: a plan with its manifest, or an error that names every unsupported node. Separate because
a builder may crash or hang, and must not take its caller along.

    build             the public step `build`
    load_or_build     loads an engine from the cache, or builds it; stores it once its caller accepts it
    source            which profiles and precision are built; onnx_file reads ONNX from elsewhere
    child_process     runs the build where it can crash; plan talks to TensorRT's builder there
    kernel_processes  compiles a live engine's kernels in processes side by side; kernels does it in each
    child_watch       ends a builder process that is stopped, hangs or takes too long
    parser_input      reads the file once and changes it into what the parser needs, by these:
    activation_products  parts what TensorRT-RTX fuses wrongly: a linear layer, its activation and a product
    byte_tensors      computes with int32 what a model computes with bytes, which TensorRT only casts
    importer_forms    respells what some importer of TensorRT misreads
    fused_attention   writes each half precision attention as one node
    folded_heads      writes attention of fixed sizes as products in three dimensions
    late_zeros        makes rows zero behind the product that joins the heads
    merged_projections  computes queries, keys and values by one product
    long_sums         cuts float32 sums that TensorRT-RTX would round too much
    single_group_norms  writes out group norms of one group, which TensorRT-RTX takes for instance norms
    node_replacement  puts nodes in another one's place, as some of these do; node_reading tells what a node is
    unsupported       lists every node that TensorRT can't build; blamed_nodes those that a failed build names
    onnx_fingerprint  hashes what decides the engine, for cache keys

Public: `build`, `fused_attention`, `kernel_processes`, `load_or_build`, `onnx_file`, `onnx_fingerprint`, `source`. The
other files belong to this folder alone.
"""

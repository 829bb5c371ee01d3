"""Engines for all operators but those that no engine takes, which run in PyTorch: torch.compile, and graphs in parts.

Enters: graphs, and a function that deploys one. Leaves: callables that answer by engines where there are any, and an
account of the rest. Separate because the stages below know whole models only, and `deploy` hands itself in from above.

A *part* is a group of operators that one engine answers.

    torch_compile    torch.compile's backend, explain() and deploy_submodules(): the one file that imports deploy()
    graph_compiler   one graph of torch.compile, and what is called in its place
    inference_only   leaves calls that need gradients to PyTorch
    functional_graph whether a graph writes into its inputs, and its form without writes
    dispatch_modes   operators that no mode of PyTorch's dispatcher sees
    view_results     results that are views, which PyTorch makes
    partition        a graph cut into parts around the operators that no engine takes
    part_runner      answers one part by its engines, or by PyTorch
    part_tolerance   more room for single elements of a part, where the whole is compared afterwards
    part_call        one call of a part: finds the engine that answers it, or deploys one
    tracking_engines the engines of one part for torch.compile; they follow new weights
    fixed_engines    the engines of one part of a deployed model; only a refit changes their weights
    deployable_graph a graph as a module that deploy() takes; graph_layout says how it is called
    size_versions    an engine for each range of sizes
    deploy_in_parts  deploy(fallback=True): the steps for a model that no single engine takes
    deploy_program   engines for the parts of an exported program, and the artifact of both
    saved_cut        how all parts are saved
    measured_cost    which engines are worth it, under fallback="faster"
    parts_module     the deployed model, with its parts_backend; parts_session is the model live on one device
    cuda_graph_refusals what stands against a CUDA graph of a whole call
    program_file     torch's program as a file; program_check refuses a file that is no plain data
    submodules       deployed submodules of a pipeline; compare_results compares what the pipeline returns
    compile_options  the options of torch.compile's backend
    run_record       what runs where, and why

Public: `compare_results`, `compile_options`, `deploy_in_parts`, `graph_compiler`, `parts_module`, `run_record`,
`submodules`, `torch_compile`. The other files belong to this folder alone.
"""

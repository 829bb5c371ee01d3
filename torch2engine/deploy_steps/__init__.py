"""The steps of `deploy` that compose several stages.

Enters: the arguments of deploy(), and what earlier steps found. Leaves: artifacts, deployed modules and reports.
Separate because stages never import each other: they are composed here and in `deploy`.

The steps, in the order in which deploy() takes them:
    model_and_sample    the model and the sample, as the user gave them or from a recording
    request             the other arguments, checked; which runtime answers
    capture_model_call  runs the model on the sample, and checks all names that deploy() was given
    earlier_engines     finds the engine of an earlier deploy; request_facts says by which facts, model_attributes adds
                        the values that a model's attributes reach
    reference_answers   the model's answers that every candidate is compared with
    graph_check         compares the exported ONNX graph with them, before the build or during it
    lower_if_needed     gives the graph the requested precision
    accept              makes a module of an engine, and compares it; kernels_for_cases compiles its kernels before
    speed_note          times an accepted engine beside its model, and notes where PyTorch is faster
    report_builder      collects what all steps find
    deploy_options      the types of deploy()'s options, for editors

No steps of deploy(), but made of the same stages:
    public_functions/   the other functions that users call: export, check, load (rebuild where an engine does not run
                        here), diagnose (diagnosis is its result); compare_deployed, for the command line
    choice_by_time/     deploy() several times, and the fastest result: measure_variants for optimize="measure", of
                        which engine_variants lists the variants; fastest for runtime="fastest"

Public: `accept`, `capture_model_call`, `choice_by_time.fastest`, `choice_by_time.measure_variants`, `deploy_options`,
`earlier_engines`, `graph_check`, `lower_if_needed`, `model_and_sample`, `public_functions.check`,
`public_functions.compare_deployed`, `public_functions.diagnose`, `public_functions.diagnosis`,
`public_functions.export`, `public_functions.load`, `reference_answers`, `report_builder`, `request`, `speed_note`. The
other files belong to this folder alone.
"""

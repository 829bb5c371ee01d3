"""Steps that compose the stages of `deploy`.

Enters: a live module. Leaves: artifacts, deployed modules and reports. Separate because stages never import each other:
they are composed here and in `deploy`.

    request         the checked arguments of deploy(), and which runtime answers
    export, check   the public steps `export` and `check`
    diagnose        the first module whose answers differ; diagnosis is its result
    compare_deployed    any deployed module against a model, or against another one
    accept          a module takes the model's place only if it answers like the model
    earlier_engines the engine of an earlier deploy is found again; request_facts says by which facts
    reference_answers   the model's answers that every candidate is compared with
    graph_check     the exported ONNX graph is compared with them before anything is built from it
    report_builder  collects what deploy() finds
    kernels_for_cases   a new engine's kernels for them, compiled by several processes where that takes long
    speed_note      an accepted engine is timed beside its model; a note where PyTorch is faster
    measure_variants    variants of the engine are built and timed; engine_variants lists them
    fastest         the engine is timed beside PyTorch's forms of its model; the fastest answers
    load            the public step `load`: a saved folder as a module, with its report
    rebuild         an engine that does not run here is built anew for this machine
    deploy_options  the types of deploy()'s options, for editors
    model_and_sample    both as the user gave them, or from a recording

Public: `accept`, `check`, `compare_deployed`, `deploy_options`, `diagnose`, `diagnosis`, `earlier_engines`, `export`,
`fastest`, `graph_check`, `load`, `measure_variants`, `model_and_sample`, `reference_answers`, `report_builder`,
`request`, `speed_note`. The other files belong to this folder alone.
"""

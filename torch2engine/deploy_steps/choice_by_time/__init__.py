"""Several deployed forms of one model, of which the fastest is returned.

Enters: deploy() and its arguments. Leaves: the fastest module, with the times of all forms in its report. Separate
because these wrap deploy(): each form takes all of its steps.

- `measure_variants`: `BuildConfig(optimize="measure")` builds and times the variants of an engine that
  `engine_variants` lists.
- `fastest`: `runtime="fastest"` times the engine beside PyTorch's forms of the model.
"""

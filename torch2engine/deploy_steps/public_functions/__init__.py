"""The functions beside `deploy` that users call, and that compose several stages.

Enters: a live module, an artifact or a saved folder. Leaves: artifacts, deployed modules and reports. Separate because
deploy() takes none of these as a step.

- `export`: a module becomes an ONNX artifact.
- `check`: an ONNX artifact is compared with its module.
- `load`: a saved folder becomes a deployed module; `rebuild` builds an engine that does not run here anew.
- `diagnose`: finds the first torch module whose answers differ; `diagnosis` is its result.
- `compare_deployed`: compares any deployed module with a model or with another one, for the command line.
"""

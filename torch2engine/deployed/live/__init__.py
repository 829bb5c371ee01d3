"""The backend of modules that answer by PyTorch: the live model in eager or compiled, under the contract of a call.

Enters: a model and the artifact of its engine, which describes the call. Leaves: `LiveModule`. Separate because a
backend is one folder. `live_program` lists the ways to run a model; a further one is one row there. `live_backend`
keeps the contract of `torch2engine.deployed.backend`.
"""

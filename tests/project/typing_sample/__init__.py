"""A user's project that nothing runs: pyright and mypy check its types, as strictly as they can."""

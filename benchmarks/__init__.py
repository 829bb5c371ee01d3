"""Benchmarks and the stress run: scripts whose JSON is kept as evidence, and the README's table made from it."""

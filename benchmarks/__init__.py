"""Benchmarks and the stress run: scripts whose JSON is kept as evidence, and the tables and the chart made from it."""

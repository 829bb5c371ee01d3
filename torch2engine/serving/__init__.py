"""Saved artifacts in the workers of frameworks that distribute work: Ray Data and Ray Serve.

Enters: an artifact's folder. Leaves: what such a framework runs in its workers. Separate because nothing here computes:
a Processor answers on a GPU, ONNX Runtime on a CPU, and no worker imports torch.

Public: `ray`, `ray_serve`.
"""

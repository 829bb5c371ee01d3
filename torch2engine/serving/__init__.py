"""Saved artifacts for frameworks that distribute work: Ray Data, Ray Serve and Triton.

Enters: an artifact's folder. Leaves: what such a framework runs in its workers, or a model that Triton reads. Separate
because nothing here computes: a Processor answers on a GPU, ONNX Runtime on a CPU, and no worker imports torch.

Public: `ray`, `ray_serve`, `triton`.
"""

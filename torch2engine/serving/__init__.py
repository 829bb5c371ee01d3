"""Saved artifacts for those who serve or distribute them: Ray Data, Ray Serve, Triton, the Hugging Face Hub.

Enters: an artifact's folder. Leaves: what such a framework runs in its workers, or files that it reads. Separate
because nothing here computes: a Processor answers on a GPU, ONNX Runtime on a CPU, and no worker imports torch.

Public: `hub`, `ray`, `ray_serve`, `triton`.
"""

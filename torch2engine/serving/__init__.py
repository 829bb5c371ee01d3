"""Saved artifacts for those who serve or distribute them: Ray Data, Ray Serve, Triton, the Hugging Face Hub.

Enters: an artifact's folder. Leaves: what such a framework runs in its workers, or files that it reads. Separate
because nothing here computes: a Processor answers on a GPU, ONNX Runtime on a CPU, and no worker imports torch.

The folder processor/ answers by an engine without PyTorch. The other files serve it, or a graph on ONNX Runtime.

Public: `hub`, `processor.processor`, `ray`, `ray_serve`, `triton`.
"""

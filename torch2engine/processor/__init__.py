"""An engine without PyTorch: numpy in, numpy out.

Enters: numpy arrays. Leaves: numpy arrays, with copies and kernels overlapped. A room of its own because serving needs
no torch.
"""

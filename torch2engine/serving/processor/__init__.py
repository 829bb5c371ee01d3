"""An engine without PyTorch: numpy in, numpy out.

Enters: numpy arrays. Leaves: numpy arrays, with copies and kernels overlapped. Separate because serving needs no
torch.

Public: `processor`, and `arrays` and `batches` for what serves arrays otherwise. The other files belong to
this folder alone.
"""

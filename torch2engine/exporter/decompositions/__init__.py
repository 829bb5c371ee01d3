"""Decompositions of PyTorch operators that torch.onnx translates wrongly or not at all.

Enters: a program of torch.export. Leaves: the same in operators that torch.onnx translates rightly. Separate because
each operator is a small rule of its own. A file holds one family, and ends with its table {operator: decomposition}.
"""

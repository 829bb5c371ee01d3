"""Sizes of dynamic axes: while torch traces, they stay symbols; afterwards the program is proved at every size.

Enters: a model, or its traced program. Leaves: a program that holds at all sizes of the profiles, or an error that
names the user's line. Separate because nothing else of the exporter decides about sizes.

- `size_arguments`, `size_tensors`, `tensor_lengths`: sizes stay symbols where torch would take them for numbers.
- `shape_guards`: records the lines of torch's decisions about axes.
- `prove_sizes`: proves the program; `size_conditions` evaluates torch's decisions on a `size_grid`.
- `derived_axes`, `pinned_axes`: axes that follow from others, and the error for an axis that must be a number.

The folder belongs to the exporter alone.
"""

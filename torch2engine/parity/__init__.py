"""Outputs of a reference and of a candidate → verdict.

Enters: named arrays and a tolerance. Leaves: a `ParityReport`. Separate because the judge knows neither who answered
nor why, and needs no torch.

Public: `bounds`, `compare`, `near_ties`, `parity_report`. The other files belong to this folder alone.
"""

"""Outputs of a reference and of a candidate → verdict.

Enters: named arrays and a tolerance. Leaves: a `ParityReport`. Separate because a comparison needs no torch, and does
not depend on who answered.

Public: `bounds`, `compare`, `near_ties`, `parity_report`. The other files belong to this folder alone.
"""

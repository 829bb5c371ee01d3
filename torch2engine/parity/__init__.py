"""Outputs of a reference and of a candidate → verdict.

Enters: named arrays and a tolerance. Leaves: a `ParityReport`. Separate because a comparison needs no torch, and does
not depend on who answered.

Public: `compare`, `near_ties`, `parity_report`, `tolerance_bounds`. The other files belong to this folder alone.
"""

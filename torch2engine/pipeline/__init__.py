"""Steps that compose the stages: `export`, `check`, reuse of an earlier engine, the report.

Enters: a live module. Leaves: artifacts and reports. A room of its own because stages never import each other; they
are composed here and in `deploy`.
"""

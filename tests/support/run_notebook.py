"""Runs a notebook's code cells in one namespace, as Jupyter does, and prints what each shows.

Enters: the path of an .ipynb file. Leaves: a JSON list of texts on standard output, one for each code cell. Separate
because a kernel and its client are twenty packages, and cells without magic need none of them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["code_cells", "shown_by"]


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def shown_by(cell: dict[str, Any]) -> str:
    """The text that is stored as a cell's output."""
    texts = [output.get("text") or output["data"]["text/plain"] for output in cell["outputs"]]
    return "".join("".join(text) for text in texts)


def _run(source: str, names: dict[str, Any]) -> str:
    """Run a cell; give what it prints, and the value of its last line."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last is not None else None
    return printed.getvalue() + ("" if value is None else repr(value))


def main() -> None:
    """Run the notebook that is named on the command line."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [_run("".join(cell["source"]), names) for cell in code_cells(Path(sys.argv[1]))]
    sys.stdout.write(json.dumps(shown))


if __name__ == "__main__":
    main()

"""Sphinx's configuration: `make docs`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch2engine.core.version import __version__

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
# Files at the top of the repository that are pages here.
PAGES = {f"{name.upper()}.md": f"{name}.md" for name in ("architecture", "changelog", "contributing")}

project = "torch2engine"
author = "torch2engine contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"torch2engine {__version__}"
exclude_patterns = ["build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True


def relocated(text: str) -> str:
    """Make links of a page at the top of the repository fit a page in docs/."""

    def fitted(link: re.Match[str]) -> str:
        path, mark, anchor = link[1].partition("#")
        if not path or not (REPOSITORY / path).exists():
            return link[0]
        return f"]({PAGES.get(path) or os.path.relpath(REPOSITORY / path, DOCS)}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", fitted, text)


def relocate_links(app: Any, path: Path, page: str, content: list[str]) -> None:
    """Relocate the links of a file that a page includes, as Sphinx hands it over."""
    content[0] = relocated(content[0])


def relocate_readme(app: Any, page: str, content: list[str]) -> None:
    """Let links to the README lead to the front page, which shows it."""
    content[0] = content[0].replace("](../README.md", "](index.md")


def setup(app: Any) -> None:
    """Register the event handlers; Sphinx calls this function."""
    app.connect("source-read", relocate_readme)
    app.connect("include-read", relocate_links)

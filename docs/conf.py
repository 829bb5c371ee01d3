"""Sphinx's configuration: `make docs`."""

from __future__ import annotations

from torch2engine.core.version import __version__

project = "torch2engine"
author = "torch2engine contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"torch2engine {__version__}"
exclude_patterns = ["build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Files outside of docs/ that pages link to; they are no pages here.
suppress_warnings = ["myst.xref_missing"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

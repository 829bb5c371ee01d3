"""The check of the documentation's links, which `make docs` runs, finds what leads nowhere."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.support.html_links import Site
from tests.support.paths import REPOSITORY

PAGE = '<h2 id="first-part">First</h2><img src="picture.svg"><a href="{}">link</a>'


def broken(folder: Path, link: str) -> list[str]:
    """The broken links of a page with one link, beside a second page and a picture."""
    (folder / "sub").mkdir()
    (folder / "picture.svg").touch()
    (folder / "sub" / "other.html").write_text('<a href="../index.html#first-part"></a><p id="é">', encoding="utf-8")
    (folder / "index.html").write_text(PAGE.format(link), encoding="utf-8")
    return list(Site(folder).broken_links())


@pytest.mark.parametrize(
    "link",
    ["#first-part", "sub/other.html", "sub/other.html#%C3%A9", "picture.svg#part", "https://example.org/page#anchor"],
)
def test_link_that_leads_somewhere_passes(link: str, tmp_path: Path) -> None:
    """Anchors of this page and of others, files, and addresses of other sites, which are not fetched."""
    assert broken(tmp_path, link) == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("#second-part", "no such anchor"),
        ("#examples/tour.ipynb", "no such anchor"),
        ("sub/other.html#first-part", "no such anchor"),
        ("gone.html", "no such file"),
        ("sub", "no such file"),
        ("http://example.org/page", "no address that begins with https://"),
        ("https://page", "no address that begins with https://"),
    ],
)
def test_link_that_leads_nowhere_is_named_with_the_reason(link: str, why: str, tmp_path: Path) -> None:
    """The page, the link as it is written, and what is wrong with it."""
    assert broken(tmp_path, link) == [f"index.html: {link} ({why})"]


def test_links_of_an_included_page_fit_the_page_that_includes_it() -> None:
    """A page becomes a page, another file is found from docs/, and what is no file of the repository stays."""
    relocated = runpy.run_path(str(REPOSITORY / "docs" / "conf.py"))["relocated"]
    text = "[a](docs/speed.md#speed) [b](CONTRIBUTING.md) [c](examples/tour.ipynb) `f[1](x)` [d](#part)"
    found = "[a](speed.md#speed) [b](contributing.md) [c](../examples/tour.ipynb) `f[1](x)` [d](#part)"
    assert relocated(text) == found

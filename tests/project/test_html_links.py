"""The check of the documentation's links, which `make docs` runs, finds what leads nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.html_links import Site

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

"""A folder of HTML pages → the links on them that lead nowhere. `make docs` runs it on what Sphinx has built.

Enters: a folder. Leaves: one line for each broken link, and exit code 1 if there are any. Separate because Sphinx turns
a link that it can't resolve into an anchor of the same page, and does not compare anchors. Links to other sites are
not fetched: they must have the form of an address.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Reader(HTMLParser):
    """Collects the anchors and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)
            if value and name in ("href", "src"):
                self.links.append(value)


@dataclass(frozen=True)
class Page:
    """One file of HTML.

    Args:
        path: of the file.
    """

    path: Path

    @cached_property
    def content(self) -> _Reader:
        """Its anchors and links."""
        reader = _Reader()
        reader.feed(self.path.read_text(encoding="utf-8"))
        return reader


@dataclass
class Site:
    """All pages of a folder.

    Args:
        folder: where they are.
        pages: by path; found when they are first needed.
    """

    folder: Path
    pages: dict[Path, Page] = field(default_factory=dict[Path, Page])

    def page(self, path: Path) -> Page:
        """Give a page, which is read once."""
        return self.pages.setdefault(path, Page(path))

    def broken_links(self) -> Iterator[str]:
        """Tell of every link that leads nowhere, as `page: link (why)`."""
        for path in sorted(self.folder.resolve().rglob("*.html")):
            for link in dict.fromkeys(self.page(path).content.links):
                if why := self._fault(path, link):
                    yield f"{path.relative_to(self.folder.resolve())}: {link} ({why})"

    def _fault(self, path: Path, link: str) -> str:
        parts = urlsplit(link)
        if parts.scheme in ("data", "mailto"):
            return ""
        if parts.scheme or parts.netloc:
            return "" if parts.scheme == "https" and "." in parts.netloc else "no address that begins with https://"
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            return "no such file"
        if not parts.fragment or target.suffix != ".html":
            return ""
        return "" if unquote(parts.fragment) in self.page(target).content.anchors else "no such anchor"


def main() -> int:
    """Print the broken links of the folder that the command line names."""
    broken = list(Site(Path(sys.argv[1])).broken_links())
    sys.stdout.write("".join(f"broken link: {line}\n" for line in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

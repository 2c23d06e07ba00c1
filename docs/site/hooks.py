"""What mkdocs does with the pages that stand at the top of the repository: README.md is the home page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: A page at the top of the repository -> its name in the site.
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE.md",
}
_LINK = re.compile(r'(?<=\]\()[^)\s]+|(?<=src=")[^"]+|(?<=srcset=")[^"]+')
#: A picture in two colours, as GitHub shows it by the reader's own setting.
_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)"[^>]*alt="(?P<alt>[^"]*)">\s*</picture>'
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages at the top of the repository."""
    for name, site_name in TOP.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, site_name, content=_LINK.sub(_from_top, text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to the top of the repository at the pages of the site, and follow its dark switch.

    Paths of raw HTML stay as they are, and so lead nowhere from a page in a folder of its own. Those of
    Markdown are resolved.
    """
    found = _LINK.sub(_from_docs, markdown)
    return _PICTURE.sub(r"![\g<alt>](\g<light>#only-light) ![\g<alt>](\g<dark>#only-dark)", found)


def _from_top(link: re.Match[str]) -> str:
    """Give a link of a page at the top as it is within docs/."""
    target, _, anchor = link[0].partition("#")
    inside = TOP.get(target) or target.removeprefix("docs/")
    return f"{inside}#{anchor}" if anchor else inside


def _from_docs(link: re.Match[str]) -> str:
    target, _, anchor = link[0].partition("#")
    if not target.startswith("../"):
        return link[0]
    inside = TOP.get(target.removeprefix("../"), target)
    return f"{inside}#{anchor}" if anchor else inside

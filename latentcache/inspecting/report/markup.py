"""HTML that its contents cannot break: all children and attributes are escaped, except markup itself."""

from __future__ import annotations

import html
from collections.abc import Iterable

#: Elements that have no end tag.
VOID = frozenset({"meta", "img", "br", "input"})


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def h(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element. A list among the children stands for its items; `class_` becomes `class`."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = join(children)
    return Markup(f"<{tag}{shown}>" if tag in VOID else f"<{tag}{shown}>{inner}</{tag}>")


def join(children: Iterable[object]) -> Markup:
    """Return the children one after the other, escaped unless they are markup; None adds nothing."""
    return Markup("".join(_one(child) for child in children if child is not None))


def _one(child: object) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return html.escape(str(child))

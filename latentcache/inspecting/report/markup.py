"""HTML that what it shows cannot break: all children and attributes are escaped but markup itself."""

from __future__ import annotations

import html
from collections.abc import Iterable

#: Elements that have no end tag.
VOID = frozenset({"meta", "img", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def h(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element. Children that are lists are their items; `class_` is the attribute `class`."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = join(children)
    return Markup(f"<{tag}{shown}>" if tag in VOID else f"<{tag}{shown}>{inner}</{tag}>")


def join(children: Iterable[object]) -> Markup:
    """Return the children one after the other, escaped where they are not markup; None is nothing."""
    return Markup("".join(_one(child) for child in children if child is not None))


def _one(child: object) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return html.escape(str(child))

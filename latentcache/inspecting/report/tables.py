"""Tables of the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from latentcache.inspecting.report.markup import Markup, h


def table_of(
    head: Sequence[str], rows: Iterable[Sequence[object]], text: Sequence[int] = ()
) -> Markup:
    """Return a table. The columns in `text` hold words; all others but the first hold numbers."""
    kind = ["text" if i in text else None for i in range(len(head))]
    return h(
        "div",
        h(
            "table",
            h("tr", [h("th", cell, class_=c) for cell, c in zip(head, kind, strict=True)]),
            [
                h("tr", [h("td", x, class_=c) for x, c in zip(row, kind, strict=True)])
                for row in rows
            ],
        ),
        class_="scroll",
    )


def sortable(
    name: str,
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    keys: Sequence[Sequence[float]],
    text: Sequence[int] = (),
) -> Markup:
    """Return a table whose heads sort it, by style alone: nothing may run in the page.

    keys: of each row, what each column is sorted by, the largest first. A head is a radio button. While it
    is pressed, rows take their places in that order from their own style.
    """
    ranks = [_ranks([key[c] for key in keys]) for c in range(len(head))]
    places = [
        "; ".join(f"--by{c}: {rank[n]}" for c, rank in enumerate(ranks)) for n in range(len(rows))
    ]
    heads = [
        h(
            "th",
            h("label", h("input", type="radio", name=name, value=c), cell),
            class_="text" if c in text else None,
        )
        for c, cell in enumerate(head)
    ]
    body = [
        h(
            "tr",
            [h("td", x, class_="text" if c in text else None) for c, x in enumerate(row)],
            style=place,
        )
        for row, place in zip(rows, places, strict=True)
    ]
    rules = "".join(
        f".sortable:has(input[value='{c}']:checked) tbody tr {{ order: var(--by{c}) }}\n"
        for c in range(len(head))
    )
    table = h("table", h("thead", h("tr", heads)), h("tbody", body), class_="sortable")
    columns = f".sortable {{ --columns: {len(head)} }}\n"
    return h("div", h("style", Markup(columns + rules)), table, class_="scroll")


def _ranks(values: Sequence[float]) -> list[int]:
    """Return the place of each value among all, the largest first; equal ones stay in order."""
    ranks = [0] * len(values)
    for place, n in enumerate(sorted(range(len(values)), key=lambda n: -values[n])):
        ranks[n] = place
    return ranks

"""Draws the data flow, once in light and once in dark: `python docs/images/make_data_flow.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 800, 648
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

#: Colours by role: canvas, text, quiet text, lines, and fill and border by kind of box.
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "canvas": "#ffffff",
        "text": "#1f2328",
        "quiet": "#59636e",
        "line": "#6e7781",
        "write": "#ddf4ff #54aeff",
        "read": "#dafbe1 #4ac26b",
        "inspect": "#fbefff #c297ff",
        "cache": "#fff8c5 #d4a72c",
        "ground": "#f6f8fa #d1d9e0",
        "outside": "#ffffff #818b98",
        "group": "#f5fbff #54aeff",
    },
    "dark": {
        "canvas": "#0d1117",
        "text": "#f0f6fc",
        "quiet": "#9198a1",
        "line": "#8b949e",
        "write": "#0c2d6b #388bfd",
        "read": "#033a16 #2ea043",
        "inspect": "#321b5c #a371f7",
        "cache": "#3b2300 #bb8009",
        "ground": "#151b23 #3d444d",
        "outside": "#0d1117 #656c76",
        "group": "#0b1a30 #388bfd",
    },
}

#: The grid: three columns of boxes, and the cache beside them over all rows.
LEFT, BOX_WIDTH, STEP, BOX_HEIGHT = 20, 142, 182, 60
CACHE_X, CACHE_WIDTH = 610, 180
PLAN_Y, ENCODE_Y, TRAIN_Y, INSPECT_Y, COPY_Y, GROUND_Y = 42, 180, 306, 404, 496, 588
GROUP_TOP, GROUP_BOTTOM = 138, 254
RADIUS = 8


def column(number: int) -> int:
    """Return the left edge of a column of boxes."""
    return LEFT + number * STEP


def text(x: float, y: float, words: str, *, role: str = "text", size: int = 13, **more: str) -> str:
    """Return a line of text around x, or from it with anchor="start"."""
    anchor = more.pop("anchor", "middle")
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{{{role}}}"'
        f"{attributes}>{escape(words)}</text>"
    )


def frame(
    x: float, y: float, width: float, height: float, kind: str, *, dashed: bool = False
) -> str:
    """Return a rounded rectangle in the colours of a kind."""
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{RADIUS}" '
        f'fill="{{{kind}_fill}}" stroke="{{{kind}_border}}" stroke-width="1.5"{dashes}/>'
    )


def room(x: float, y: float, name: str, what: str, kind: str, *, width: float = BOX_WIDTH) -> str:
    """Return a room: its folder, and what comes out of it."""
    middle = x + width / 2
    return (
        frame(x, y, width, BOX_HEIGHT, kind)
        + text(middle, y + 26, name, size=15, font_family=MONO, font_weight="600")
        + text(middle, y + 46, what, role="quiet", size=12)
    )


def named(x: float, y: float, name: str, what: str) -> str:
    """Return a folder and, on the same line, what it is for."""
    end = x + len(name) * 9.1 + 10  # a monospaced letter of size 15 is 9 wide
    return text(x, y, name, size=15, font_family=MONO, font_weight="600", anchor="start") + text(
        end, y, what, role="quiet", size=12, anchor="start"
    )


def outside(x: float, y: float, name: str, what: str) -> str:
    """Return something that is not part of latentcache."""
    middle = x + BOX_WIDTH / 2
    return (
        frame(x, y, BOX_WIDTH, BOX_HEIGHT, "outside", dashed=True)
        + text(middle, y + 26, name, size=14, font_weight="600")
        + text(middle, y + 46, what, role="quiet", size=12)
    )


def arrow(*points: tuple[float, float]) -> str:
    """Return a line through the points with a head at its end."""
    path = " L".join(f"{x:g} {y:g}" for x, y in points)
    return (
        f'<path d="M{path}" fill="none" stroke="{{line}}" stroke-width="1.6" '
        'stroke-linejoin="round" marker-end="url(#head)"/>'
    )


def across(number: int, y: float) -> str:
    """Return the arrow from a column's box to the next one's."""
    middle = y + BOX_HEIGHT / 2
    return arrow((column(number) + BOX_WIDTH + 3, middle), (column(number + 1) - 4, middle))


def back(number: int, y: float) -> str:
    """Return the arrow from a column's box to that on its left."""
    middle = y + BOX_HEIGHT / 2
    return arrow((column(number) - 3, middle), (column(number - 1) + BOX_WIDTH + 4, middle))


def label(y: float, words: str) -> str:
    """Return the name of a row, above its first box."""
    return text(
        LEFT,
        y - 12,
        words,
        role="quiet",
        size=11,
        anchor="start",
        font_weight="600",
        letter_spacing="1",
    )


def plan_row() -> Iterator[str]:
    """Draw sources to plan."""
    yield label(PLAN_Y, "PLAN")
    yield outside(column(0), PLAN_Y, "Your corpus", "videos, images")
    yield room(column(1), PLAN_Y, "corpus/", "sources", "write")
    yield room(column(2), PLAN_Y, "planning/", "clips, shards", "write")
    yield across(0, PLAN_Y) + across(1, PLAN_Y)
    middle = PLAN_Y + BOX_HEIGHT / 2
    yield arrow((column(2) + BOX_WIDTH + 3, middle), (CACHE_X - 4, middle))


def encode_row() -> Iterator[str]:
    """Draw the run: decoding, encoding and writing, one worker per GPU."""
    left, right = column(0) - 10, column(2) + BOX_WIDTH + 10
    yield frame(left, GROUP_TOP, right - left, GROUP_BOTTOM - GROUP_TOP, "group")
    yield label(ENCODE_Y, "ENCODE")
    yield named(column(1), ENCODE_Y - 12, "running/", "one worker per GPU, steps overlap")
    yield room(column(0), ENCODE_Y, "decoders/", "uint8 pixels", "write")
    yield room(column(1), ENCODE_Y, "encoders/", "moments or ids", "write")
    yield room(column(2), ENCODE_Y, "format/", "shard, then table", "write")
    yield across(0, ENCODE_Y) + across(1, ENCODE_Y)
    middle = column(0) + BOX_WIDTH / 2
    yield arrow((middle, PLAN_Y + BOX_HEIGHT + 3), (middle, ENCODE_Y - 4))
    middle = column(2) + BOX_WIDTH / 2
    yield arrow((middle, PLAN_Y + BOX_HEIGHT + 3), (middle, GROUP_TOP - 4))
    level = ENCODE_Y + BOX_HEIGHT / 2
    yield arrow((right + 3, level), (CACHE_X - 4, level))


def train_row() -> Iterator[str]:
    """Draw the cache to a trainer."""
    yield label(TRAIN_Y, "TRAIN")
    width = STEP + BOX_WIDTH
    yield outside(column(0), TRAIN_Y, "Your trainer", "batches of latents")
    yield room(
        column(1), TRAIN_Y, "reading/", "one order for any number of ranks", "read", width=width
    )
    yield back(1, TRAIN_Y)
    level = TRAIN_Y + BOX_HEIGHT / 2
    yield arrow((CACHE_X - 3, level), (column(2) + BOX_WIDTH + 4, level))


def inspect_row() -> Iterator[str]:
    """Draw the cache to people."""
    yield label(INSPECT_Y, "LOOK")
    width = STEP + BOX_WIDTH
    yield outside(column(0), INSPECT_Y, "You", "progress, pictures")
    yield room(
        column(1),
        INSPECT_Y,
        "inspecting/",
        "verify, status, report, preview",
        "inspect",
        width=width,
    )
    yield back(1, INSPECT_Y)
    level = INSPECT_Y + BOX_HEIGHT / 2
    yield arrow((CACHE_X - 3, level), (column(2) + BOX_WIDTH + 4, level))


def copy_row() -> Iterator[str]:
    """Draw the cache to itself, to other caches, and to the files of other trainers and back."""
    yield label(COPY_Y, "COPY")
    left = column(1) - 10
    yield frame(left, COPY_Y - 8, column(2) + BOX_WIDTH - left, BOX_HEIGHT + 16, "group")
    yield outside(column(0), COPY_Y, "Other trainers", "their own files")
    yield room(column(1), COPY_Y, "exchange/", "export, import", "write")
    yield room(column(2), COPY_Y, "copying/", "the same bytes", "write")
    yield back(1, COPY_Y)
    right, level = column(2) + BOX_WIDTH, COPY_Y + BOX_HEIGHT / 2
    yield arrow((CACHE_X - 3, level - 12), (right + 4, level - 12))
    yield arrow((right + 3, level + 12), (CACHE_X - 4, level + 12))


def cache() -> Iterator[str]:
    """Draw the cache, with what each row writes or reads beside its arrow."""
    middle = CACHE_X + CACHE_WIDTH / 2
    top, bottom = PLAN_Y - 12, COPY_Y + BOX_HEIGHT
    yield frame(CACHE_X, top, CACHE_WIDTH, bottom - top, "cache")
    rows = {
        PLAN_Y: ("cache.json", "plan/"),
        ENCODE_Y: ("latents/", "samples/"),
        TRAIN_Y: ("index.parquet", "the snapshot"),
        INSPECT_Y: ("logs/", "what runs did"),
    }
    for y, (first, second) in rows.items():
        level = y + BOX_HEIGHT / 2
        is_file = "." in second or "/" in second
        yield text(middle, level - 4, first, size=14, font_family=MONO)
        family = MONO if is_file else SANS
        yield text(
            middle, level + 16, second, role="text" if is_file else "quiet",
            size=14 if is_file else 12, font_family=family,
        )  # fmt: skip
    yield text(middle, COPY_Y + 26, "storage/", size=15, font_family=MONO, font_weight="600")
    yield text(middle, COPY_Y + 46, "disk, S3, fsspec URLs", role="quiet", size=12)
    rule = GROUP_BOTTOM + 18
    yield (
        f'<path d="M{CACHE_X + 20} {PLAN_Y + 78} H{CACHE_X + CACHE_WIDTH - 20} '
        f"M{CACHE_X + 20} {rule} H{CACHE_X + CACHE_WIDTH - 20} "
        f'M{CACHE_X + 20} {COPY_Y - 16} H{CACHE_X + CACHE_WIDTH - 20}" '
        'stroke="{cache_border}" stroke-opacity="0.5"/>'
    )


def ground() -> Iterator[str]:
    """Draw what starts and carries all rows."""
    left, right = column(0) - 10, CACHE_X + CACHE_WIDTH
    yield frame(left, GROUND_Y, right - left, 44, "ground")
    entries = (
        ("jobs/", "start each row"),
        ("config/", "one YAML file"),
        ("core/", "shared records"),
    )
    third = (right - left) / 3
    for place, (name, what) in enumerate(entries):
        start = left + third * place + 28
        yield named(start, GROUND_Y + 27, name, what)


def drawing(theme: str) -> str:
    """Return the whole picture in the colours of a theme."""
    colours: dict[str, str] = {}
    for role, value in THEMES[theme].items():
        fill, _, border = value.partition(" ")
        colours |= {f"{role}_fill": fill, f"{role}_border": border} if border else {role: fill}
    rows = (plan_row(), encode_row(), train_row(), inspect_row(), copy_row(), cache(), ground())
    parts = "\n".join(part for row in rows for part in row)
    for role, value in colours.items():
        parts = parts.replace(f"{{{role}}}", value)
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colours["line"]}"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="{SANS}" role="img">\n'
        "<title>The data flow of latentcache</title>\n"
        f'{head}\n<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="{colours["canvas"]}"/>\n'
        f"{parts}\n</svg>\n"
    )


def main() -> None:
    """Write a file per theme."""
    for theme in THEMES:
        (FOLDER / f"data-flow-{theme}.svg").write_text(drawing(theme), encoding="utf-8")


if __name__ == "__main__":
    main()

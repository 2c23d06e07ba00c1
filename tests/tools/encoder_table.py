"""The table in docs/encoders.md, made from the specs: `python -m tests.tools.encoder_table` writes it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from latentcache.core.spec import IdSpec, LatentSpec, Normaliser
from latentcache.encoders import KINDS, resolve
from latentcache.errors import ConfigError
from tests.contracts.encoder_cases import Case, Model, all_cases

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
BEGIN = "<!-- made by `python -m tests.tools.encoder_table`, from here -->"
END = "<!-- to here -->"
COMMAND = "python -m tests.tools.encoder_table"
HEADINGS = (
    "encoder",
    "channels",
    "T x H x W",
    "legal frames; sizes",
    "how a clip is encoded",
    "set explicitly",
    "`tiling`",
    "normalised",
    "exactness",
    "ids",
    "`store`",
    "decodes",
    "compared with",
)
STORES = ("moments", "mean", "sample", "ids")


@dataclass(frozen=True)
class Row:
    """A published model; `cells` are those of `HEADINGS` but the first."""

    kind: str
    model_class: str
    name: str
    cells: tuple[str, ...]


@functools.cache
def rows() -> tuple[Row, ...]:
    """Return a row for each published model, kind by kind."""
    made = [_row(case, model) for case in all_cases() for model in case.models]
    return tuple(sorted(made, key=lambda row: KINDS.index(row.kind)))


def table() -> str:
    """Return the table in Markdown; models that differ only in their names share a line."""
    names: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for row in rows():
        of_class = f" ({row.model_class})" if row.kind.startswith("diffusers_") else ""
        names.setdefault((row.kind, of_class, row.cells), []).append(row.name)
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for (kind, of_class, cells), models in names.items():
        lines.append((f"`{kind}`: {', '.join(models)}{of_class}", *cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def page(text: str) -> str:
    """Return the page's text with the current table. Raises ValueError if it has no place for one."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} has no lines {BEGIN!r} and {END!r}, between which the table goes")
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(rows())} models")


def _row(case: Case, model: Model) -> Row:
    with tempfile.TemporaryDirectory() as folder, _installed(case.kind):
        raw = model.raw(Path(folder))
        module, config = resolve(raw)
        spec: LatentSpec = module.describe(config, dtype="float32")
        identity = module.identity(config)
        cells = (
            "" if spec.ids else str(spec.channels),
            "x".join(map(str, spec.stride)),
            _frames(spec),
            model.chunking or case.chunking,
            _flags(identity),
            _tiling(raw, spec),
            _normaliser(spec.normaliser, spec.channels),
            f"`{spec.exactness}`",
            _ids(spec.ids),
            ", ".join(_stores(raw, spec, module.Config.model_fields)),
            model.decodes or _decodes(case),
            model.tested or case.tested,
        )
    return Row(case.kind, spec.model_class, model.name, cells)


@contextlib.contextmanager
def _installed(kind: str) -> Iterator[None]:
    """Pretend that the package of `magvit2` is installed: `describe` asks it only for its version."""
    if kind != "magvit2":
        yield
        return
    with (
        mock.patch.object(importlib.util, "find_spec", return_value=True),
        mock.patch.object(importlib.metadata, "version", return_value="0"),
    ):
        yield


def _frames(spec: LatentSpec) -> str:
    words = "1" if spec.frame_rule.maximum == 1 else spec.frame_rule.describe()
    if spec.fixed_size is not None:
        words += f"; only {spec.fixed_size[0]}x{spec.fixed_size[1]}"
    if spec.size_rules is not None:
        height, width = (rule.describe() for rule in spec.size_rules)
        words += f"; height {height}; width {width}"
    return words


def _flags(identity: Mapping[str, Any]) -> str:
    """Return the attributes that are set on a model, and the checked defaults of its methods."""
    arguments = identity.get("arguments", {})
    flags = {
        **identity.get("attributes", {}),
        **{f"{name}({key})": v for name, vs in arguments.items() for key, v in vs.items()},
        **{key: identity[key] for key in ("window",) if key in identity},
    }
    return "<br>".join(f"`{name}: {value}`" for name, value in flags.items())


def _tiling(raw: Mapping[str, Any], spec: LatentSpec) -> str:
    """Return along which axes `encoder.tiling` takes tiles, by asking it."""
    _, sh, sw = spec.stride
    space = {"tile": [8 * sh, 8 * sw], "overlap": [2 * sh, 2 * sw]}
    if not _takes(raw, space):
        return "no"
    st, rule = spec.stride[0], spec.frame_rule
    frames = rule.shortest(4 * st)
    in_time = {**space, "frames": frames, "frame_overlap": (frames or 0) - 2 * st}
    return "H, W, T" if _takes(raw, in_time) else "H, W"


def _takes(raw: Mapping[str, Any], tiling: Mapping[str, Any]) -> bool:
    try:
        module, config = resolve({**raw, "tiling": tiling})
        module.describe(config, dtype="float32")
    except ConfigError:
        return False
    return True


def _stores(raw: Mapping[str, Any], spec: LatentSpec, fields: Mapping[str, Any]) -> list[str]:
    if "store" not in fields:
        return [f"`{spec.stored}`"]
    found = []
    for store in STORES:
        with contextlib.suppress(ConfigError):
            module, config = resolve({**raw, "store": store})
            module.describe(config, dtype="float32")
            found.append(f"`{store}`")
    return found


def _normaliser(normaliser: Normaliser, channels: int) -> str:
    shift, scale = normaliser.shift[0], normaliser.scale[0]
    return {
        "none": "no",
        "scale": f"z * {scale:.9g}",
        "shift_scale": f"(z - {shift:.9g}) * {scale:.9g}"
        if shift >= 0
        else f"(z + {-shift:.9g}) * {scale:.9g}",
        "channel": "by channel",
        "channel_frame": f"by channel and latent frame, of {len(normaliser.shift) // channels}",
    }[normaliser.kind]


def _ids(ids: IdSpec | None) -> str:
    if ids is None:
        return ""
    words = f"{ids.codebook_size:,} codes, `{ids.dtype}`"
    if ids.bit_order != "none":
        words += f", channel 0 in the {'lowest' if ids.bit_order == 'lsb_first' else 'highest'} bit"
    if ids.scales:
        words += f", {len(ids.scales)} scales, {sum(side * side for side in ids.scales):,} ids"
    return words


def _decodes(case: Case) -> str:
    if case.decodes is not True:
        return "no"
    return f"yes, all but the last {case.undecoded} frames" if case.undecoded else "yes"


if __name__ == "__main__":
    main()

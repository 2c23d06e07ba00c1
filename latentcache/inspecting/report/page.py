"""The report's page: one HTML document that needs nothing else, runs nothing, and fetches nothing."""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from latentcache.core.image_quality import psnr_in_words
from latentcache.core.records import REASONS
from latentcache.core.units import human_bytes, human_time
from latentcache.inspecting.field_counts import CountedField, behind_of
from latentcache.inspecting.report import figures
from latentcache.inspecting.report.buckets import buckets
from latentcache.inspecting.report.collect import Report
from latentcache.inspecting.report.facts import TIME_EDGES_S, Facts, Failures, Times
from latentcache.inspecting.report.latents import ChannelStatistics, IdStatistics
from latentcache.inspecting.report.markup import Markup, h
from latentcache.inspecting.report.reconstructions import Shown, psnr_by_position
from latentcache.inspecting.report.tables import table_of
from latentcache.inspecting.report.words import recipe_in_words
from latentcache.inspecting.status_words import behind_lines
from latentcache.redaction import printable

#: Only the page's own style, pictures and films may be loaded. Nothing may run, whatever a caption holds.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; "
    "form-action 'none'"
)
#: The longest caption, and the longest key or message, that is shown whole.
CAPTION_CHARACTERS, MESSAGE_CHARACTERS = 400, 2000
_STAGE_NAMES = {"decode_s": "decode", "encode_s": "encode"}


def render(report: Report, made_at: str) -> str:
    """Return the page. made_at: a date and time in words."""
    title = f"latentcache report: {report.url}"
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("title", title),
        h("style", Markup(_style())),
    )
    sections = (
        _header(report, made_at),
        _recipe(report),
        buckets(report.facts),
        _fields(report),
        _failures(report.facts),
        _clips(report),
        _quality(report),
        _latents(report),
        _times(report.facts),
    )
    return "<!doctype html>\n" + h("html", head, h("body", h("main", sections)), lang="en")


def _style() -> str:
    return (
        importlib.resources.files("latentcache.inspecting.report").joinpath("style.css").read_text()
    )


def _header(report: Report, made_at: str) -> list[Markup]:
    facts, spec = report.facts, report.manifest.spec
    planned = sum(bucket.planned_clips for bucket in facts.buckets)
    ok = sum(bucket.num_ok for bucket in facts.buckets)
    failed = sum(bucket.num_failed for bucket in facts.buckets)
    rejected = sum(found.count for found in facts.rejected.values())
    stored = sum(bucket.stored_bytes for bucket in facts.buckets)
    tiles = [
        (
            f"{(ok + failed) / planned if planned else 1:.1%}",
            f"committed: {ok + failed:,} of {planned:,} clips",
        ),
        (f"{ok:,}", "clips ok"),
        (f"{failed:,}", f"clips failed; {rejected:,} sources rejected"),
        (human_time(sum(bucket.duration_s for bucket in facts.buckets)), "of video"),
        (human_bytes(stored), "stored"),
    ]
    if scores := _psnr(report.clips):
        tiles.append((f"{median(scores):.1f} dB", f"median PSNR of {len(scores)} clips"))
    return [
        h("h1", report.url),
        h(
            "p",
            f"{spec.model_class}, {spec.stored} as {spec.dtype}. Looked at on {made_at}.",
            class_="dim",
        ),
        _state(report.state, is_complete=ok + failed >= planned),
        h(
            "div",
            [h("div", h("b", value), h("span", what)) for value, what in tiles],
            class_="tiles",
        ),
        *[h("div", f"Damaged: {_shortened(message)}", class_="note") for message in report.damaged],
    ]


def _state(state: str, *, is_complete: bool) -> Markup:
    """Say how far the cache is; of one that is not complete, so that it is seen."""
    return h("div", f"State: {state}", class_="state" if is_complete else "note")


def _recipe(report: Report) -> list[Markup]:
    words = [(h("dt", what), h("dd", text)) for what, text in recipe_in_words(report.manifest)]
    exact = json.dumps(report.manifest.recipe, indent=2, sort_keys=True)
    return [
        h("h2", "What it is"),
        h("dl", words, class_="words"),
        h("details", h("summary", "The exact recipe"), h("pre", exact)),
    ]


def _fields(report: Report) -> list[Markup]:
    if not (fields := report.facts.fields):
        return []
    names = (
        "field, arrays, committed, ok, failed, failed texts of ok clips, with lost tokens, "
        "of former captions or files, without a value, stored"
    )
    rows = [_field_row(found) for found in fields]
    lines = behind_lines(behind_of(fields), report.url)
    behind = [h("div", f"Behind: {line}", class_="note") for line in lines]
    return [h("h2", "Fields"), table_of(names.split(", "), rows, text=(1, 2)), *behind]


def _field_row(found: CountedField) -> Sequence[object]:
    field, counts = found.field, found.counts
    arrays = [f"{field.key(a)} {a.shape_text} {a.dtype}" for a in field.arrays]
    return (
        f"{field.name} ({field.kind})",
        ", ".join(arrays),
        f"{counts.num_committed:,} of {counts.num_shards:,} shards",
        f"{counts.num_ok:,}",
        f"{counts.num_failed:,}",
        f"{counts.num_failed_texts:,}",
        f"{counts.num_lost:,}",
        f"{found.behind.num_former:,}",
        f"{found.behind.num_missing:,}",
        human_bytes(counts.stored_bytes),
    )


def _failures(facts: Facts) -> list[Markup]:
    found = [h("h2", "What failed")]
    if not facts.failures and not facts.rejected:
        return [*found, h("p", "Nothing: no clip failed, and no source was rejected.")]
    if facts.failures:
        found += [h("h3", "Clips"), _failure_table(facts.failures, "clips")]
    if facts.rejected:
        found += [h("h3", "Sources that gave no clip"), _failure_table(facts.rejected, "sources")]
    return found


def _failure_table(failures: Mapping[str, Failures], what: str) -> Markup:
    rows = [
        (
            reason,
            f"{found.count:,}",
            REASONS.get(reason, ""),
            [
                h(
                    "div",
                    h("b", _shortened(printable(key))),
                    " ",
                    _shortened(printable(message)),
                    dir="auto",
                )
                for key, message in found.examples
            ]
            + _more(found.count - len(found.examples)),
        )
        for reason, found in sorted(failures.items(), key=lambda item: -item[1].count)
    ]
    return table_of(("reason", what, "meaning", "examples"), rows, text=(2, 3))


def _more(num: int) -> list[Markup]:
    return [h("div", f"and {num:,} more", class_="dim")] if num else []


def _clips(report: Report) -> list[Markup]:
    found = [h("h2", "Source above, decoded latent below")]
    if report.problem:
        why = "The latents were not decoded, so there is nothing to see here; the rest is complete."
        return [*found, h("div", f"{why}\n{report.problem}", class_="note")]
    if not report.clips:
        return [*found, h("p", "No clip was decoded.")]
    stills = [_clip(clip) for clip in report.clips if clip.frames == 1]
    moving = [_clip(clip) for clip in report.clips if clip.frames > 1]
    return [*found, *moving, h("div", stills, class_="stills")]


def _clip(clip: Shown) -> Markup:
    rate = f", {clip.fps:.3g} per second, from frame {clip.start}" if clip.frames > 1 else ""
    plural = "s" if clip.frames > 1 else ""
    return h(
        "article",
        h(
            "header",
            h("h3", _shortened(printable(clip.key)), dir="auto"),
            h("span", _score(clip), class_="score"),
        ),
        h("p", f"{clip.bucket}: {clip.frames} frame{plural}{rate}", class_="dim"),
        h("p", _shortened(clip.caption, CAPTION_CHARACTERS), class_="caption", dir="auto")
        if clip.caption
        else None,
        h("div", f"No source to compare with: {clip.problem}", class_="note")
        if clip.problem
        else None,
        h("div", [_thumbnail(clip, i) for i in range(len(clip.thumbnails))], class_=_strip(clip)),
        _film(clip),
        class_="clip",
    )


def _film(clip: Shown) -> Markup | None:
    """Return the clip as a film that plays over and over, source and decoded side by side."""
    if clip.film is None:
        return None
    film = h("video", src=clip.film, controls="", loop="", muted="", playsinline="", preload="none")
    return h("details", h("summary", "Play it"), film)


def _strip(clip: Shown) -> str:
    return "strip pairs" if clip.quality else "strip alone"


def _thumbnail(clip: Shown, number: int) -> list[Markup]:
    shown = clip.thumbnails[number]
    what = f"frame {shown.frame}"
    pictures = [("source", shown.source), ("decoded", shown.decoded)]
    images = [h("img", src=uri, alt=f"{what}, {name}") for name, uri in pictures if uri]
    error = f", {_db(clip.quality.frame_psnr_db(shown.frame))}" if clip.quality else ""
    return [*images, h("span", what + error)]


def _shortened(text: str, at_most: int = MESSAGE_CHARACTERS) -> str:
    return text[:at_most] + "…" if len(text) > at_most else text


def _score(clip: Shown) -> str:
    if clip.quality is None:
        return ""
    ssim = clip.quality.mean_ssim
    return f"PSNR {_db(clip.quality.psnr_db)}" + ("" if ssim is None else f", SSIM {ssim:.4f}")


def _db(value: float) -> str:
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def _psnr(clips: Iterable[Shown]) -> list[float]:
    """Return the PSNR of the clips that were compared, without those that are identical."""
    scores = [clip.quality.psnr_db for clip in clips if clip.quality]
    return [score for score in scores if math.isfinite(score)]


def _quality(report: Report) -> list[Markup]:
    compared = [(clip.quality, clip.frames) for clip in report.clips if clip.quality]
    plots = []
    if scores := _psnr(report.clips):
        plots.append(figures.distribution("psnr", "PSNR of clips", "dB", scores))
    if ssims := [s for quality, _ in compared if (s := quality.mean_ssim) is not None]:
        plots.append(figures.distribution("ssim", "SSIM of clips", "SSIM", ssims))
    by_position = psnr_by_position(compared, report.manifest.spec)
    by_position = {name: psnr for name, psnr in by_position.items() if math.isfinite(psnr)}
    if len(by_position) > 1:
        plots.append(figures.by_position(by_position))
    if not plots:
        return []
    return [
        h("h2", "How close they are"),
        h("div", plots, class_="plots"),
        *_position_words(by_position),
    ]


def _position_words(psnr_db: Mapping[str, float]) -> list[Markup]:
    if len(psnr_db) < 2:
        return []
    best, worst = max(psnr_db, key=psnr_db.__getitem__), min(psnr_db, key=psnr_db.__getitem__)
    return [
        h(
            "p",
            "A latent frame stands for a group of frames, and these are not reproduced equally well: "
            f"here position {best} has {psnr_db[best]:.1f} dB and position {worst} has "
            f"{psnr_db[worst]:.1f} dB. “first” is the first frame, if it stands by itself.",
            class_="dim",
        )
    ]


def _latents(report: Report) -> list[Markup]:
    head = h("h2", "The latents")
    if report.statistics is None:
        return [head, h("p", "None was read.")]
    if isinstance(report.statistics, IdStatistics):
        return [head, *_ids(report.statistics)]
    return [head, *_channels(report.statistics)]


def _ids(ids: IdStatistics) -> list[Markup]:
    bits = math.log2(ids.codebook_size)
    return [
        h(
            "p",
            f"{len(ids.counts):,} of {ids.codebook_size:,} codes ({ids.usage:.1%}) occur among "
            f"{ids.num_ids:,} ids of {ids.num_clips} clips. Their entropy is {ids.entropy_bits:.2f} of "
            f"{bits:.2f} bits: a perplexity of {ids.perplexity:,.0f}.",
        ),
        h("div", figures.id_frequencies(ids), class_="plots"),
    ]


def _channels(found: ChannelStatistics) -> list[Markup]:
    verdicts = found.verdicts()
    notes = [
        h(
            "div",
            f"{kind} channels: {', '.join(str(i) for i, v in enumerate(verdicts) if v == kind)}",
            class_="note",
        )
        for kind in ("dead", "exploding")
        if kind in verdicts
    ]
    limits = figures.value_limits(found)
    plots = [figures.channel_means(found, limits), figures.channel_histograms(found, limits)]
    return [
        h("p", f"From {found.num_clips} clips sampled over all buckets."),
        *notes,
        h("div", plots, class_="plots"),
        h("details", h("summary", "Every channel"), _channel_table(found, verdicts)),
    ]


def _channel_table(found: ChannelStatistics, verdicts: Sequence[str]) -> Markup:
    columns = {
        "mean": found.mean,
        "std": found.std,
        "min": found.minimum,
        "max": found.maximum,
        "normaliser: shift": found.shift,
        "1 / scale": 1 / found.scale,
        "mean after it": found.normal_mean,
        "std after it": found.normal_std,
    }
    if found.posterior_std is not None:
        columns["std of the posterior"] = found.posterior_std
    rows = [
        (channel, *(f"{column[channel]:.4g}" for column in columns.values()), verdict)
        for channel, verdict in enumerate(verdicts)
    ]
    return table_of(("channel", *columns, "verdict"), rows)


def _times(facts: Facts) -> list[Markup]:
    head = h("h2", "Time")
    if not facts.times.num_clips:
        return [head, h("p", "No clip has been encoded yet.")]
    rows = [_times_row("all clips", facts.times)]
    for column, groups in facts.groups.items():
        rows += [_times_row(f"{column} {name}", times) for name, times in sorted(groups.items())]
    counts = {_STAGE_NAMES[stage]: bins for stage, bins in facts.times.bins.items()}
    return [
        head,
        table_of(("", "clips", "decode", "per clip", "encode", "per clip"), rows),
        h("p", "Decoding is summed over processes, which work at the same time.", class_="dim"),
        h("div", figures.times(TIME_EDGES_S, counts), class_="plots"),
        *_tiling(facts.tiling_errors),
        *([h("p", f"Quality: {psnr_in_words(facts.psnrs_db)}.")] if facts.psnrs_db else []),
    ]


def _times_row(name: str, times: Times) -> Sequence[object]:
    cells: list[object] = [_shortened(printable(name)), f"{times.num_clips:,}"]
    for stage in _STAGE_NAMES:
        cells += [
            human_time(times.total_s[stage]),
            f"{times.total_s[stage] / times.num_clips:.3f} s",
        ]
    return cells


def _tiling(errors: Sequence[float]) -> list[Markup]:
    if not errors:
        return []
    return [
        h(
            "p",
            f"Tiling: an error of {sum(errors) / len(errors):.2g} on average, at most {max(errors):.2g}, "
            f"over {len(errors)} clips also encoded untiled (RMS over the latents' standard deviation).",
        )
    ]

"""What was measured, as JSON and as markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: Readers with which the others are compared, compressed and not.
OURS = ("latentcache zarr zstd", "latentcache zarr raw")
TITLES = {
    "page-cache": "From page cache, steady",
    "s3": "From S3 on loopback, a cold epoch, cap {cap} MB/s over all connections",
}


def median(result: Mapping[str, Any], name: str) -> float:
    """The median of a figure over a result's rounds."""
    return statistics.median(run[name] for run in result["runs"])


def ratio(ours: Mapping[str, Any] | None, other: Mapping[str, Any]) -> float | None:
    """The median over rounds of ours' rate over the other's in the same round."""
    if ours is None or not ours["runs"] or len(ours["runs"]) != len(other["runs"]):
        return None
    pairs = zip(ours["runs"], other["runs"], strict=True)
    return statistics.median(a["samples_per_s"] / b["samples_per_s"] for a, b in pairs)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    blocks = [_facts(report)]
    for source in TITLES:
        results = [r for r in report["results"] if r["source"] == source]
        if results:
            title = TITLES[source].format(cap=report["settings"]["cap_mb_s"])
            blocks += [f"### {title}", _table(source, results)]
        blocks += [
            f"- {r['reader']}: not measured: {r['error'].splitlines()[0]}"
            for r in results
            if r["error"]
        ]
    return "\n\n".join(blocks)


def _facts(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    settings = report["settings"]
    environment = " ".join(f"{name}={value}" for name, value in settings["environment"].items())
    return (
        f"{report['machine']}; {versions}.\n\n{settings['samples']} samples of "
        f"{settings['sample_bytes'] / 1e6:.2f} MB, bfloat16 {settings['shape']}, batches of "
        f"{settings['batch_size']}, {settings['shard_samples']} samples a shard; base: "
        f"{report['base']['origin']}; byte shuffle and zstd-5 leave {report['base']['ratio']:.3f} of "
        f"it and {report['base']['noisy_ratio']:.3f} of the samples. "
        f"{settings['rounds']} alternating rounds; medians. Environment: {environment}."
    )


def _table(source: str, results: Sequence[Mapping[str, Any]]) -> str:
    by_name = {r["reader"]: r for r in results if r["runs"]}
    extra = ["MB/s sent", "first batch s"] if source == "s3" else []
    head = ["reader", "lanes", "samples/s", "MB/s of latents", *extra, "CPU ms a sample"]
    head += ["on disk", *(f"{name} is" for name in OURS)]
    rows = [_row(source, r, by_name) for r in results if r["runs"]]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _row(
    source: str, result: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    rate = median(result, "samples_per_s")
    cells = [result["reader"], f"{result['lanes']} {result['lanes_of']}", f"{rate:,.0f}"]
    cells.append(f"{median(result, 'mb_per_s'):,.0f}")
    if source == "s3":
        sent = statistics.median(r["wire_bytes"] / r["wall_s"] for r in result["runs"])
        cells += [f"{sent / 1e6:.0f}", f"{median(result, 'first_batch_s'):.2f}"]
    cells += [f"{median(result, 'cpu_ms'):.2f}", f"{result['disk_ratio']:.3f}"]
    ratios = [ratio(by_name.get(name), result) for name in OURS]
    return cells + ["" if r is None else f"{r:.2f} x" for r in ratios]

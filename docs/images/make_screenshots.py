"""Takes the pictures of a report and of a run's status: `python docs/images/make_screenshots.py`.

It needs the extra `demo` and Chromium. The pictures show a run of configs/demo.yaml on this machine.
"""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
DEMO = FOLDER.parents[1] / "configs" / "demo.yaml"
#: Short clips in small shards, so that there is a middle to look at.
OVERRIDES = (
    "clips.frames=5",
    "clips.buckets.area=589824",
    "cache.shard_clips=4",
    "run.runner=local",
)
REPORT_SIZE, STATUS_SIZE = (1100, 1240), (860, 250)
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #0d1117; color: #e6edf3; }}
pre {{ margin: 20px; font: 13px/1.5 ui-monospace, 'DejaVu Sans Mono', monospace; }}
</style><pre>$ latentcache status demo-cache --watch

{text}</pre>"""


def main() -> None:
    """Run the demo, and write the three pictures beside this file."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no Chromium here, which takes the pictures: install it.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = [*job("precompute"), str(DEMO), "cache.url=demo-cache", *OVERRIDES]
        with subprocess.Popen(run, cwd=folder, stdout=subprocess.DEVNULL) as process:
            page = folder / "status.html"
            page.write_text(TERMINAL.format(text=html.escape(status_of_a_middle(folder))))
            process.wait()
        subprocess.run([*job("report"), "demo-cache", "-o", "report.html"], cwd=folder, check=True)
        take(browser, page, FOLDER / "status.png", STATUS_SIZE)
        for theme in ("light", "dark"):
            target = FOLDER / f"report-{theme}.png"
            take(browser, folder / "report.html", target, REPORT_SIZE, dark=theme == "dark")


def job(name: str) -> list[str]:
    """Return the command of a job."""
    return [sys.executable, "-m", f"jobs.{name}"]


def status_of_a_middle(folder: Path) -> str:
    """Wait until the speed of a run is known, and return what `status` prints."""
    while True:
        time.sleep(0.5)
        shown = subprocess.run(
            [*job("status"), "demo-cache"], cwd=folder, capture_output=True, text=True
        )
        if "finished" in shown.stdout:
            sys.exit("The run was over before there was a middle to look at.")
        if "speed " in shown.stdout:
            return shown.stdout


def take(browser: str, page: Path, target: Path, size: tuple[int, int], dark: bool = False) -> None:
    """Write a picture of the top of a page, in 256 colours."""
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1"]
    window = f"--window-size={size[0]},{size[1]}"
    shot = [browser, *flags, *scheme, window, f"--screenshot={target}", page.as_uri()]
    subprocess.run(shot, check=True, capture_output=True)
    Image.open(target).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(
        target, optimize=True
    )


if __name__ == "__main__":
    main()

"""Take screenshots of a benchmark's report in Chromium: in the light and the dark theme, and on a phone."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from glimpse_env.core.atomic_files import atomic_path
from train.common.cli import run_command
from train.common.options import check_writable

FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking".split()
FLAGS += ["disable-component-update", "disable-sync", "window-size=1200,900"]
VIEWS = {"light": (1200, 1900, "light"), "dark": (1200, 1900, "dark"), "phone": (390, 1900, "light")}


@dataclass
class Options:
    """Take pictures of a report with Chromium; needs glimpse-env[dev], Chromium and its driver."""

    report: tyro.conf.Positional[Path] = tyro.MISSING
    """The report.html of a benchmark."""
    out: Path = Path("runs/report")
    """Where they go, with -light.png, -dark.png and -phone.png behind it."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium with a temporary profile; its console is logged.

    Raises:
        ImportError: selenium is not installed.
        FileNotFoundError: Chromium or its driver is not installed.
    """
    try:
        from selenium import webdriver
    except ImportError as error:
        raise ImportError("selenium is not installed; pip install 'glimpse-env[dev]'") from error
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        install = "apt-get install chromium chromium-driver"
        raise FileNotFoundError(f"no Chromium with its driver here (Debian, Ubuntu: {install})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


def main(options: Options) -> None:
    """Open the page in every view, and save a screenshot of each."""
    if not options.report.is_file():
        raise FileNotFoundError(f"no report {str(options.report)!r}; train.benchmark writes one to its run directory")
    paths = {view: options.out.with_name(f"{options.out.name}-{view}.png") for view in VIEWS}
    check_writable(paths["light"], "--out")
    with chromium() as chrome:
        for view, (width, height, scheme) in VIEWS.items():
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            chrome.get(options.report.resolve().as_uri())
            screenshot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            with atomic_path(paths[view]) as partial:
                partial.write_bytes(base64.b64decode(screenshot["data"]))
            print(paths[view])


if __name__ == "__main__":
    run_command(main, Options)

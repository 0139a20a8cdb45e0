"""A headless Chromium, where one is installed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

NEEDED = "needs Chromium and its driver: apt-get install chromium chromium-driver"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium(profile: Path, *options: str) -> Iterator[webdriver.Chrome]:
    """A browser with a new profile. Without Chromium the test is skipped, but fails in continuous integration."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NEEDED)
    chosen = webdriver.ChromeOptions()
    chosen.binary_location = browser
    for option in (*_OPTIONS, f"--user-data-dir={profile}", *options):
        chosen.add_argument(option)
    running = webdriver.Chrome(chosen, Service(driver))
    try:
        yield running
    finally:
        running.quit()

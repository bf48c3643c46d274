"""A headless Chromium for tests of reports; they are skipped where there is none."""

import shutil
import subprocess

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture
def browser(tmp_path):
    """Return a function from an HTML file to the text of its page as the browser built it, or to a
    screenshot."""
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.skip("no Chromium is installed")

    def look(path, screenshot=None, size=(800, 1000)):
        profile = tmp_path / "profile"
        task = (
            [f"--screenshot={screenshot}", f"--window-size={size[0]},{size[1]}"]
            if screenshot
            else ["--dump-dom"]
        )
        command = [binary, *FLAGS, f"--user-data-dir={profile}", *task, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return screenshot or done.stdout

    return look

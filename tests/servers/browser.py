"""A headless Chromium of the system's, for pages on disk. It is given no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium-headless-shell", "chromium")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, and end it with all its processes.

    :raises AssertionError: none is installed.
    """
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    assert program, "no Chromium: contrib/setup/browser FOLDER puts one into FOLDER/bin"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            # Root, as in a container, cannot have the sandbox; the pages are our own. Whatever
            # asks for a host is told that there is none.
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"],
        )
        try:
            yield browser
        finally:
            browser.close()

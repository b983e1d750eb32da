"""One Chromium for each module whose tests look at the report in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.inspect.report.opened import Opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The Chromium in the path, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium in the path")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens an address and, at the end, fails where the page complained or asked for anything but its own file."""
    with ExitStack() as stack:

        def open_page(
            address: str, *, width: int = 1440, height: int = 900, wait: bool = True, **options: Any
        ) -> Opened:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            stack.callback(context.close)
            opened = Opened(page=context.new_page(), address=address)
            stack.callback(opened.check)
            opened.load(wait=wait)
            return opened

        yield open_page

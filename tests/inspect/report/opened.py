"""A report that is open in the browser, with what it complained of and asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Milliseconds until something that does not come counts as missing.
PATIENCE = 10_000


@dataclass(kw_only=True)
class Opened:
    """`problems`: console messages and errors, whatever their level; `expected`: parts of those that a test causes."""

    page: Any
    address: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("requestfinished", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", self._failed)

    def load(self, *, wait: bool = True) -> None:
        self.page.goto(self.address)
        if wait:
            self.page.wait_for_selector("html[data-texts=read]")

    def _failed(self, request: Any) -> None:
        # What the policy stops has not left the page.
        if request.failure != "csp":
            self.requests.append(request.url)

    def check(self) -> None:
        """No complaint, and no request but for the file itself."""
        unexpected = [text for text in self.problems if not any(part in text for part in self.expected)]
        assert unexpected == []
        file = self.address.split("#")[0]
        assert [url for url in self.requests if url.split("#")[0] != file and not url.startswith("data:")] == []

    def show(self, number: int) -> None:
        """Open pair `number`, which must be in sight in the list."""
        self.page.click(f"#row-{number}")
        self.page.wait_for_selector(f".pair h2:text-is('Pair #{number}')")
        self.page.wait_for_selector(".side .t")

    def listed(self) -> list[int]:
        """The pairs found, in their order."""
        found: list[int] = self.page.evaluate("found")
        return found

    def values(self, side: int) -> list[float | None]:
        """The values shown for each token of the chosen (0) or rejected (1) answer; None for NaN."""
        script = "side => Array.from(pairView.answers[side].values, (value) => (Number.isNaN(value) ? null : value))"
        values: list[float | None] = self.page.evaluate(script, side)
        return values

    def tip(self, side: int, group: int) -> dict[str, str]:
        """The rows of the figures that pointing at a token shows."""
        self.page.mouse.move(0, 0)
        self.page.locator(".side").nth(side).locator(".t").nth(group).hover()
        self.page.wait_for_selector("#tip:not([hidden])")
        script = """() => Object.fromEntries([...document.querySelectorAll("#tip tbody tr")].map((row) =>
            [row.cells[0].textContent, [...row.cells].slice(1).map((cell) => cell.textContent).join(" ").trim()]))"""
        rows: dict[str, str] = self.page.evaluate(script)
        return rows

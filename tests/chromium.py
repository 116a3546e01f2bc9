"""A headless Chromium for tests, driven over the DevTools protocol through a pipe.

Nothing but the standard library: the browser reads commands from file descriptor 3 and writes
answers and events to 4, NUL after each message.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
START_S, ANSWER_S = 120, 60


def _names() -> tuple[str, ...]:
    named = os.environ.get("CHROMIUM")
    return (named,) if named else NAMES


def chromium_path() -> str | None:
    """``$CHROMIUM`` alone where it is set, else the first of :data:`NAMES` that is here."""
    return next((path for name in _names() if (path := shutil.which(name))), None)


def find_chromium() -> str:
    """The browser's path; skips the test, with the reason, where there is none."""
    found = chromium_path()
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(_names())} (`make browser` installs one)")
    return found


class Page:
    """One tab. ``events`` holds everything that the browser said unasked."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write, self._read = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        target = self.send("Target.createTarget", url="about:blank", seconds=START_S)
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, seconds: float = ANSWER_S, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has gone")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Loads ``url`` and waits until it is complete."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + ANSWER_S
        while self.evaluate("document.readyState") != "complete":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} does not load")
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def resize(
        self, width: int, height: int = 800, *, scale: float = 1, mobile: bool = False
    ) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def media(self, *, kind: str = "", dark: bool = False) -> None:
        """``kind`` is ``print`` or empty."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def press(self, key: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)

    def picture(self, *, whole: bool = False, **clip: float) -> bytes:
        """A PNG of what is seen, of the whole page, or of a part (x, y, width, height)."""
        more: dict[str, Any] = {"clip": {"scale": 1, **clip}} if clip else {}
        found = self.send(
            "Page.captureScreenshot", captureBeyondViewport=whole or bool(clip), **more
        )
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        found = self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(found["data"])

    def requests(self) -> list[str]:
        """Everything that the page asked a network, or a disk, for."""
        sent = (e for e in self.events if e.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        found = []
        for event in self.events:
            method, body = event.get("method"), event.get("params", {})
            if method == "Log.entryAdded" and body["entry"]["level"] in ("error", "warning"):
                found.append(body["entry"]["text"])
            elif method == "Runtime.exceptionThrown":
                found.append(body["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled" and body["type"] in ("error", "warning"):
                found.append(str(body["args"]))
        return found


@contextmanager
def open_page() -> Iterator[Page]:
    """A tab of a new browser with an empty profile."""
    browser = find_chromium()
    profile = tempfile.mkdtemp(prefix="rekd-edge-chromium-")
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    # Above 9, so that putting them at 3 and 4 cannot overwrite one of them.
    high = [fcntl.fcntl(handle, fcntl.F_DUPFD, 10) for handle in (theirs_read, theirs_write)]
    os.close(theirs_read)
    os.close(theirs_write)
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            f'exec "$@" 3<&{high[0]} 4>&{high[1]}',
            "chromium",
            browser,
            *SWITCHES,
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=high,
        start_new_session=True,
    )
    for handle in high:
        os.close(handle)
    page = Page(ours_write, ours_read)
    try:
        page.attach()
        yield page
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_write)
        os.close(ours_read)
        shutil.rmtree(profile, ignore_errors=True)

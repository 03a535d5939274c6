"""A real browser, driven by its DevTools protocol over a pipe: mouse, keys, screenshots, print."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
# Containers often have a /dev/shm that is too small for it.
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """One page of one browser: `with Browser(file) as page`."""

    def __init__(
        self, file: Path, width: int = 1200, height: int = 900, dark: bool = False, phone: bool = False
    ) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._start()
        self.count, self.session, self.buffer = 0, "", b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")
        self.resize(width, height, phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Network.enable")
        self.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        self.open(file)

    def _start(self) -> None:
        (read, its_output), (its_input, write) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_input, its_output)]  # clear of 3 and 4
        # The protocol is read from descriptor 3 and written to 4.
        command = f"{CHROMIUM} {' '.join(OPTIONS)} --user-data-dir={self.profile.name} --remote-debugging-pipe"
        script = f"exec {command} about:blank 3<&{ends[0]} 4>&{ends[1]} >/dev/null 2>&1"
        self.process = subprocess.Popen(["bash", "-c", script], pass_fds=ends)
        for end in (its_input, its_output, *ends):
            os.close(end)
        self.read, self.write = os.fdopen(read, "rb"), os.fdopen(write, "wb")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait()
        self.read.close()
        self.write.close()
        self.profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events before that are passed over."""
        answer = self._ask(method, parameters)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while (answer := self._next()).get("id") != self.count:
            pass
        return answer

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = self.read.read1(1 << 20)
            assert part, "the browser ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path) -> None:
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, and return its value."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 600) -> None:
        """Wait until an expression is true, over a change of the page."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self._ask("Runtime.evaluate", {"expression": f"Boolean({expression})", "returnByValue": True})
            if answer.get("result", {}).get("result", {}).get("value") is True:
                return
            time.sleep(0.1)
        raise AssertionError(f"never true: {expression}")

    def centre(self, element: str) -> tuple[float, float]:
        """Scroll an element, a JavaScript expression, into view, and return its centre."""
        return tuple(
            self.run(
                f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', inline: 'center'}});"
                "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
            )
        )

    def hover(self, element: str) -> None:
        x, y = self.centre(element)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, element: str) -> None:
        self.hover(element)
        x, y = self.centre(element)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def photograph(self, to: Path, whole: bool = False) -> Path:
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = size | {"x": 0, "y": 0, "scale": 1}
            shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        to.write_bytes(base64.b64decode(shot["data"]))
        return to

    def print(self, to: Path) -> Path:
        to.write_bytes(base64.b64decode(self.send("Page.printToPDF")["data"]))
        return to

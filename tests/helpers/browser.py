"""A page in headless Chromium, driven over the DevTools protocol on a pipe: no server, no driver, no port."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync
    --disable-component-update --disable-quic --hide-scrollbars --remote-debugging-pipe""".split()
PIPES = 'exec "$@" 3<&0 4>&1 >/dev/null 2>&1'  # Chromium reads commands on 3 and answers on 4


class Browser:
    """Chromium with one page, as a context manager. requests: URLs that the page requests; errors: its exceptions."""

    def __init__(self, profile: Path):
        command = ["sh", "-c", PIPES, "sh", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        environment, pipe = os.environ | {"HOME": str(profile)}, subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment)
        self._count, self._buffer, self._session, self.requests, self.errors = 0, b"", {}, [], []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, width: int = 1100, dark: bool = False) -> None:
        """Load a file in a window of this width (pixels), in the light or the dark colour scheme."""
        self.requests.clear()
        self.errors.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=path.absolute().as_uri())
        while self.js("document.readyState") != "complete":
            pass

    def call(self, method: str, **arguments: Any) -> dict:
        """The result of a DevTools command; asserts that it is no error."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments} | self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._next()).get("id") != self._count:
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self._buffer:
            part = self._process.stdout.read1()
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]["exception"]["description"]
        return result["result"].get("value")

    def press(self, key: str, code: int, **more: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown" if more else "rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

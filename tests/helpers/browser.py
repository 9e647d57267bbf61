"""Headless Chromium without a network, spoken to over two pipes by its DevTools protocol.

It runs in a network namespace of its own, in which there is nothing, not even loopback: a page that needs anything from
elsewhere fails here. Everything that it says on its console, every error and every request is kept.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--force-device-scale-factor=1", "--remote-debugging-pipe", "--window-size=1280,900",
]  # fmt: skip
INSTALL_SECONDS = 300
ANSWER_SECONDS = 60


def find_browser() -> str:
    """Chromium's program; installs Debian's where root may. Skips with the reason where there is none, fails in CI."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    reason = None
    if os.geteuid() != 0:
        reason = "a browser without a network needs root (namespaces)"
    elif subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        reason = "a browser without a network needs namespaces, which are forbidden here"
    elif found is None:
        reason = _install()
    if reason is not None and os.environ.get("CI"):
        pytest.fail(f"the test of reports must run in CI, but: {reason}")
    if reason is not None:
        pytest.skip(reason)
    return found or next(filter(None, map(shutil.which, NAMES)))


def _install() -> str | None:
    if shutil.which("apt-get") is None:
        return "chromium is missing, and there is no apt-get to install it"
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        try:
            done = subprocess.run(
                ["apt-get", *options, *command],
                env=env,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {command[0]} took more than {INSTALL_SECONDS} s"
        if done.returncode != 0:
            return f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return None


class Browser:
    """A browser with one page. Use as a context manager.

    Attributes:
        said: what the page wrote to its console, its errors, and what its policy forbade.
        requests: addresses of all that was asked for; data: is one, too.
    """

    def __init__(self, program: str):
        self.profile = tempfile.mkdtemp(prefix="browser-")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        pipes = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'  # the numbers that the browser expects
        line = ["unshare", "--net", "bash", "-c", pipes, "bash", program, *FLAGS, f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen(
            [*line, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._in, False)
        self._buffer, self._number, self._session = b"", 0, ""
        self.said: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()

    def __enter__(self) -> "Browser":
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        return self

    def __exit__(self, *exc: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something; returns the answer. Events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._keep(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            try:
                data = os.read(self._in, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
            except BlockingIOError:
                assert self.process.poll() is None, "the browser has ended"
                assert time.monotonic() < deadline, "the browser does not answer"
                time.sleep(0.01)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.said.append(f"console: {parameters['args']}")
        elif method == "Runtime.exceptionThrown":
            self.said.append(f"exception: {parameters['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.said.append(f"log: {parameters['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:100])
        elif method == "Page.lifecycleEvent" and parameters["name"] == "load":
            self._loaded.add(parameters["loaderId"])

    def open(self, path: Path) -> None:
        """Load a file and wait until it has."""
        loading = self.call("Page.navigate", url=path.as_uri())["loaderId"]
        while loading not in self._loaded:
            self._keep(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def change(self, selector: str, value: int, event: str) -> None:
        """Give a slider or a list another value, as a user would."""
        script = f"each.value = {value}; each.dispatchEvent(new Event('{event}'));"
        self.run(f"(() => {{ const each = document.querySelector('{selector}'); {script} }})()")

    def dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def move(self, x: float, y: float) -> None:
        """Move the pointer to a place of what is visible."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self) -> bytes:
        """PNG of the whole page."""
        done = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(done["data"])

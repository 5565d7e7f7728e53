"""A headless Chromium driven by its DevTools protocol over two pipes: no driver program, no further package."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--mute-audio", "--autoplay-policy=no-user-gesture-required", "--lang=en-US", "about:blank",
)  # fmt: skip


def chromium() -> str | None:
    """The browser's program; None where none is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A tab: what it shows, what it asked for over the network, and what its console was told."""

    def __init__(self, browser: "Browser", context: str, session: str) -> None:
        self._browser, self._context, self._session = browser, context, session
        self.console: list[str] = []
        """Errors and warnings."""
        self.requested: list[str] = []
        """Addresses."""

    def listen(self) -> None:
        """Have the browser tell what happens."""
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A method of the protocol."""
        return self._browser.call(method, params, self._session)

    def heard(self, event: dict[str, Any]) -> None:
        """Take an event of the protocol."""
        method, params = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))

    def run(self, script: str) -> Any:
        """The value of an expression, awaited. Raises AssertionError for one that throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + seconds
        while not self.run(f"(async () => Boolean(await ({script})))()"):
            if time.monotonic() > until:
                shown = self.run("document.body.innerText.slice(0, 1500)")
                raise AssertionError(f"not within {seconds} s: {script}\nconsole: {self.console}\npage: {shown}")
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Go to an address, and wait for the page to be ready."""
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready === 'yes'")

    def fill(self, selector: str, text: str) -> None:
        """Type a text into a field, in the place of what it holds."""
        place = json.dumps(selector)
        self.run(f"(() => {{ const one = document.querySelector({place}); one.focus(); one.select?.(); }})()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        place, wanted = json.dumps(selector), json.dumps(value)
        self.run(
            f"(() => {{ const one = document.querySelector({place}); one.value = {wanted}; "
            "one.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def click(self, selector: str) -> None:
        """Click what a selector finds first."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            codes = {"Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        names = [str(one) for one in files]
        self.call("DOM.setFileInputFiles", files=names, objectId=found["result"]["objectId"])

    def resize(self, width: int, height: int) -> None:
        """Show it on a screen of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def permit(self, what: str, setting: str) -> None:
        """Grant ("granted") or deny ("denied") a permission, such as `microphone`."""
        self._browser.call(
            "Browser.setPermission",
            {"permission": {"name": what}, "setting": setting, "browserContextId": self._context},
        )

    def save_downloads(self, folder: Path) -> None:
        """Save what is downloaded from now on in a folder."""
        options = {"behavior": "allow", "downloadPath": str(folder), "browserContextId": self._context}
        self._browser.call("Browser.setDownloadBehavior", options)

    def close(self) -> None:
        """End the tab, with all that it stored."""
        self._browser.call("Target.disposeBrowserContext", {"browserContextId": self._context})

    def dark(self, on: bool) -> None:
        """Whether the reader prefers dark colours."""
        value = "dark" if on else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


class Browser:
    """A Chromium of our own, with a profile that is thrown away."""

    def __init__(self, program: str, profile: Path, arguments: Sequence[str] = ()) -> None:
        ours_out, theirs_in = os.pipe()[::-1]
        ours_in, theirs_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4; the shell moves ours there.
        script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        command = ["bash", "-c", script, "browser", program, *_ARGUMENTS[:-1], *arguments, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [*command, _ARGUMENTS[-1]], pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=os.environ | {"HOME": str(profile)},
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb", 0)
        self._numbers, self._answers = itertools.count(1), dict[int, dict[str, Any]]()
        self._pages: dict[str, Page] = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """A method of the protocol. Raises AssertionError where it fails or takes a minute."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._out.write(json.dumps(message).encode() + b"\0")
        with self._arrived:
            came = self._arrived.wait_for(lambda: number in self._answers, 60)
            assert came, f"the browser did not answer {method}"
            answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return dict(answer["result"])

    def page(self) -> Page:
        """A new tab with storage and permissions of its own."""
        context = self.call("Target.createBrowserContext", {})["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._pages[session] = page = Page(self, context, session)
        page.listen()
        return page

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)

    def _read(self) -> None:
        held = b""
        while data := self._in.read(65536):
            *messages, held = (held + data).split(b"\0")
            for one in messages:
                found = json.loads(one)
                if "id" in found:
                    with self._arrived:
                        self._answers[found["id"]] = found
                        self._arrived.notify_all()
                elif (page := self._pages.get(found.get("sessionId", ""))) is not None:
                    page.heard(found)


@contextmanager
def open_browser(*arguments: str) -> Iterator[Browser]:
    """The installed Chromium, closed at the end with its profile."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, Path(profile), arguments)
        try:
            yield browser
        finally:
            browser.close()

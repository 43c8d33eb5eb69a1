"""MLflow's server with pages of ours before it, on the same address: what `python -m search.ui` runs.

`/pare` is a start page with the newest front's picture and a link per study, `/pare/reports/...` the written reports.
MLflow's own page is served as it is, with a style and a script of ours in its head: its chat panel, which covers the
charts at the first visit, stays closed; the front's picture among the charts is shown as wide as its card and not as a
small preview; a run's description that begins with our picture is opened in full, once per page. This is the only file
that knows how MLflow's server is told its store, and those names of its page, all of MLflow 3.17; a browser test holds
them.
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]

ROOT, STORE = "PARE_UI_ROOT", "PARE_UI_STORE"
START, REPORTS = "/pare", "/pare/reports/"
PAGE = "ui.html"  # below root: what START shows
_IN_HEAD = b"""<style>
[data-testid='experiment-view-compare-runs-card']:has(img.pare-front) {position: relative}
.rc-image:has(img.pare-front) {position: absolute; inset: 44px 8px 52px; width: auto; height: auto; background: #fff}
img.pare-front {width: 100%; height: 100%; object-fit: contain}
</style><script>
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
let opened = '';
new MutationObserver(() => {
  for (const image of document.querySelectorAll("img[src*='images%2Ffront%2B'][src*='%2Bcompressed.webp']")) {
    image.classList.add('pare-front');
    image.src = image.src.replace('%2Bcompressed.webp', '.png');
  }
  const more = document.querySelector("[data-component-id$='.show_comment_text_toggle']");
  if (!more || opened === location.hash || !more.parentElement.querySelector("img[src*='_small.png']")) return;
  opened = location.hash;
  more.click();
}).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ['src']});
</script>"""
_HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-cache"}


def environment(root: Path, store: str) -> dict[str, str]:
    """The variables that `made` and MLflow's server read."""
    artifacts = (root.resolve() / "artifacts").as_uri()
    return {
        ROOT: str(root.resolve()),
        STORE: store,
        "_MLFLOW_SERVER_FILE_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def made() -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The application, for uvicorn."""
    from mlflow.server.fastapi_app import app

    root = Path(os.environ[ROOT])

    async def site(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path.rstrip("/") == START:
            await _file(root / PAGE, send)
        elif path.startswith(REPORTS):
            await _file(_below(root / "reports", unquote(path.removeprefix(REPORTS))), send)
        elif path == "/":
            await app(scope, receive, _with_ours(send))
        else:
            await app(scope, receive, send)

    return site


def _below(folder: Path, name: str) -> Path | None:
    """The file of that name below the folder; None where it is not there, or elsewhere."""
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else None


async def _file(file: Path | None, send: Send) -> None:
    found = file is not None and file.is_file()
    body = file.read_bytes() if file is not None and found else b"not found"
    kind = (mimetypes.guess_type(file.name)[0] if file is not None and found else None) or "text/plain"
    headers = {"content-type": kind, "content-length": str(len(body)), **_HEADERS}
    pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": 200 if found else 404, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _with_ours(send: Send) -> Send:
    """Sends MLflow's page with our lines in its head."""
    start: Scope = {}
    parts: list[bytes] = []

    async def changed(message: Scope) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = b"".join(parts).replace(b"<head>", b"<head>" + _IN_HEAD, 1)
        kept = [(k, v) for k, v in start["headers"] if k.lower() not in (b"content-length", b"etag", b"last-modified")]
        await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await send({**message, "body": body})

    return changed

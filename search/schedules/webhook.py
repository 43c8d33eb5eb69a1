"""A JSON posted to a webhook. Its address may hold a secret: only its host is ever shown."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from search.schedules.recurring import Webhook


def address(hook: Webhook) -> str:
    """Where it posts to; raises ValueError when the environment variable it names is not set."""
    if hook.url_env is None:
        return str(hook.url)
    url = os.environ.get(hook.url_env, "")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"webhook.url_env: {hook.url_env} is not set to an http:// or https:// address")
    return url


def post(hook: Webhook, body: Mapping[str, Any], pause: float = 1.0) -> str:
    """Post it, as often as the webhook says; returns what became of it. Waits `pause` s, doubled every time."""
    try:
        url = address(hook)
    except ValueError as error:
        return f"not sent: {error}"
    data = json.dumps(body, allow_nan=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", "User-Agent": "pare"})
    said = ""
    for attempt in range(1 + hook.retries):
        if attempt:
            time.sleep(min(pause * 2 ** (attempt - 1), 60))
        said, again = _once(request, hook.timeout)
        if not again:
            break
    times = f" after {attempt + 1} attempts" if attempt else ""
    return f"{said}{times} ({urllib.parse.urlsplit(url).hostname})"


def _once(request: urllib.request.Request, timeout: float) -> tuple[str, bool]:
    """(what became of it, whether another attempt may help). Messages of errors are left out: they hold addresses."""
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return "delivered", False
    except urllib.error.HTTPError as error:
        error.close()
        return f"refused with HTTP {error.code}", error.code == 429 or error.code >= 500
    except TimeoutError:
        return f"not delivered: no answer within {timeout:g} s", True
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            return f"not delivered: no answer within {timeout:g} s", True
        return f"not delivered: {getattr(error.reason, 'strerror', None) or 'no connection'}", True
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"not delivered: {type(error).__name__}", True

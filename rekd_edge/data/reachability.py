"""Whether the Hugging Face hub can be reached: asked once, answered within three seconds."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse
import urllib.request
from functools import lru_cache

from rekd_edge.data.storage import OFFLINE_VARIABLE, is_offline

CONNECT_SECONDS = 3.0


def hub_obstacle() -> str | None:
    """Why the hub cannot be used, or None if it answers.

    ``REKD_EDGE_OFFLINE`` and ``HF_HUB_OFFLINE`` are respected. The connection is tried once per
    process, in a thread of its own since name resolution knows no time limit.
    """
    if is_offline():
        return f"{OFFLINE_VARIABLE} is set"
    if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}:
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub.constants import ENDPOINT

    return _connect_obstacle(ENDPOINT)


@lru_cache(maxsize=8)
def _connect_obstacle(endpoint: str) -> str | None:
    target = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        # Through a proxy, only the proxy can be asked whether it answers.
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    result: list[str | None] = []

    def connect() -> None:
        try:
            with socket.create_connection((target.hostname or "", port), CONNECT_SECONDS):
                result.append(None)
        except OSError as error:
            result.append(f"{target.hostname} cannot be reached ({error.strerror or error})")

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return result[0] if result else f"{target.hostname} did not answer in {CONNECT_SECONDS:.0f} s"

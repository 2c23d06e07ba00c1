"""Sources beside a source on http, which tell a file that is gone from a server that has lost them all."""

from __future__ import annotations

import threading
from collections import deque

from latentcache.storage.parts import file_of
from latentcache.storage.urls import is_http

#: Sources that are remembered, of one host and of all. Of dead links, so many in a row are rare.
NUM_REMEMBERED = 8
NUM_HOSTS = 1000


class Neighbours:
    """The sources that were asked for last, by host. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_host: dict[str, deque[str]] = {}
        self._latest: deque[str] = deque(maxlen=NUM_REMEMBERED)

    def add(self, url: str) -> None:
        """Remember a source, if it is on http: elsewhere folders are asked."""
        url = file_of(url)
        if not is_http(url):
            return
        with self._lock:
            host = _host(url)
            known = self._by_host.pop(host, None) or deque(maxlen=NUM_REMEMBERED)
            self._by_host[host] = known
            for remembered in (known, self._latest):
                if url not in remembered:
                    remembered.append(url)
            if len(self._by_host) > NUM_HOSTS:
                del self._by_host[next(iter(self._by_host))]

    def of(self, url: str) -> list[str]:
        """Return other sources, those of the same host first; none where they are not on http."""
        url = file_of(url)
        if not is_http(url):
            return []
        with self._lock:
            known = [*self._by_host.get(_host(url), ()), *self._latest]
        return [other for other in dict.fromkeys(known) if other != url][:NUM_REMEMBERED]


def _host(url: str) -> str:
    """Return the server of a URL: what is none raises no error here."""
    return url.partition("://")[2].partition("/")[0]

"""A crawler of a site, where each page is fetched once: ``unique``, and items that come of results.

    python examples/crawler.py

The site is local, and counts its requests. Pages link to each other in circles. Two crawlers start at
different pages at the same time. A page that both find is one job with two callers while it runs, because its
address is its key (``unique``), and ``reuse`` answers from the kept result afterwards. So the site sees every
page once, though both crawlers have seen them all.
"""

import asyncio
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.request import urlopen

from gearflow import JobServer, connect, task
from gearflow.worker import Worker

PAGES = 40


class Site(BaseHTTPRequestHandler):
    """Page n links to the pages 2n + 1, 2n + 2 and n // 2, as far as there are so many."""

    requests: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        """Answer with the links of a page."""
        Site.requests[self.path] += 1
        number = int(self.path.strip("/"))
        links = {2 * number + 1, 2 * number + 2, number // 2}
        text = "".join(f'<a href="/{link}">' for link in sorted(links) if link < PAGES)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the standard library's)
        """Print nothing."""


@task(unique=True, timeout=30)
def links_of(url: str) -> list[str]:
    """The addresses to which a page links."""
    with urlopen(url) as page:
        paths: list[str] = re.findall(r'href="(/\d+)"', page.read().decode())
    return [f"{url.rpartition('/')[0]}{path}" for path in paths]


FETCH_ONCE = links_of.options(keep=60, reuse=True)  # a kept result is the answer for a minute


class Crawler:
    """Crawls from one page on. Owns the pages that it has seen."""

    def __init__(self, start: str) -> None:
        self.seen = {start}
        self._found: asyncio.Queue[str | None] = asyncio.Queue()
        self._found.put_nowait(start)

    async def crawl(self) -> None:
        """Fetch all pages that can be reached."""
        waiting = 1
        async for links in FETCH_ONCE.amap(self._pages(), ordered=False):
            for link in set(links) - self.seen:
                self.seen.add(link)
                self._found.put_nowait(link)
                waiting += 1
            waiting -= 1
            if not waiting:
                self._found.put_nowait(None)

    async def _pages(self) -> AsyncIterator[str]:
        while (page := await self._found.get()) is not None:
            yield page


async def main(site: str) -> None:
    """Crawl the site twice at the same time."""
    crawlers = [Crawler(f"{site}/0"), Crawler(f"{site}/{PAGES - 1}")]
    async with (
        JobServer(port=0) as server,
        connect(server.address),
        Worker([links_of], servers=[server.address]),
    ):
        await asyncio.gather(*(crawler.crawl() for crawler in crawlers))
    for crawler in crawlers:
        print(f"a crawler has seen {len(crawler.seen)} of {PAGES} pages")
    print(
        f"the site was asked for {len(Site.requests)} pages, at most {max(Site.requests.values())} time each"
    )


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            asyncio.run(main(f"http://127.0.0.1:{http.server_port}"))
        finally:
            http.shutdown()

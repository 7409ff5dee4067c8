"""A web server of this process, which serves one file as RecBole's does, or as badly as it is told."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What is served at `url`, and how; what was asked for, and how many bytes went out."""

    content: bytes
    url: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: bool = True  # whether it begins in the middle
    status: int | None = None  # of every answer, which is an error then
    length: bool = True  # whether it is told
    cuts: list[int] = field(default_factory=list)  # bytes after which an answer ends, the next one's first
    pause: int | None = None  # bytes after which an answer waits, while this is not None
    ranges_asked: list[str | None] = field(default_factory=list)
    sent: int = 0


@contextmanager
def serving(content: bytes, name: str = "Amazon_Video_Games.zip") -> Iterator[Served]:
    """Within the block `content` is served as `name`; what is changed of the `Served` counts from the next request on."""
    served = Served(content)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.start()

        def do_GET(self) -> None:
            served.ranges_asked.append(self.headers.get("Range"))
            first = self.start()
            if first is not None:
                body = served.content[first:]
                body = body[: served.cuts.pop(0)] if served.cuts else body
                served.sent += len(body)
                pause = len(body) if served.pause is None else served.pause
                self.wfile.write(body[:pause])
                while served.pause is not None:
                    time.sleep(0.01)
                self.wfile.write(body[pause:])

        def start(self) -> int | None:
            """Answer with headers; gives the first byte that is to follow."""
            if served.status:
                self.send_error(served.status)
                return None
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range") in (None, *served.headers.values())
            first = int(asked[1]) if asked and served.ranges and same else 0
            whole = len(served.content)
            self.send_response(206 if first else 200)
            headers = {**served.headers, **({"Content-Length": str(whole - first)} if served.length else {})}
            for key, value in (headers | ({"Content-Range": f"bytes {first}-{whole - 1}/{whole}"} if first else {})).items():
                self.send_header(key, value)
            self.end_headers()
            return first

        def log_message(self, *argv: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *argv: None  # a client that was killed
    served.url = f"http://127.0.0.1:{server.server_port}/{name}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()

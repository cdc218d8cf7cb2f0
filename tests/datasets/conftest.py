"""A cache folder of its own for each test, small registered files, and a server on this machine that can misbehave."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """Serves `files` by path, counts `requests`, and sends only a part of the paths in `halves` or waits `delay` seconds."""

    def __init__(self):
        self.files, self.requests, self.halves, self.delay = {}, [], set(), 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                threading.Event().wait(outer.delay)
                if self.path not in outer.halves:
                    self.wfile.write(data[len(data) // 2 :])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, reached without any proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one = Server()
    yield one
    one.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache folder of the test, which does not exist yet; no mirror."""
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("NATGRAD_DATA_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def register(monkeypatch, folder):
    """Take bytes for what is registered under a key; with `put`, also have them in the cache folder."""
    from natgrad_lab.datasets import FILES, RemoteFile

    def register(key, data, urls=(), note="", put=False):
        monkeypatch.setitem(FILES, key, RemoteFile(hashlib.sha256(data).hexdigest(), len(data), tuple(urls), note))
        if put:
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(data)

    return register

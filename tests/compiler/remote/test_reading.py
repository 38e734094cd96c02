"""Files below a URL: in memory, in an archive, on servers that list folders or do not, or ask who it is."""

from __future__ import annotations

import base64
import functools
import http.server
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

from qcompile.compiler.ir.errors import RemoteError
from qcompile.compiler.remote.reading import RemoteFile, find_files

FILES = {
    "a.qc/manifest.json": b"a", "deep/er/b.qc/manifest.json": b"b", "with a space/manifest.json": b"c",
    "deep/er/b.qc/inside/manifest.json": b"x", ".a.qc.tmp/manifest.json": b"half", "other.json": b"y",
}  # fmt: skip
EXPECTED = [(("a.qc",), b"a"), (("deep", "er", "b.qc"), b"b"), (("with a space",), b"c")]


def found(url: str, most: int = 100) -> list[tuple[tuple[str, ...], bytes]]:
    return [(file.folders, file.content) for file in find_files(url, "manifest.json", most)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(content)
    return tmp_path / "root"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; answers 403 for lists of folders, 401 without the password, 500 without the token."""

    lists, password, token = True, "", ""
    methods: list[str]

    def send_head(self):  # type: ignore[no-untyped-def]
        self.methods.append(self.command)
        given = self.headers.get("Authorization", "")
        if self.password and given != f"Basic {base64.b64encode(self.password.encode()).decode()}":
            return self.send_error(401)
        if self.token and urlsplit(self.path).query != self.token:
            return self.send_error(500)
        return super().send_head()

    def list_directory(self, path):  # type: ignore[no-untyped-def]
        return super().list_directory(path) if self.lists else self.send_error(403)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., tuple[str, type[Handler]]]]:
    """Serve the folder on this machine; return the host and the handler."""
    pytest.importorskip("aiohttp")
    servers = []

    def start(**options: object) -> tuple[str, type[Handler]]:
        kind = type("Options", (Handler,), {**options, "methods": []})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(kind, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}", kind

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_in_memory() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/reading/{name}": content for name, content in FILES.items()})
    assert found("memory://reading") == found("memory://reading/") == EXPECTED
    assert found("memory://reading/a.qc") == [((), b"a")]
    memory.rm("/reading", recursive=True)


def test_in_an_archive(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "release.zip", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert found(f"zip://::file://{tmp_path}/release.zip") == EXPECTED
    assert found(f"zip://deep::file://{tmp_path}/release.zip") == [(("er", "b.qc"), b"b")]


def test_on_a_server_that_lists_folders(serve: Callable[..., tuple[str, type[Handler]]]) -> None:
    host, handler = serve()
    quoted = [(tuple(f.replace(" ", "%20") for f in folders), data) for folders, data in EXPECTED]
    assert found(f"http://{host}") == found(f"http://{host}/") == quoted
    assert set(handler.methods) <= {"GET", "HEAD"}


def test_a_bundle_on_a_server_that_lists_none(
    serve: Callable[..., tuple[str, type[Handler]]],
) -> None:
    host, _ = serve(lists=False)
    assert found(f"http://{host}/a.qc") == [((), b"a")]
    with pytest.raises(RemoteError, match=r"/deep cannot be read: the server answered 403; check"):
        found(f"http://{host}/deep")


def test_secrets_are_sent_and_not_shown(serve: Callable[..., tuple[str, type[Handler]]]) -> None:
    host, _ = serve(password="me:s3cret", token="sig=t0ken")
    (file,) = find_files(f"http://me:s3cret@{host}/a.qc?sig=t0ken", "manifest.json", 9)
    assert file == RemoteFile((), f"http://***@{host}/a.qc/manifest.json", b"a")
    assert found(f"http://me:s3cret@{host}?sig=t0ken")[0] == (("a.qc",), b"a")
    for wrong, status in (("me:wr0ng", 401), ("me:s3cret", 500)):
        with pytest.raises(RemoteError, match=f"the server answered {status}") as caught:
            find_files(f"http://{wrong}@{host}/a.qc?sig=0ther", "manifest.json", 9)
        assert str(caught.value).startswith(f"http://***@{host}/a.qc cannot be read: ")
        assert not {"wr0ng", "s3cret", "0ther"} & set(str(caught.value).replace("=", " ").split())
        assert caught.value.__suppress_context__


def test_where_nothing_answers() -> None:
    pytest.importorskip("aiohttp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        RemoteError, match="cannot be read: it cannot be reached; check the address"
    ):
        found(f"http://u:secret@127.0.0.1:{port}/x")


def test_what_is_too_large(serve: Callable[..., tuple[str, type[Handler]]], folder: Path) -> None:
    host, _ = serve()
    (folder / "a.qc" / "manifest.json").write_bytes(bytes(3 << 20))
    with pytest.raises(RemoteError, match=r"/a\.qc/manifest\.json is larger than 1 MiB"):
        found(f"http://{host}/a.qc", most=1 << 20)

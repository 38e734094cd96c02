"""URLs: what is printed of them holds no secret, and what fsspec does not know is refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import MissingPackageError, RemoteError
from qcompile.compiler.remote.urls import filesystem, is_url, local_path, redacted

SECRETS = st.text("abcXYZ019@/:?#&=%+.-_ ", min_size=6, max_size=12)
PLACES = st.sampled_from([
    "https://{}@host.net/x", "https://user:{}@host.net/x", "s3://{}:k@bucket/x", "zip://b::http://{}@host.net/x.zip",
    "https://host.net/x?sig={}", "https://host.net/x?{}", "https://host.net/x?n=1&token={}#top", "gs://bucket/x#{}",
    "simplecache::https://u@host.net/x?{}", "quux://{}@host.net", "//{}@host.net/x", "https:/u:{}@host.net",
])  # fmt: skip


@given(PLACES, SECRETS)
def test_no_part_of_a_secret_is_shown(place: str, secret: str) -> None:
    shown = redacted(place.format(secret))
    elsewhere = place.replace("{}", "")
    parts = {secret[k : k + 4] for k in range(len(secret) - 3)}
    assert [part for part in parts if part in shown and part not in elsewhere] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host.net/a/b.qc", "https://host.net/a/b.qc"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("file:///tmp/a", "file:///tmp/a"),
        ("https://me:pass@host.net/a", "https://***@host.net/a"),
        ("https://token@host.net/a?x=1", "https://***@host.net/a?***"),
        ("https://host.net/a?sig=x#y", "https://host.net/a?***"),
        ("https://host.net/a?mail=a@b", "https://***"),
        ("zip://a::https://u:p@host.net/x.zip", "zip://***@host.net/x.zip"),
        ("a/folder", "a/folder"),
    ],
)
def test_the_rest_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert redacted(shown) == shown


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://b/c", "zip://::file:///x", "simplecache::memory://x", "a://b")))
    assert not any(map(is_url, ("a/b", "/a", "C:\\a", "release-1:2")))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("htps://u:secret@h/x?secret",
         "htps://***@h/x?*** has the scheme 'htps', which fsspec does not know; did you mean https?"),
        ("quux://h", "quux://h has the scheme 'quux', which fsspec does not know; give one of file, gs, "),
        ("://secret@x", "://***@x has no scheme, which fsspec does not know; give one of"),
        ("quux::https://h/x", "quux::https://h/x has the scheme 'quux', which"),
        ("zip://a.qc::quux://h", "zip://a.qc::quux://h has the scheme 'quux', which"),
    ],
)  # fmt: skip
def test_unknown_schemes(url: str, said: str) -> None:
    with pytest.raises(RemoteError) as caught:
        filesystem(url)
    assert str(caught.value).startswith(said)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("aiohttp", "fsspec.implementations.http", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=r"run: pip install 'qcompile\[remote\]'"):
        filesystem("https://secret@h/x")
    with pytest.raises(
        RemoteError, match=r"URLs of s3 need a package .*: Install s3fs to access S3"
    ):
        filesystem("s3://key:secret@bucket/x")


def test_a_url_that_says_too_little_has_no_traceback_with_it() -> None:
    with pytest.raises(RemoteError, match=r"^zip://\*\*\*@x cannot be used: there is ") as caught:
        filesystem("zip://::memory://secret@x")
    assert caught.value.__suppress_context__


def test_paths_of_files() -> None:
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("memory://a/b") is None

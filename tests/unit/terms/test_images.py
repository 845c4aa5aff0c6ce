"""Names of images: what users write and what demands carry."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.images import (
    BadImage,
    BundleImage,
    GvmiImage,
    RegistryImage,
    is_digest,
    parse_package,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
NODE = "0x" + "ab" * 20


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("python", "", "library/python", "latest", ""),
        ("python:3.12", "", "library/python", "3.12", ""),
        (" python:3.12\n", "", "library/python", "3.12", ""),
        ("owner/name", "", "owner/name", "latest", ""),
        (f"owner/name@sha256:{HEX}", "", "owner/name", "", f"sha256:{HEX}"),
        (f"registry.example/x/y:1@sha256:{HEX}", "registry.example", "x/y", "1", f"sha256:{HEX}"),
        ("localhost/x", "localhost", "x", "latest", ""),
        ("localhost:5000/x:2", "localhost:5000", "x", "2", ""),
        ("127.0.0.1:5000/deep/er/est", "127.0.0.1:5000", "deep/er/est", "latest", ""),
        ("[::1]:5000/x", "[::1]:5000", "x", "latest", ""),
        ("Registry/x", "Registry", "x", "latest", ""),
        ("a__b/c-d.e_f", "", "a__b/c-d.e_f", "latest", ""),
    ],
)
def test_references_as_docker_reads_them(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == RegistryImage(host=host, repository=repository, tag=tag, digest=digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Python",
        "python:",
        "python:-x",
        "python:" + "t" * 129,
        "python@sha256:abc",
        "python@sha512:" + "0" * 128,
        f"python@sha256:{HEX.upper()}",
        "a//b",
        "/abs/path",
        "./image.tar",
        "../image.tar",
        "a/b/",
        "host.io:99999/x",
        "host.io:0/x",
        "ho_st.io/x",
        "x y",
        "a/../b",
        "a.io/%2e%2e/b",
        "a.io/b?c",
        "a.io/b#c",
        "user@host.io/x",
        "x" * 3000,
        "a" * 300,
        "-a",
        "a-",
        "a\x00b",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(BadImage) as raised:
        parse_reference(text)
    assert raised.value.code == "bad_image"
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("oci:docker://registry.example/x/y:1", RegistryImage(host="registry.example", repository="x/y", tag="1")),
        ("oci:docker:///library/python:3.12", RegistryImage(repository="library/python", tag="3.12")),
        (
            f"oci:docker://h:5000/x:t@sha256:{HEX}",
            RegistryImage(host="h:5000", repository="x", tag="t", digest=f"sha256:{HEX}"),
        ),
        (f"oci:sha256:{HEX}:gftp://{NODE}/{HEX}", BundleImage(digest=f"sha256:{HEX}", url=f"gftp://{NODE}/{HEX}")),
        (f"hash:sha3:{HEX[:56]}:http://h/x.gvmi", GvmiImage(sha3=HEX[:56], url="http://h/x.gvmi")),
    ],
)
def test_packages_there_and_back(text: str, value: RegistryImage | BundleImage | GvmiImage) -> None:
    assert parse_package(text) == value
    assert value.package == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "python:3.12",
        "oci:",
        "oci:docker://",
        "oci:docker://host",
        "oci:docker://host/x",
        "oci:docker://ho st/x:1",
        "oci:docker://host/../x:1",
        f"oci:sha256:{HEX}",
        f"oci:sha256:{HEX}:http://h/x",
        f"oci:sha256:{HEX[:-1]}:gftp://{NODE}/{HEX}",
        f"oci:sha256:{HEX}:gftp://{NODE}/../x",
        f"oci:sha512:{HEX}:gftp://{NODE}/{HEX}",
        "hash:sha3:abc:http://h/x",
        f"hash:sha3:{HEX}",
        f"hash:sha3:{HEX[:56]}:file:///etc/passwd",
        f"hash:sha3:{HEX[:56]}:" + "http://h/" + "x" * 3000,
    ],
)
def test_what_is_no_package(text: str) -> None:
    with pytest.raises(BadImage):
        parse_package(text)


def test_names_for_people() -> None:
    assert parse_reference("python").short == "python:latest"
    assert parse_reference("registry.example/x/y:1").short == "registry.example/x/y:1"


def test_digest_decides() -> None:
    assert parse_reference(f"x:tag@sha256:{HEX}").reference == f"sha256:{HEX}"
    assert parse_reference("x:tag").reference == "tag"


def test_only_sha256_is_a_digest() -> None:
    assert is_digest(f"sha256:{HEX}")
    assert not is_digest(f"sha512:{HEX}{HEX}")
    assert not is_digest(f"sha256:{HEX}\n")


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_reference, parse_package):
        try:
            image = parse(text)
        except BadImage:
            continue
        # What is accepted is safe to put into a URL or a path as it is, and survives the way through a demand.
        assert re.fullmatch(r"[\x21-\x7e]+", image.package)
        assert ".." not in image.package.split("://")[1].split("@")[0].split("/")
        assert parse_package(image.package) == image

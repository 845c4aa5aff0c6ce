"""Errors keep their family across the network; everything else stays at home."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shem import errors
from shem.cogs.decoding import DECODE_ERRORS
from shem.node.peer.remote_errors import INTERNAL, PeerRefused, pack_error, unpack_error

FAMILIES = [
    errors.Refused,
    errors.NotAllowed,
    errors.NotFound,
    errors.Conflict,
    errors.Gone,
    errors.PeerFailed,
    errors.MoneyShort,
    errors.WorkFailed,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_arrive(family: type[errors.ShemError]) -> None:
    class Leaf(family):  # type: ignore[valid-type, misc]
        default_code = "leaf"

    told = pack_error(Leaf("it is so", hint="do this"))
    assert told is not None
    rebuilt = unpack_error(told)
    assert isinstance(rebuilt, family)
    assert isinstance(rebuilt, PeerRefused)
    assert isinstance(rebuilt, errors.PeerFailed)
    assert (rebuilt.code, rebuilt.message, rebuilt.hint) == ("leaf", "it is so", "do this")


def test_not_authenticated_arrives_as_not_allowed() -> None:
    told = pack_error(errors.NotAuthenticated("who are you"))
    assert told is not None
    assert isinstance(unpack_error(told), errors.NotAllowed)


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), errors.Misconfigured("secret path")])
def test_faults_are_not_told(error: Exception) -> None:
    assert pack_error(error) is None
    assert unpack_error(INTERNAL).code == "internal"


def test_running_out_of_time_is_told() -> None:
    told = pack_error(TimeoutError("secret"))
    assert told is not None
    assert unpack_error(told).code == "timeout"
    assert b"secret" not in told


def test_a_peers_words_are_tamed() -> None:
    told = msgspec.msgpack.encode(["refused", "c" * 500, "\x1b[31mred\n" + "m" * 5000, "\x07"])
    rebuilt = unpack_error(told)
    assert rebuilt.message.isprintable()
    assert len(rebuilt.message) == 1000
    assert len(rebuilt.code) == 100
    assert isinstance(unpack_error(msgspec.msgpack.encode(["who knows", "x", "y", ""])), PeerRefused)


@given(st.binary(max_size=100))
@example(b"\x94\xa1\xff\xa1x\xa1y\xa1z")
@example(b"\x91" * 5000)
def test_garbage_is_seen(garbage: bytes) -> None:
    try:
        assert isinstance(unpack_error(garbage), PeerRefused)
    except DECODE_ERRORS:
        pass

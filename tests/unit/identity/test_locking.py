"""An identity without its key: still known by its name, and unable to sign."""

from __future__ import annotations

import asyncio
import io
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from shem.errors import KeyLocked, Misconfigured
from shem.node.db import Database
from shem.node.identity.appkeys import AppKeys
from shem.node.identity.keyring import Keyring, PassphraseRefused
from shem.node.identity.keys import BINDING_LIFE_S, Identity
from shem.node.identity.keystore import PASSPHRASE, OtherIdentity, WrongPassphrase, new_secret
from shem.node.identity.presence import PRESENCE, Presence, read_presence, write_presence
from shem.node.identity.sealing import Sealer
from shem.node.peer.records import read_record, sign_record

NOW = datetime.now(UTC)
WORDS = "correct horse battery"


def signing(identity: Identity) -> dict[str, Callable[[], object]]:
    return {
        "a document": lambda: identity.sign("p", b"x"),
        "a digest": lambda: identity.sign_digest(bytes(32)),
        "a file": lambda: identity.sign_file(io.BufferedReader(io.BytesIO(b"x"))),  # type: ignore[arg-type]
        "a secret": lambda: identity.derive("something"),
        "the public key": lambda: identity.public_key,
    }


def test_a_locked_identity_signs_nothing_until_its_key_comes_back() -> None:
    secret = new_secret()
    alice = Identity(secret)
    binding, told = alice.make_binding(NOW), list[str]()
    alice.on_unlocked(lambda: told.append("unlocked"))
    alice.unlock(secret)
    assert told == [], "it was not locked"
    alice.lock()
    assert alice.locked
    for what, ask in signing(alice).items():
        with pytest.raises(KeyLocked) as locked:
            ask()
        assert locked.value.code == "identity_locked", what
        assert secret.hex() not in str(locked.value)
    assert alice.make_binding(NOW + timedelta(days=1)) == binding, "the last one, which is good for long"
    assert alice.check_binding(binding, NOW).node_id == alice.node_id
    with pytest.raises(OtherIdentity):
        alice.unlock(new_secret())
    assert alice.locked
    alice.unlock(secret)
    for ask in signing(alice).values():
        ask()
    assert told == ["unlocked"]


def test_a_key_with_its_owners_passphrase_can_start_locked(tmp_path: Path) -> None:
    alice = Identity.open_or_create(tmp_path, WORDS)
    with pytest.raises(WrongPassphrase, match="needs your passphrase"):
        Identity.open_locked(tmp_path)
    binding = alice.make_binding(NOW)
    alice.keep_record(msgspec.msgpack.encode(sign_record(alice, ["127.0.0.1:1"], 7)))

    locked = Identity.open_locked(tmp_path)
    assert locked.locked
    assert (locked.node_id, locked.transport_id) == (alice.node_id, alice.transport_id)
    assert locked.transport_seed == alice.transport_seed
    assert locked.make_binding(NOW) == binding
    assert locked.kept_record() == alice.kept_record() != b""
    assert stat.S_IMODE((tmp_path / PRESENCE).stat().st_mode) == 0o600
    assert alice.transport_seed not in repr(read_presence(tmp_path, alice.node_id, NOW.timestamp())).encode()


def test_a_key_that_opens_by_itself_leaves_nothing_more_about(tmp_path: Path) -> None:
    Identity.open_or_create(tmp_path).make_binding(NOW)
    assert not (tmp_path / PRESENCE).exists()


def test_what_was_kept_for_another_identity_or_too_long_is_worth_nothing(tmp_path: Path) -> None:
    alice, mallory = Identity.open_or_create(tmp_path, WORDS), Identity.generate()
    good = Presence(alice.transport_seed, alice.make_binding(NOW))
    bad = [
        Presence(mallory.transport_seed, mallory.make_binding(NOW)),
        Presence(mallory.transport_seed, alice.make_binding(NOW)),
        Presence(alice.transport_seed, bytes(205)),
    ]
    for presence in bad:
        write_presence(tmp_path, presence)
        assert read_presence(tmp_path, alice.node_id, NOW.timestamp()) is None
    (tmp_path / PRESENCE).write_bytes(b"\xff" * 50)
    assert read_presence(tmp_path, alice.node_id, NOW.timestamp()) is None
    write_presence(tmp_path, good)
    assert read_presence(tmp_path, alice.node_id, NOW.timestamp()) == good
    assert read_presence(tmp_path, alice.node_id, NOW.timestamp() + BINDING_LIFE_S + 1) is None
    (tmp_path / PRESENCE).chmod(0o644)
    with pytest.raises(Misconfigured, match="others may read"):
        Identity.open_locked(tmp_path)


def test_a_presence_left_by_hand_has_a_record_without_addresses(tmp_path: Path) -> None:
    alice = Identity.generate()
    alice.leave_presence(tmp_path, NOW)
    kept = read_presence(tmp_path, alice.node_id, NOW.timestamp())
    assert kept is not None
    record = read_record(msgspec.msgpack.decode(kept.record, type=type(sign_record(alice, [], 1))))
    assert (record.node_id, record.addresses) == (alice.node_id, ())


async def test_a_keyring_opens_locked_and_is_unlocked_once(tmp_path: Path) -> None:
    Identity.open_or_create(tmp_path, WORDS).make_binding(NOW)
    ring = Keyring.open(tmp_path)
    assert (ring.identity.locked, ring.has_own_passphrase) == (True, True)
    for wrong in ("battery", None):
        with pytest.raises(PassphraseRefused) as refused:
            await ring.unlock(wrong)
        assert "battery" not in str(refused.value)
    assert ring.identity.locked
    results = await asyncio.gather(*(ring.unlock(WORDS) for _ in range(3)), return_exceptions=True)
    assert [getattr(r, "code", r) for r in results] == [None, "unlocking", "unlocking"]
    assert not ring.identity.locked


async def test_a_generated_passphrase_unlocks_by_itself(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    assert not ring.has_own_passphrase
    ring.lock()
    assert ring.identity.locked
    await ring.unlock(None)
    assert not ring.identity.locked
    assert (tmp_path / PASSPHRASE).read_text() not in repr(ring.__dict__)


def test_app_keys_open_the_door_of_a_locked_node_and_are_not_told(tmp_path: Path) -> None:
    secret = new_secret()
    alice = Identity(secret)
    keys = AppKeys(Database(tmp_path / "node.db"), Sealer(lambda: alice.derive("app keys 1")))
    keys.create("before", alice.node_id, "sesame-sesame")
    alice.lock()
    assert keys.lookup("sesame-sesame") == (alice.node_id, "before")
    keys.create("before", alice.node_id, "sesame-sesame", ["https://example.org"])  # as at each start
    made = keys.create("while locked", alice.node_id)
    assert keys.lookup(made) == (alice.node_id, "while locked")
    assert {key.name: key.secret for key in keys.list()} == {"before": None, "while locked": None}
    alice.unlock(secret)
    assert {key.name: key.secret for key in keys.list()} == {"before": "sesame-sesame", "while locked": None}

"""The key that signs vouchers only: made, renewed, dropped, and never two of them at work."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shem.errors import Misconfigured
from shem.node.identity.keyring import Keyring
from shem.node.identity.keystore import KEYSTORE, PASSPHRASE
from shem.node.identity.signing import keccak256, recover
from shem.node.identity.vouchersigner import (
    DIRECTORY,
    drop_voucher_signer,
    open_voucher_signer,
    renew_voucher_signer,
)


def test_it_signs_digests_of_vouchers_under_its_own_name(tmp_path: Path) -> None:
    assert open_voucher_signer(tmp_path) is None
    made = renew_voucher_signer(tmp_path)
    again = open_voucher_signer(tmp_path)
    assert again is not None
    assert again.node_id == made.node_id
    digest = keccak256(b"voucher")
    assert recover(digest, again.sign_digest(digest)) == made.node_id
    with pytest.raises(ValueError, match="32"):
        made.sign_digest(b"short")
    assert not hasattr(made, "sign"), "no documents"
    files = [path for path in (tmp_path / DIRECTORY).rglob("*") if path.is_file()]
    assert {path.name for path in files} == {KEYSTORE, PASSPHRASE}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / DIRECTORY).stat().st_mode) == 0o700


def test_a_successor_leaves_nothing_of_the_last(tmp_path: Path) -> None:
    first, second = renew_voucher_signer(tmp_path), renew_voucher_signer(tmp_path)
    opened = open_voucher_signer(tmp_path)
    assert opened is not None
    assert first.node_id != second.node_id == opened.node_id
    assert [entry.name for entry in (tmp_path / DIRECTORY).iterdir()] == ["2"]
    drop_voucher_signer(tmp_path)
    assert open_voucher_signer(tmp_path) is None


def test_a_crash_while_it_is_renewed_leaves_the_one_or_the_other(tmp_path: Path) -> None:
    first = renew_voucher_signer(tmp_path)
    half = tmp_path / DIRECTORY / "2"
    half.mkdir()
    (half / PASSPHRASE).write_text("a passphrase whose key was not written")
    (half / PASSPHRASE).chmod(0o600)
    (tmp_path / DIRECTORY / "notes").mkdir()
    opened = open_voucher_signer(tmp_path)
    assert opened is not None
    assert opened.node_id == first.node_id, "the new one is not whole"
    second = renew_voucher_signer(tmp_path)
    assert not (tmp_path / DIRECTORY / "1").exists()
    opened = open_voucher_signer(tmp_path)
    assert opened is not None
    assert opened.node_id == second.node_id


def test_one_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    renew_voucher_signer(tmp_path)
    (tmp_path / DIRECTORY / "1" / KEYSTORE).write_bytes(b"{")
    with pytest.raises(Misconfigured):
        Keyring.open(tmp_path)


async def test_a_keyring_tells_who_signs_from_now_on(tmp_path: Path) -> None:
    ring, told = Keyring.open(tmp_path), list[str]()
    ring.on_voucher_key(lambda key: told.append(key.node_id))
    assert ring.voucher_key is ring.identity
    await ring.renew_voucher_signer()
    first = ring.voucher_key.node_id
    await ring.renew_voucher_signer()
    assert Keyring.open(tmp_path).voucher_key.node_id == ring.voucher_key.node_id != first
    await ring.drop_voucher_signer()
    assert ring.voucher_key is ring.identity
    assert told[0] == first
    assert told[2] == ring.identity.node_id
    assert len(set(told)) == 3

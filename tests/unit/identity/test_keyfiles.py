"""Key files that come, go and change their passphrase: whole, private, and never without something that opens them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from shem.node.identity.keyfiles import KeystoreUnusable, remove, replace_private, write_new
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import (
    KEYSTORE,
    N_GENERATED,
    N_USER,
    PASSPHRASE,
    OtherIdentity,
    WrongPassphrase,
    address_in,
    change_passphrase,
    decrypt,
    encrypt,
    has_own_passphrase,
    import_secret,
    new_secret,
    passphrase_in,
    read_passphrase,
    read_secret,
)

WORDS = "correct horse battery"


def test_a_passphrase_of_ones_own_and_back(tmp_path: Path) -> None:
    alice = Identity.open_or_create(tmp_path)
    secret = read_secret(tmp_path)
    assert not has_own_passphrase(tmp_path)
    change_passphrase(tmp_path, secret, WORDS)
    assert has_own_passphrase(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [KEYSTORE]
    content = json.loads((tmp_path / KEYSTORE).read_text())
    assert content["crypto"]["kdfparams"]["n"] == N_USER == 1 << 17
    assert read_secret(tmp_path, WORDS) == secret
    assert address_in(tmp_path) == alice.node_id

    change_passphrase(tmp_path, secret, None)
    assert not has_own_passphrase(tmp_path)
    assert json.loads((tmp_path / KEYSTORE).read_text())["crypto"]["kdfparams"]["n"] == N_GENERATED == 1 << 14
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    before = (tmp_path / PASSPHRASE).read_text()
    change_passphrase(tmp_path, secret, None)
    assert (tmp_path / PASSPHRASE).read_text() == before, "it is generated already"


def test_an_import_makes_an_identity_and_overwrites_none(tmp_path: Path) -> None:
    secret, other = new_secret(), new_secret()
    assert import_secret(tmp_path / "keys", secret, None)
    assert not import_secret(tmp_path / "keys", secret, None)
    assert read_secret(tmp_path / "keys") == secret
    content = (tmp_path / "keys" / KEYSTORE).read_bytes()
    with pytest.raises(OtherIdentity) as refused:
        import_secret(tmp_path / "keys", other, None)
    assert (tmp_path / "keys" / KEYSTORE).read_bytes() == content
    assert secret.hex() not in str(refused.value)
    assert other.hex() not in str(refused.value)


@pytest.mark.parametrize("kdf", [{"kdf": "pbkdf2", "iterations": 1000}, {"kdf": "scrypt", "iterations": 2}])
def test_files_of_other_wallets_are_read_and_ours_by_them(kdf: dict[str, object]) -> None:
    secret = new_secret()
    assert decrypt(json.dumps(Account.encrypt(secret, "pw", **kdf)).encode(), "pw") == secret  # type: ignore[arg-type]
    assert bytes(Account.decrypt(json.loads(encrypt(secret, "pw", n=1 << 10)), "pw")) == secret


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": "pbkdf2", "kdfparams": {"c": 1 << 40, "dklen": 32, "prf": "hmac-sha256", "salt": "00"}},
        {"cipher": "aes-128-cbc", "kdfparams": {"n": 1 << 40, "r": 8, "p": 1, "dklen": 32, "salt": "00"}},
        {"kdfparams": {"n": 1 << 14, "r": 1 << 30, "p": 1, "dklen": 32, "salt": "00"}},
        {"kdfparams": {"n": -2, "r": 8, "p": 1, "dklen": 32, "salt": "00"}},
        {"kdfparams": []},
        {"kdf": "argon2"},
    ],
)
def test_hostile_files_end_soon(change: dict[str, object]) -> None:
    content = json.loads(encrypt(new_secret(), "pw", n=1 << 10))
    content["crypto"] |= change
    with pytest.raises(KeystoreUnusable):
        decrypt(json.dumps(content).encode(), "pw")


def test_nesting_ends_soon(tmp_path: Path) -> None:
    deep = b'{"version": 3, "crypto": ' + b"[" * 20_000
    with pytest.raises(KeystoreUnusable):
        decrypt(deep, "pw")
    (tmp_path / KEYSTORE).write_bytes(deep)
    (tmp_path / KEYSTORE).chmod(0o600)
    with pytest.raises(KeystoreUnusable):
        address_in(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 2000, b"\xff\xfe"])
def test_a_file_without_a_passphrase(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KeystoreUnusable) as refused:
        passphrase_in(content, "the file")
    assert content.decode(errors="replace") not in str(refused.value) or not content.strip()
    assert passphrase_in(b"correct horse \r\nmore", "it") == "correct horse "
    path = tmp_path / "pass"
    path.write_text("sesame\n")
    path.chmod(0o644)
    with pytest.raises(KeystoreUnusable, match="others may read"):
        read_passphrase(path)
    path.chmod(0o400)
    assert read_passphrase(path) == "sesame"


def test_private_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert write_new(path, b"one")
    assert not write_new(path, b"two")
    assert path.read_bytes() == b"one"
    replace_private(path, b"three")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"three", 0o600)
    remove(path)
    remove(path)
    assert list(tmp_path.iterdir()) == []


CRASHES = """
import os, sys
from pathlib import Path
from shem.node.identity import keystore

root, words = Path(sys.argv[1]), sys.argv[2]
secret = bytes(range(1, 33))

def change(directory, to_own, die_at):
    seen = 0
    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.link") and str(directory) in str(arguments):
            seen += 1
            if seen == die_at:
                os._exit(9)
    sys.addaudithook(watch)
    keystore.change_passphrase(directory, secret, words if to_own else None)

for to_own in (True, False):
    for die_at in range(1, 40):
        directory = root / f"{to_own}-{die_at}"
        keystore.load_or_create_secret(directory, None if to_own else words, secret)
        child = os.fork()
        if not child:
            change(directory, to_own, die_at)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        opened = []
        for passphrase in (None, words):
            try:
                opened.append(keystore.read_secret(directory, passphrase) == secret)
            except keystore.WrongPassphrase:
                opened.append(False)
        print(to_own, die_at, ended, *opened)
        if ended == 0:
            break
"""


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_a_key_that_one_of_the_passphrases_opens(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path), WORDS], capture_output=True, text=True, check=True, timeout=300
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    for to_own in ("True", "False"):
        ends = [
            (ended, by_itself, by_words) for direction, _, ended, by_itself, by_words in rows if direction == to_own
        ]
        assert len(ends) >= 4, "it died at several places"
        assert all("True" in (by_itself, by_words) for _, by_itself, by_words in ends)
        expected = ("0", "False", "True") if to_own == "True" else ("0", "True", "False")
        assert ends[-1] == expected


def test_a_wrong_passphrase_is_not_told_again(tmp_path: Path) -> None:
    import_secret(tmp_path, new_secret(), None)
    with pytest.raises(WrongPassphrase) as wrong:
        read_secret(tmp_path, "open sesame")
    assert "sesame" not in str(wrong.value)

"""The key file: readable by other wallets, private, never overwritten, and honest about what is wrong with it."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from shem.errors import Misconfigured
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import (
    KEYSTORE,
    N_GENERATED,
    N_USER,
    PASSPHRASE,
    KeystoreUnusable,
    WrongPassphrase,
    decrypt,
)


def test_the_same_identity_after_a_restart(tmp_path: Path) -> None:
    first = Identity.open_or_create(tmp_path / "deep" / "keys")
    again = Identity.open_or_create(tmp_path / "deep" / "keys")
    assert (first.node_id, first.transport_id) == (again.node_id, again.transport_id)


def test_files_are_private_and_no_draft_is_left(tmp_path: Path) -> None:
    Identity.open_or_create(tmp_path / "keys")
    files = sorted((tmp_path / "keys").iterdir())
    assert [file.name for file in files] == [KEYSTORE, PASSPHRASE]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_other_wallets_read_it(tmp_path: Path) -> None:
    alice = Identity.open_or_create(tmp_path)
    content = json.loads((tmp_path / KEYSTORE).read_text())
    assert content["crypto"]["kdfparams"]["n"] == N_GENERATED
    secret = Account.decrypt(content, (tmp_path / PASSPHRASE).read_text())
    assert Account.from_key(secret).address.lower() == alice.node_id


def test_it_reads_those_of_other_wallets() -> None:
    secret = bytes(range(1, 33))
    assert decrypt(json.dumps(Account.encrypt(secret, "pw", kdf="pbkdf2", iterations=1000)).encode(), "pw") == secret


def test_a_passphrase_of_ones_own(tmp_path: Path) -> None:
    alice = Identity.open_or_create(tmp_path, "correct horse")
    assert not (tmp_path / PASSPHRASE).exists()
    assert json.loads((tmp_path / KEYSTORE).read_text())["crypto"]["kdfparams"]["n"] == N_USER
    assert Identity.open_or_create(tmp_path, "correct horse").node_id == alice.node_id
    with pytest.raises(WrongPassphrase) as wrong:
        Identity.open_or_create(tmp_path, "battery staple")
    assert wrong.value.code == "wrong_passphrase"
    assert "battery" not in str(wrong.value)
    with pytest.raises(WrongPassphrase):
        Identity.open_or_create(tmp_path)


@pytest.mark.parametrize("name", [KEYSTORE, PASSPHRASE])
def test_files_that_others_may_read_are_refused(tmp_path: Path, name: str) -> None:
    Identity.open_or_create(tmp_path)
    (tmp_path / name).chmod(0o644)
    with pytest.raises(KeystoreUnusable) as exposed:
        Identity.open_or_create(tmp_path)
    assert exposed.value.code == "keystore_exposed"
    assert "chmod 600" in exposed.value.hint


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 3}', b"\xff" * 100, b" " * 70_000]
)
def test_a_damaged_file_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    Identity.open_or_create(tmp_path)
    (tmp_path / KEYSTORE).write_bytes(content)
    with pytest.raises(KeystoreUnusable):
        Identity.open_or_create(tmp_path)
    assert (tmp_path / KEYSTORE).read_bytes() == content


def test_a_crash_between_the_two_files_is_harmless(tmp_path: Path) -> None:
    first = Identity.open_or_create(tmp_path)
    passphrase = (tmp_path / PASSPHRASE).read_bytes()
    (tmp_path / KEYSTORE).unlink()
    second = Identity.open_or_create(tmp_path)
    assert (tmp_path / PASSPHRASE).read_bytes() == passphrase
    assert second.node_id != first.node_id
    assert Identity.open_or_create(tmp_path).node_id == second.node_id


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured):
        Identity.open_or_create(tmp_path / "file")


OPEN = """
import sys
from pathlib import Path
from shem.node.identity.keys import Identity
sys.stdin.readline()
print(Identity.open_or_create(Path(sys.argv[1])).node_id)
"""


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path / "keys")], stdin=pipe, stdout=pipe, text=True
        )

    racers = [start() for _ in range(3)]
    found = {racer.communicate("go\n", timeout=30)[0].strip() for racer in racers}
    assert found == {Identity.open_or_create(tmp_path / "keys").node_id}


def test_reading_another_wallets_file_leaves_the_recursion_limit_where_it_was() -> None:
    """The library that reads it raises the limit past what the C stack carries, and nesting from a peer would crash us."""
    program = (
        "import sys; from shem.node.identity.keystore import decrypt; before = sys.getrecursionlimit()\n"
        "try: decrypt(sys.stdin.buffer.read(), 'pw')\n"
        "finally: assert sys.getrecursionlimit() == before, sys.getrecursionlimit()"
    )
    theirs = json.dumps(Account.encrypt(bytes(range(1, 33)), "pw", kdf="pbkdf2", iterations=1000)).encode()
    done = subprocess.run([sys.executable, "-c", program], input=theirs, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_file_that_asks_for_endless_work_is_refused() -> None:
    theirs = Account.encrypt(bytes(range(1, 33)), "pw", kdf="scrypt", iterations=2)
    theirs["crypto"]["kdfparams"]["n"] = 1 << 40
    with pytest.raises(KeystoreUnusable):
        decrypt(json.dumps(theirs).encode(), "pw")

"""``shem identity export|import|passphrase``: key files by hand, and passphrases that come by no way that others can see."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account import Account

from shem.cli import main
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import KEYSTORE, PASSPHRASE, encrypt, has_own_passphrase, new_secret, read_secret

Run = Callable[..., tuple[int, str, str]]
WORDS, OTHER = "correct horse battery", "staple of a horse"


@pytest.fixture
def shem(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as raised:
            main([str(each) for each in arguments])
        said = capsys.readouterr()
        return int(raised.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    path.write_text(f"{WORDS}\n")
    path.chmod(0o600)
    return path


def descriptor(text: str) -> int:
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    return read


def test_a_key_goes_to_another_wallet_and_comes_back(shem: Run, words: Path, tmp_path: Path) -> None:
    here, there, out = tmp_path / "here", tmp_path / "there", tmp_path / "key.json"
    alice = Identity.open_or_create(here)
    status, said, _ = shem("identity", "export", out, "--data-dir", here, "--passphrase-file", words, "--json")
    assert (status, json.loads(said)) == (0, {"node_id": alice.node_id, "file": str(out)})
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    content = json.loads(out.read_text())
    assert content["crypto"]["kdfparams"]["n"] == 1 << 17, "a passphrase of a human's"
    assert bytes(Account.decrypt(content, WORDS)) == read_secret(here)
    before = out.read_bytes()
    status, _, said = shem("identity", "export", out, "--data-dir", here, "--passphrase-file", words)
    assert (status, "file_exists" in said, out.read_bytes()) == (2, True, before)

    fd = descriptor(f"{WORDS}\n")
    status, said, _ = shem("identity", "import", out, "--data-dir", there, "--passphrase-fd", fd, "--json")
    os.close(fd)
    assert (status, json.loads(said)) == (0, {"node_id": alice.node_id, "data_dir": str(there), "new": True})
    assert read_secret(there) == read_secret(here), "it opens by itself"


def test_an_import_overwrites_nothing(shem: Run, words: Path, tmp_path: Path) -> None:
    alice = Identity.open_or_create(tmp_path / "alice")
    foreign = tmp_path / "foreign.json"
    foreign.write_bytes(encrypt(new_secret(), WORDS, n=1 << 10))
    status, _, said = shem("identity", "import", foreign, "--data-dir", tmp_path / "alice", "--passphrase-file", words)
    assert (status, "other_identity" in said) == (6, True)
    assert Identity.open(tmp_path / "alice").node_id == alice.node_id
    words.write_text("something else\n")
    status, said, complaint = shem(
        "identity", "import", foreign, "--data-dir", tmp_path / "bob", "--passphrase-file", words
    )
    assert (status, "wrong_passphrase" in complaint) == (2, True), "as of unlock: say another one"
    assert f"{foreign} does not open with this passphrase" in complaint
    assert "something else" not in said + complaint
    assert not (tmp_path / "bob" / KEYSTORE).exists()
    status, _, said = shem(
        "identity", "import", tmp_path / "none", "--data-dir", tmp_path / "bob", "--passphrase-file", words
    )
    assert (status, "keystore_unusable" in said) == (6, True)


@pytest.mark.parametrize("content", ["no json", "{}", '{"version": 3}'])
def test_what_is_no_key_file_is_named(shem: Run, words: Path, tmp_path: Path, content: str) -> None:
    file = tmp_path / "shopping.txt"
    file.write_text(content)
    status, _, said = shem("identity", "import", file, "--data-dir", tmp_path / "bob", "--passphrase-file", words)
    assert (status, "keystore_unusable" in said) == (6, True)
    assert f"{file} is no key file" in said
    assert "version 3" in said


def test_a_passphrase_of_ones_own_makes_a_node_start_locked(shem: Run, words: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    alice = Identity.open_or_create(here)
    assert shem("identity", "passphrase", "--data-dir", here, "--passphrase-file", words)[0] == 0
    assert not (here / PASSPHRASE).exists()
    locked = Identity.open_locked(here)
    assert (locked.node_id, locked.locked) == (alice.node_id, True)

    status, _, said = shem("identity", "passphrase", "--data-dir", here, "--generated")
    assert (status, "no_passphrase" in said) == (6, True), "there is no terminal to ask at"
    fd = descriptor(OTHER)
    status, _, said = shem("identity", "passphrase", "--data-dir", here, "--generated", "--current-passphrase-fd", fd)
    os.close(fd)
    assert (status, "wrong_passphrase" in said, OTHER in said) == (2, True, False)
    status, said, _ = shem(
        "identity", "passphrase", "--data-dir", here, "--generated", "--current-passphrase-file", words, "--json"
    )
    assert (status, json.loads(said)) == (0, {"node_id": alice.node_id, "own_passphrase": False})
    assert sorted(path.name for path in here.iterdir()) == [KEYSTORE, PASSPHRASE]


def test_what_is_wrong_with_a_passphrase_is_said(shem: Run, words: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    Identity.open_or_create(here)
    change = ("identity", "passphrase", "--data-dir", here)
    words.write_text("short\n")
    assert "weak_passphrase" in shem(*change, "--passphrase-file", words)[2]
    words.write_text(WORDS)
    words.chmod(0o644)
    assert "keystore_exposed" in shem(*change, "--passphrase-file", words)[2]
    assert "bad_request" in shem(*change, "--passphrase-file", words, "--passphrase-fd", 0)[2]
    assert "bad_descriptor" in shem(*change, "--passphrase-fd", 987)[2]
    assert not has_own_passphrase(here)
    assert shem(*change, "--passphrase", WORDS)[0] == 2, "there is no such option: arguments are seen by all"


def test_at_the_terminal_it_is_asked_for_twice_and_not_shown(tmp_path: Path) -> None:
    here = tmp_path / "here"
    Identity.open_or_create(here)
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "shem", "identity", "passphrase", "--data-dir", str(here)]
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        shown = b""
        for question in (b"The new passphrase: ", b"The same again: "):
            while question not in shown:
                shown += os.read(ours, 1024)
            os.write(ours, WORDS.encode() + b"\n")
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert WORDS.encode() not in shown
    assert has_own_passphrase(here)

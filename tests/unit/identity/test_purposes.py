"""A signature is good for one thing only: every purpose has a domain or a name of its own, and no digest comes from a peer."""

from __future__ import annotations

import ast
from pathlib import Path

import shem
from shem.node.identity import binding, signing
from shem.node.identity.keys import Identity
from shem.node.market import documents
from shem.node.payment.drivers.evm import vault
from shem.node.payment.drivers.evm.transaction import Transaction
from shem.node.payment.protocol import KINDS, method_of
from shem.node.peer.records import RECORD_PURPOSE

NODE = Path(shem.__file__).parent / "node"
SIGNED = {
    # a transaction: its type's byte before the list of its fields
    ("payment/drivers/evm/transaction.py", "signer.sign_digest(keccak256(_TYPE + encode_rlp(fields)))"),
    # a voucher, a close: typed structures in the vault's domain
    ("payment/channel_payer.py", "self._books.voucher_signer.sign_digest(digest)"),
    (
        "payment/channel_payee.py",
        "self._books.signer.sign_digest(close_digest(vault_of(channel), id_bytes(channel), amount))",
    ),
    # what makes these: a document, a binding, a file of the owner's own choice
    ("identity/keys.py", "signing.sign_with(self._secret_key(), signing.document_digest(purpose, payload))"),
    ("identity/keys.py", "signing.sign_with(self._secret_key(), digest)"),
    (
        "identity/keys.py",
        "signing.sign_with(self._secret_key(), hashlib.file_digest(file, 'sha256').digest())",
    ),
    ("identity/binding.py", "signing.sign_with(key, digest)"),
    ("identity/vouchersigner.py", "signing.sign_with(self._key, digest)"),
}
"""Every place that signs 32 bytes. A new one states here what it signs, and that it was built on the spot."""


def test_digests_are_signed_at_these_places_only() -> None:
    found = set()
    for path in sorted(NODE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute | ast.Name):
                name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                if name in ("sign_digest", "sign_with", "sign_recoverable", "sign_file"):
                    found.add((str(path.relative_to(NODE)), ast.unparse(call)))
    found.discard(("identity/signing.py", "key.sign_recoverable(digest, hasher=None)"))
    assert found == SIGNED
    [voucher] = [
        ast.unparse(node)
        for node in ast.walk(ast.parse((NODE / "payment/channel_payer.py").read_text()))
        if isinstance(node, ast.Assign) and "digest" in (ast.unparse(target) for target in node.targets)
    ]
    assert voucher == "digest = voucher_digest(vault_of(channel), id_bytes(channel), channel.signed)"


def test_every_purpose_has_a_name_of_its_own() -> None:
    market = [
        documents.OFFER,
        documents.COUNTER,
        documents.REJECTION,
        documents.AGREEMENT,
        documents.APPROVAL,
        documents.COMMITMENT,
        documents.ENDING,
    ]
    purposes = [*market, *map(method_of, KINDS), RECORD_PURPOSE]
    assert len(set(purposes)) == len(purposes)


def test_what_is_signed_for_one_purpose_is_nobodys_signature_for_another() -> None:
    """The same 32 bytes, as each signer would have them signed."""
    alice, same = Identity.generate(), bytes(range(32))
    place = vault.Vault(1337, "0x" + "11" * 20)
    other_chain, other_vault = vault.Vault(1, place.address), vault.Vault(1337, "0x" + "22" * 20)
    transaction = Transaction(
        chain_id=1337, nonce=0, max_tip=0, max_fee=1, gas=21000, to=place.address, value=0, data=same
    )
    digests = [
        signing.document_digest("payment.acceptance", same),
        signing.document_digest("payment.invoice", same),
        vault.voucher_digest(place, same, 1),
        vault.close_digest(place, same, 1),
        vault.voucher_digest(other_chain, same, 1),
        vault.voucher_digest(other_vault, same, 1),
        binding.binding_digest(bytes(20), same, 0, 1, 1),
    ]
    assert len({*digests, same}) == len(digests) + 1
    signed = transaction.sign(alice)
    for digest in digests:
        assert digest not in signed.raw
        assert signing.recover(digest, alice.sign_digest(digest)) == alice.node_id
        for other in digests:
            assert (signing.recover(other, alice.sign_digest(digest)) == alice.node_id) == (other == digest)

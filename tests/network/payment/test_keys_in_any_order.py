"""Money in any order once more, with keys that are locked and unlocked, and a voucher signer that is renewed, at any moment."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from shem.node.identity.keystore import new_secret
from shem.node.identity.vouchersigner import VoucherSigner
from tests.network.payment.simulation import SimNode
from tests.network.payment.test_money_in_any_order import Money, few, quiet, sides

__all__ = ["quiet"]


class Keys(Money):
    """What owners do with keys meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets = {node.id: node.identity._key.secret for node in self.world.nodes}

    @rule(side=sides)
    def lock(self, side: str) -> None:
        self.node(side).identity.lock()

    @rule(side=sides)
    def unlock(self, side: str) -> None:
        self._unlock(self.node(side))

    def _unlock(self, node: SimNode) -> None:
        node.identity.unlock(self.secrets[node.id])
        if node.alive:
            self.world.do(node.payments.unlocked)
        self.world.vault.wake()

    @rule(own=st.booleans())
    def renew(self, own: bool) -> None:
        alice = self.world.alice
        alice.voucher_key = VoucherSigner(new_secret()) if own else alice.identity
        if alice.alive:
            self.world.do(lambda: alice.payments.sign_vouchers_with(alice.voucher_key))

    def _to_the_end(self) -> None:
        for node in self.world.nodes:
            self._unlock(node)
        super()._to_the_end()


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestKeys(Keys.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(few, max_examples=100, stateful_step_count=40)

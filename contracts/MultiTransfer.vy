# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Multi-transfer
@notice Pays many receivers of one token in one transaction. The calls have the names and the packing that the
        contracts on the public Golem networks have, so that one client speaks to both.
@dev One entry is receiver (20 bytes) | amount (12 bytes). All or nothing. Holds no tokens between calls.
"""
from ethereum.ercs import IERC20

# At about 26 000 gas for a first payment this stays far below the 16.78 M gas one transaction may use.
MAX_PAYMENTS: constant(uint256) = 128

token: public(immutable(IERC20))


@deploy
def __init__(paid_in: IERC20):
    token = paid_in


@internal
@pure
def _receiver(packed: bytes32) -> address:
    return convert(convert(packed, uint256) >> 96, address)


@internal
@pure
def _amount(packed: bytes32) -> uint256:
    return convert(packed, uint256) & (2 ** 96 - 1)


@external
def golemTransferDirectPacked(payments: DynArray[bytes32, MAX_PAYMENTS]):
    """
    @notice One `transferFrom` for each payment: the logs name the payer as sender.
    """
    for packed: bytes32 in payments:
        assert extcall token.transferFrom(
            msg.sender, self._receiver(packed), self._amount(packed), default_return_value=True
        )


@external
def golemTransferIndirectPacked(payments: DynArray[bytes32, MAX_PAYMENTS], total: uint256):
    """
    @notice One `transferFrom` of the sum to this contract, then a `transfer` for each payment: the logs name this
            contract as sender.
    """
    assert extcall token.transferFrom(msg.sender, self, total, default_return_value=True)
    left: uint256 = total
    for packed: bytes32 in payments:
        amount: uint256 = self._amount(packed)
        left -= amount
        assert extcall token.transfer(self._receiver(packed), amount, default_return_value=True)
    assert left == 0, "the sum is not the total"

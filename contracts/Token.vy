# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Test GLM
@notice The token of devnets: ERC-20, 18 decimals, and a faucet that anybody may use.
@dev Everything lives in storage (no immutables), so that a genesis block can place the runtime code and the
     first balance at a fixed address without running the constructor.
"""
from ethereum.ercs import IERC20

implements: IERC20

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    value: uint256

event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256

name: public(constant(String[8])) = "Test GLM"
symbol: public(constant(String[4])) = "tGLM"
decimals: public(constant(uint8)) = 18

# One call of the faucet gives at most this much: enough for any test, and a typo does not distort the supply.
FAUCET_LIMIT: public(constant(uint256)) = 1_000_000 * 10 ** 18

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)


@deploy
def __init__(supply: uint256):
    self._issue(msg.sender, supply)


@internal
def _issue(receiver: address, amount: uint256):
    self.totalSupply += amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=empty(address), receiver=receiver, value=amount)


@internal
def _move(sender: address, receiver: address, amount: uint256):
    # The zero address is where lost tokens go by mistake; the token itself could never send them back.
    assert receiver not in [empty(address), self], "bad receiver"
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, value=amount)


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    allowed: uint256 = self.allowance[owner][msg.sender]
    if allowed != max_value(uint256):
        self.allowance[owner][msg.sender] = allowed - amount
    self._move(owner, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    log Approval(owner=msg.sender, spender=spender, value=amount)
    return True


@external
def mint(to: address, amount: uint256):
    """
    @notice The faucet: gives `amount` new tokens to `to`.
    """
    assert amount <= FAUCET_LIMIT, "more than the faucet gives at once"
    assert to != empty(address), "bad receiver"
    self._issue(to, amount)

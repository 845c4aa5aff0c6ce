# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Shem vault
@notice Payment channels over one ERC-20 token: a payer deposits once, reserves an amount for each payee, and pays
        with signed cumulative vouchers. What is reserved for a payee can go to nobody else before the channel's
        term is over.
@dev No owner, no pause, no upgrade. A channel is named by keccak256(payer, payee, signer, nonce) with a nonce that the
     contract gives and never gives again, so a voucher dies with its channel. Invariants, which the tests check after
     every step against a model:
     I1 balance >= sum(free) + sum(reserved - claimed); equal unless somebody sends tokens here without a call
     I2 claimed <= reserved, and claimed never falls
     I3 only `release` after the term, `cooperative_close` with the payee's signature, or the payee's own closing
        `redeem` lower what is reserved
     I4 no channel id comes twice
     I5 a voucher pays min(amount, reserved) - claimed, once
     I6 a channel's money goes to its payee or back to its payer
     I7 in the end everybody can take out everything
"""
from ethereum.ercs import IERC20

event Deposited:
    payer: indexed(address)
    amount: uint256

event Withdrawn:
    payer: indexed(address)
    to: indexed(address)
    amount: uint256

event Reserved:
    payer: indexed(address)
    payee: indexed(address)
    channel: indexed(bytes32)
    signer: address
    nonce: uint64
    amount: uint96
    valid_until: uint64

event Extended:
    channel: indexed(bytes32)
    reserved: uint256
    valid_until: uint256

event Paid:
    channel: indexed(bytes32)
    payee: indexed(address)
    cumulative: uint256
    amount: uint256

event Released:
    channel: indexed(bytes32)
    amount: uint256

struct Reservation:
    payee: address
    signer: address
    amount: uint96
    valid_until: uint64

struct Ref:
    payee: address
    signer: address
    nonce: uint64

struct Settlement:
    payee: address
    signer: address
    nonce: uint64
    amount: uint96

struct Claim:
    payer: address
    signer: address
    nonce: uint64
    amount: uint96
    close: bool
    r: bytes32
    vs: bytes32

struct Closing:
    payee: address
    signer: address
    nonce: uint64
    amount: uint96
    r: bytes32
    vs: bytes32

MAX_BATCH: public(constant(uint256)) = 128
# A term in milliseconds by mistake would lock money for ever.
MAX_TERM: public(constant(uint256)) = 366 * 86400

MASK_64: constant(uint256) = 2**64 - 1
MASK_96: constant(uint256) = 2**96 - 1
MASK_128: constant(uint256) = 2**128 - 1
MASK_255: constant(uint256) = 2**255 - 1
# Half of the order of secp256k1: a higher s is the other signature of the same message.
HALF_N: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

NAME: constant(String[10]) = "Shem vault"
version: public(constant(String[1])) = "1"
DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
VOUCHER_TYPE: constant(bytes32) = keccak256("Voucher(bytes32 channel,uint96 amount)")
CLOSE_TYPE: constant(bytes32) = keccak256("Close(bytes32 channel,uint96 amount)")

token: public(immutable(IERC20))
CACHED_CHAIN: immutable(uint256)
CACHED_DOMAIN: immutable(bytes32)

# payer -> free (128 bits, low) | next nonce (64 bits)
accounts: HashMap[address, uint256]
# id -> reserved (96 bits, low) | claimed (96 bits) | valid_until (64 bits): one slot, so that each claim costs the same
channels: HashMap[bytes32, uint256]


@deploy
def __init__(erc20: IERC20):
    token = erc20
    CACHED_CHAIN = chain.id
    CACHED_DOMAIN = self._domain_of(chain.id)


# --- looking


@view
@external
def domain_separator() -> bytes32:
    return self._domain()


@pure
@external
def channel_id(payer: address, payee: address, signer: address, nonce: uint64) -> bytes32:
    return self._id(payer, payee, signer, nonce)


@view
@external
def account(payer: address) -> (uint256, uint256):
    """
    @return what is free, and the nonce of the next channel
    """
    packed: uint256 = self.accounts[payer]
    return packed & MASK_128, packed >> 128


@view
@external
def channel(id: bytes32) -> (uint256, uint256, uint256):
    """
    @return reserved, claimed, valid_until (Unix seconds); all zero for a channel that is not open
    """
    packed: uint256 = self.channels[id]
    return packed & MASK_96, (packed >> 96) & MASK_96, packed >> 192


# --- the payer


@external
@nonreentrant
def deposit(to: address, amount: uint256):
    """
    @notice Move `amount` tokens of the caller to the free balance of `to`.
    """
    assert to != empty(address), "bad payer"
    self._take_in(amount)
    packed: uint256 = self.accounts[to] + amount
    assert packed & MASK_128 <= MASK_96, "too much"
    self.accounts[to] = packed
    log Deposited(payer=to, amount=amount)


@external
@nonreentrant
def deposit_and_reserve(amount: uint256, items: DynArray[Reservation, MAX_BATCH]):
    """
    @notice Both in one transaction.
    """
    self._take_in(amount)
    log Deposited(payer=msg.sender, amount=amount)
    self._reserve(items, amount)


@external
@nonreentrant
def withdraw(to: address, amount: uint256):
    """
    @notice Take out what is free.
    """
    packed: uint256 = self.accounts[msg.sender]
    assert packed & MASK_128 >= amount, "free"
    self.accounts[msg.sender] = packed - amount
    log Withdrawn(payer=msg.sender, to=to, amount=amount)
    self._give_out(to, amount)


@external
@nonreentrant
def reserve(items: DynArray[Reservation, MAX_BATCH]):
    """
    @notice Open channels: each takes its amount out of the caller's free balance.
    """
    self._reserve(items, 0)


@external
@nonreentrant
def extend(payee: address, signer: address, nonce: uint64, add: uint96, valid_until: uint64):
    """
    @notice Reserve more, for longer, or both; never less.
    """
    id: bytes32 = self._id(msg.sender, payee, signer, nonce)
    packed: uint256 = self.channels[id]
    assert packed != 0, "closed"
    term: uint256 = convert(valid_until, uint256)
    assert term >= packed >> 192, "shorter"
    assert term == packed >> 192 or term <= block.timestamp + MAX_TERM, "too long"
    more: uint256 = convert(add, uint256)
    reserved: uint256 = (packed & MASK_96) + more
    assert reserved <= MASK_96, "too much"
    if more != 0:
        owned: uint256 = self.accounts[msg.sender]
        assert owned & MASK_128 >= more, "free"
        self.accounts[msg.sender] = owned - more
    self.channels[id] = reserved | (packed & (MASK_96 << 96)) | (term << 192)
    log Extended(channel=id, reserved=reserved, valid_until=term)


@external
@nonreentrant
def settle(items: DynArray[Settlement, MAX_BATCH]):
    """
    @notice The payer pays what it owes on its channels. No signatures: it is the caller. What is paid already is skipped.
    """
    for item: Settlement in items:
        id: bytes32 = self._id(msg.sender, item.payee, item.signer, item.nonce)
        paid: uint256 = self._pay(id, item.payee, msg.sender, convert(item.amount, uint256), False)
        if paid != 0:
            self._give_out(item.payee, paid)


@external
@nonreentrant
def cooperative_close(items: DynArray[Closing, MAX_BATCH]):
    """
    @notice End channels before their term, with the payee's signature over the final sum. The rest is free again.
    @dev An entry that is closed already is skipped; a wrong signature refuses the whole.
    """
    for item: Closing in items:
        id: bytes32 = self._id(msg.sender, item.payee, item.signer, item.nonce)
        if self.channels[id] == 0:
            continue
        assert self._recover(CLOSE_TYPE, id, item.amount, item.r, item.vs) == item.payee, "signature"
        paid: uint256 = self._pay(id, item.payee, msg.sender, convert(item.amount, uint256), True)
        if paid != 0:
            self._give_out(item.payee, paid)


@external
@nonreentrant
def release(items: DynArray[Ref, MAX_BATCH]):
    """
    @notice Take back what is left on channels whose term is over. Closed ones are skipped.
    """
    back: uint256 = 0
    for item: Ref in items:
        id: bytes32 = self._id(msg.sender, item.payee, item.signer, item.nonce)
        packed: uint256 = self.channels[id]
        if packed == 0:
            continue
        assert block.timestamp > packed >> 192, "not yet"
        left: uint256 = (packed & MASK_96) - ((packed >> 96) & MASK_96)
        self.channels[id] = 0
        back += left
        log Released(channel=id, amount=left)
    if back != 0:
        self.accounts[msg.sender] += back


# --- the payee, or anybody for it


@external
@nonreentrant
def redeem(payee: address, claims: DynArray[Claim, MAX_BATCH]) -> uint256:
    """
    @notice Collect vouchers of any number of payers with one transfer to `payee`. Anybody may send them; only the payee
            may close a channel on the way. Entries that are closed, badly signed or bring nothing new are skipped,
            so that one bad entry cannot hold up the others.
    @return what was collected
    """
    total: uint256 = 0
    for claim: Claim in claims:
        id: bytes32 = self._id(claim.payer, payee, claim.signer, claim.nonce)
        if self.channels[id] == 0:
            continue
        if self._recover(VOUCHER_TYPE, id, claim.amount, claim.r, claim.vs) != claim.signer:
            continue
        close: bool = claim.close and msg.sender == payee
        total += self._pay(id, payee, claim.payer, convert(claim.amount, uint256), close)
    assert total != 0, "nothing"
    self._give_out(payee, total)
    return total


# --- parts


@view
@internal
def _domain() -> bytes32:
    # A chain that forked has another id: vouchers of the one must not count on the other.
    if chain.id == CACHED_CHAIN:
        return CACHED_DOMAIN
    return self._domain_of(chain.id)


@view
@internal
def _domain_of(chain_id: uint256) -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, keccak256(NAME), keccak256(version), chain_id, self))


@pure
@internal
def _id(payer: address, payee: address, signer: address, nonce: uint64) -> bytes32:
    return keccak256(abi_encode(payer, payee, signer, nonce))


@internal
def _take_in(amount: uint256):
    # Some tokens keep a fee of each transfer: what is credited must have arrived.
    before: uint256 = staticcall token.balanceOf(self)
    assert extcall token.transferFrom(msg.sender, self, amount, default_return_value=True), "token"
    assert staticcall token.balanceOf(self) - before == amount, "fee on transfer"


@internal
def _give_out(to: address, amount: uint256):
    assert extcall token.transfer(to, amount, default_return_value=True), "token"


@internal
def _reserve(items: DynArray[Reservation, MAX_BATCH], added: uint256):
    packed: uint256 = self.accounts[msg.sender]
    free: uint256 = (packed & MASK_128) + added
    assert free <= MASK_96, "too much"
    nonce: uint256 = packed >> 128
    for item: Reservation in items:
        assert item.payee != empty(address) and item.signer != empty(address), "bad payee or signer"
        amount: uint256 = convert(item.amount, uint256)
        term: uint256 = convert(item.valid_until, uint256)
        assert amount != 0, "nothing"
        assert term > block.timestamp, "over already"
        assert term <= block.timestamp + MAX_TERM, "too long"
        assert free >= amount, "free"
        assert nonce < MASK_64, "nonce"
        free -= amount
        given: uint64 = convert(nonce, uint64)
        id: bytes32 = self._id(msg.sender, item.payee, item.signer, given)
        self.channels[id] = amount | (term << 192)
        log Reserved(
            payer=msg.sender,
            payee=item.payee,
            channel=id,
            signer=item.signer,
            nonce=given,
            amount=item.amount,
            valid_until=item.valid_until,
        )
        nonce += 1
    self.accounts[msg.sender] = free | (nonce << 128)


@view
@internal
def _recover(kind: bytes32, id: bytes32, amount: uint96, r: bytes32, vs: bytes32) -> address:
    # EIP-2098: the highest bit of vs is the parity. Nobody (the zero address) is never a payee or signer.
    s: uint256 = convert(vs, uint256) & MASK_255
    if s > HALF_N:
        return empty(address)
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._domain(), keccak256(abi_encode(kind, id, amount))))
    return ecrecover(digest, (convert(vs, uint256) >> 255) + 27, convert(r, uint256), s)


@internal
def _pay(id: bytes32, payee: address, payer: address, amount: uint256, close: bool) -> uint256:
    # Effects only; returns what to give to the payee.
    packed: uint256 = self.channels[id]
    reserved: uint256 = packed & MASK_96
    claimed: uint256 = (packed >> 96) & MASK_96
    total: uint256 = min(amount, reserved)
    paid: uint256 = 0
    if total > claimed:
        paid = total - claimed
        claimed = total
    if paid != 0:
        log Paid(channel=id, payee=payee, cumulative=claimed, amount=paid)
    if close and packed != 0:
        left: uint256 = reserved - claimed
        self.channels[id] = 0
        if left != 0:
            self.accounts[payer] += left
        log Released(channel=id, amount=left)
    elif paid != 0:
        self.channels[id] = reserved | (claimed << 96) | ((packed >> 192) << 192)
    return paid

"""The tables of the payment service, as :meth:`shem.node.db.Database.migrate` takes them: added to, never edited."""

from __future__ import annotations

SCHEMA = [
    """
create table payment_allocation (
    allocation_id text primary key, owner text not null, platform text not null, address text not null,
    total text not null, spent text not null, created_at integer not null, timeout integer,
    make_deposit integer not null, released integer not null
);
create index payment_allocation_active on payment_allocation (owner, released, created_at);
create table payment_account (
    owner text not null, agreement_id text not null, role text not null, peer_id text not null,
    platform text not null, payer text not null, payee text not null, session text,
    noted text not null, notes_accepted text not null, invoiced text, accepted text not null,
    scheduled text not null, settled text not null, allocation_id text,
    owing integer generated always as (accepted <> settled) stored,
    primary key (owner, agreement_id)
) without rowid;
create index payment_account_owing on payment_account (owner, owing, platform);
create index payment_account_allocation on payment_account (allocation_id);
create table payment_chain (
    owner text not null, activity_id text not null, agreement_id text not null,
    requested text not null, accepted text not null, last_note_id text, notes integer not null,
    primary key (owner, activity_id)
) without rowid;
create table payment_document (
    owner text not null, document_id text not null, kind text not null, role text not null,
    agreement_id text not null, activity_id text, amount text not null, state text not null,
    payload blob not null, signature blob not null, created_at integer not null, due_at integer,
    covered_at text, allocation_id text, answer blob, answer_signature blob, failure text,
    primary key (owner, document_id)
) without rowid;
create index payment_document_agreement on payment_document (owner, agreement_id, state);
create index payment_document_listed on payment_document (owner, kind, created_at);
create table payment_event (
    at integer primary key, owner text not null, kind text not null, role text not null,
    document_id text not null, type text not null, session text, rejection blob
);
create index payment_event_read on payment_event (owner, kind, at);
create table payment_due (
    due_id integer primary key, owner text not null, agreement_id text not null, activity_id text,
    allocation_id text, amount text not null, order_id text, attempts integer not null, not_before integer not null
);
create index payment_due_order on payment_due (order_id);
create table payment_order (
    order_id text primary key, owner text not null, peer_id text not null, platform text not null,
    payer text not null, payee text not null, amount text not null, state text not null
);
create table payment_transfer (
    owner text not null, payment_id text not null, role text not null, payer_id text not null, payee_id text not null,
    payer text not null, payee text not null, platform text not null, amount text not null, at integer not null,
    tx_hash text not null, block_number integer not null, block_hash text not null, parts blob not null,
    sessions text not null, state text not null, attempts integer not null,
    primary key (owner, payment_id)
) without rowid;
create index payment_transfer_tx on payment_transfer (platform, tx_hash);
create index payment_transfer_at on payment_transfer (owner, state, at);
create table payment_outbox (
    seq integer primary key autoincrement, owner text not null, peer_id text not null, kind text not null,
    payload blob not null, signature blob not null, document_id text not null, created_at integer not null
);
create index payment_outbox_peer on payment_outbox (peer_id, seq);
""",
    # claims are counted by transaction, whatever name its chain goes by
    """
drop index payment_transfer_tx;
create index payment_transfer_tx on payment_transfer (tx_hash);
""",
    # payment channels; claims are counted by pot: a transaction, or a channel
    """
create table payment_channel (
    owner text not null, channel_id text not null, role text not null, peer_id text not null, platform text not null,
    payer text not null, payee text not null, signer text not null, nonce integer not null,
    chain_id integer not null, vault text not null, reserved text not null, valid_until integer not null,
    claimed text not null, owed text not null, signed text not null, signature blob,
    state text not null, close_signature blob, opened_tx text not null, created_at integer not null,
    primary key (owner, channel_id)
) without rowid;
create index payment_channel_state on payment_channel (state, owner);
create table payment_cover (
    owner text not null, agreement_id text not null, role text not null, peer_id text not null, platform text not null,
    payer text not null, payee text not null, wanted text not null, least text not null, ends_at integer not null,
    live integer not null, changed_at integer not null,
    primary key (owner, agreement_id)
) without rowid;
create index payment_cover_live on payment_cover (live, owner, peer_id);
create table payment_channel_request (
    request_id text primary key, owner text not null, kind text not null, peer_id text not null, platform text not null,
    payer text not null, payee text not null, channel_id text not null, amount text not null, state text not null,
    tx_hash text not null, created_at integer not null
);
create index payment_channel_request_open on payment_channel_request (state, owner, platform);
create index payment_channel_request_channel on payment_channel_request (channel_id, kind);
create table payment_channel_order (
    seq integer primary key, order_id text not null unique, owner text not null, peer_id text not null,
    platform text not null, payer text not null, payee text not null, amount text not null, target text not null,
    settle_at integer not null, done integer not null
);
create index payment_channel_order_way on payment_channel_order (done, platform, payer, payee);
alter table payment_transfer add column pot text not null default '';
update payment_transfer set pot = tx_hash;
drop index payment_transfer_tx;
create index payment_transfer_pot on payment_transfer (pot);
""",
    # how long a reserve lasts after its agreement is agreed
    """
alter table payment_cover add column after_s integer not null default 600;
""",
    # a channel's id is the same on every chain: its vault belongs to its name. What is over is counted, not kept: sums of
    # closed channels and of what was claimed on a pot; indices so that nothing looks at all rows there ever were
    """
create table payment_channel_new (
    owner text not null, chain_id integer not null, vault text not null, channel_id text not null, role text not null,
    peer_id text not null, platform text not null, payer text not null, payee text not null, signer text not null,
    nonce integer not null, reserved text not null, valid_until integer not null, claimed text not null,
    owed text not null, signed text not null, signature blob, state text not null, close_signature blob,
    opened_tx text not null, created_at integer not null,
    primary key (owner, chain_id, vault, channel_id)
) without rowid;
insert into payment_channel_new
    (owner, chain_id, vault, channel_id, role, peer_id, platform, payer, payee, signer, nonce, reserved, valid_until,
     claimed, owed, signed, signature, state, close_signature, opened_tx, created_at)
    select owner, chain_id, vault, channel_id, role, peer_id, platform, payer, payee, signer, nonce, reserved,
     valid_until, claimed, owed, signed, signature, state, close_signature, opened_tx, created_at from payment_channel;
drop table payment_channel;
alter table payment_channel_new rename to payment_channel;
create index payment_channel_live on payment_channel (created_at, nonce) where state <> 'closed';
create index payment_channel_way on payment_channel (owner, peer_id, platform, role) where state <> 'closed';
create index payment_channel_between on payment_channel (owner, role, platform, payer, payee) where state <> 'closed';
create index payment_channel_pair on payment_channel (owner, role, platform, payer, payee, created_at, nonce);
create index payment_channel_over on payment_channel (valid_until) where state = 'closed';
create table payment_channel_past (
    owner text not null, role text not null, platform text not null, payer text not null, payee text not null,
    claimed text not null,
    primary key (owner, role, platform, payer, payee)
) without rowid;
insert into payment_channel_past
    select owner, role, platform, payer, payee,
        (sum(cast(substr(claimed, 1, length(claimed) - 12) as integer))
            + sum(cast(substr(claimed, -12) as integer)) / 1000000000000)
        || printf('%012d', sum(cast(substr(claimed, -12) as integer)) % 1000000000000)
    from payment_channel where state = 'closed' group by owner, role, platform, payer, payee;
create table payment_channel_gone (
    owner text not null, chain_id integer not null, vault text not null, payer text not null, nonce integer not null,
    primary key (owner, chain_id, vault, payer)
) without rowid;
drop index payment_cover_live;
create index payment_cover_live on payment_cover (role, owner, peer_id, platform) where live = 1;
create index payment_cover_way on payment_cover (owner, peer_id, platform, role, changed_at);
create index payment_cover_over on payment_cover (changed_at) where live = 0;
drop index payment_channel_request_open;
create index payment_channel_request_open on payment_channel_request (owner, platform, peer_id) where state = 'open';
create index payment_channel_request_over on payment_channel_request (created_at) where state <> 'open';
drop index payment_channel_order_way;
create index payment_channel_order_open on payment_channel_order (seq) where done = 0;
create index payment_channel_order_way on payment_channel_order (owner, platform, payer, payee, seq);
create index payment_channel_order_over on payment_channel_order (settle_at) where done = 1;
create index payment_account_asking on payment_account (owner, peer_id, platform)
    where coalesce(invoiced, noted) <> accepted;
create index payment_account_unpaid on payment_account (owner, peer_id, platform) where accepted <> settled;
create index payment_allocation_timeout on payment_allocation (timeout) where released = 0;
create index payment_transfer_claimed on payment_transfer (at) where state = 'claimed';
create table payment_pot (
    pot text not null, payer text not null, payee text not null, taken text not null,
    primary key (pot, payer, payee)
) without rowid;
insert into payment_pot
    select pot, payer, payee,
        (sum(cast(substr(amount, 1, length(amount) - 12) as integer))
            + sum(cast(substr(amount, -12) as integer)) / 1000000000000)
        || printf('%012d', sum(cast(substr(amount, -12) as integer)) % 1000000000000)
    from payment_transfer where state = 'final' and role = 'Provider' group by pot, payer, payee;
drop index payment_transfer_pot;
""",
    # the first open order of each pair, and when the next is due
    """
create index payment_channel_order_first on payment_channel_order (owner, platform, payer, payee, seq) where done = 0;
create index payment_channel_order_due on payment_channel_order (settle_at) where done = 0;
""",
    # what a provider has sent and has no answer to
    """
create index payment_document_unanswered on payment_document (created_at)
    where state = 'RECEIVED' and role = 'Provider';
""",
    # what was accepted for how much: decimal integers in text compare by length first
    """
create index payment_document_covered on payment_document (owner, agreement_id, length(covered_at), covered_at)
    where covered_at is not null;
""",
]

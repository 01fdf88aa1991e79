-- One row for each order that anything is known of. `amount` is in the minor unit of the currency (cents for EUR); it,
-- the currency and the card are null until the order itself is heard of. The card is forgotten when it is no longer
-- needed.
create table payments (
    order_id text primary key,
    state text not null check (state in ('waiting', 'settled', 'declined', 'cancelled', 'refunded')),
    amount bigint check (amount > 0),
    currency text,
    card text,
    reserved boolean not null,
    changed_at timestamp not null
);

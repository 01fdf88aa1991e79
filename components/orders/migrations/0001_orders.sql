-- Amounts are in the minor unit of the currency (cents for EUR).
create table orders (
    id text primary key,
    state text not null check (state in ('placed', 'reserved', 'paid', 'done', 'cancelled')),
    reason text,
    amount bigint not null check (amount > 0),
    currency text not null,
    placed_at timestamp not null,
    check ((state = 'cancelled') = (reason is not null))
);

-- For the search for those that take too long.
create index orders_by_state on orders (state, placed_at);

create table order_lines (
    order_id text not null references orders (id),
    sku text not null,
    quantity bigint not null check (quantity > 0),
    price_minor bigint not null check (price_minor > 0),
    primary key (order_id, sku)
);

-- What the catalog last told of its products. A higher revision is a later state of the product.
create table prices (
    sku text primary key,
    revision bigint not null,
    price_minor bigint not null check (price_minor > 0),
    currency text not null,
    in_stock boolean not null
);

-- When the catalog was last asked for all its products: one row.
create table price_requests (
    id bigint primary key check (id = 1),
    asked_at timestamp not null
);

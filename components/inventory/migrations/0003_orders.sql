-- What is kept for orders: everything that one wants, or nothing. `cancelled` are those that were cancelled before they
-- were heard of.
create table orders (
    id text primary key,
    state text not null check (state in ('reserved', 'refused', 'released', 'shipped', 'cancelled')),
    changed_at timestamp not null
);

create table order_lines (
    order_id text not null references orders (id),
    sku text not null references stock (sku),
    quantity bigint not null check (quantity > 0),
    primary key (order_id, sku)
);

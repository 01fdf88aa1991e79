-- What can still be reserved: a reservation takes from it at once, and gives back when it is released.
create table stock (
    sku text primary key,
    available bigint not null check (available >= 0)
);

create table reservations (
    id text primary key,
    sku text not null references stock (sku),
    quantity bigint not null check (quantity > 0),
    state text not null check (state in ('held', 'released')),
    created_at timestamp not null
);

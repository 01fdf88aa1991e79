-- What is to be sent: one mail for each order and kind.
create table mails (
    order_id text not null,
    kind text not null check (kind in ('paid', 'cancelled')),
    text text not null,
    written_at timestamp not null,
    primary key (order_id, kind)
);

-- Amounts are in the minor unit of the currency (cents for EUR). Tags are single words, separated by spaces.
-- `position` is the order in which products are listed; a category comes where its first product does.
create table products (
    sku text primary key,
    position bigint not null unique,
    name text not null,
    description text not null,
    category text not null,
    tags text not null,
    price_minor bigint not null check (price_minor > 0),
    currency text not null,
    in_stock boolean not null
);

create index products_of_category on products (category, position);

-- Counts the changes of a product, so that whoever is told of them in messages knows which is the latest.
alter table products add column revision bigint not null default 1;

//! The buyers' ledger against the books of all services, and these against each other. Knows nothing of how either was
//! kept.

use std::collections::HashMap;

use super::books::Books;
use super::ledger::Entry;
use crate::report::Report;
use crate::scenario::shop::audit::describe;

/// What does not add up, in words.
#[derive(Debug, Default, PartialEq)]
pub struct Audit {
    pub lost: Vec<String>,
    pub altered: Vec<String>,
    pub unasked: Vec<String>,
    pub limbo: Vec<String>,
    pub money: Vec<String>,
    pub goods: Vec<String>,
    pub stock: Vec<String>,
    pub mails: Vec<String>,
    pub prices: Vec<String>,
    pub totals: Totals,
}

#[derive(Debug, Default, PartialEq)]
pub struct Totals {
    pub done: usize,
    pub cancelled: usize,
    pub declined: usize,
    pub refused: usize,
    pub expired: usize,
    pub refunded: usize,
    /// In cents: of orders that are done, and what is settled.
    pub sold: i64,
    pub taken: i64,
}

/// `initial` is what there was of each product before anybody came.
pub fn audit(initial: &HashMap<String, i64>, ledger: &HashMap<String, Entry>, books: &Books) -> Audit {
    let mut found = Audit::default();
    for (id, entry) in ledger {
        match (books.orders.get(id), entry.total) {
            (None, Some(_)) => found.lost.push(format!("`{id}`")),
            (Some(order), total)
                if order.lines != entry.lines || total.is_some_and(|it| it != order.amount) =>
            {
                found.altered.push(format!("`{id}`: {entry:?}, but {} for {:?}", order.amount, order.lines));
            }
            _ => {}
        }
    }
    found
        .unasked
        .extend(books.orders.keys().filter(|id| !ledger.contains_key(*id)).map(|id| format!("`{id}`")));
    for id in books.orders.keys() {
        check_order(id, books, &mut found);
    }
    let known = |id: &&String| !books.orders.contains_key(*id);
    found.money.extend(books.payments.keys().filter(known).map(|id| format!("`{id}` is no order")));
    found.goods.extend(books.reserved.keys().filter(known).map(|id| format!("`{id}` is no order")));
    check_stock(initial, books, &mut found);
    check_mails(books, &mut found);
    for (sku, offered) in &books.offered {
        let known = books.known.get(sku);
        if known != Some(offered) {
            found.prices.push(format!("`{sku}`: {offered:?} in the catalog, {known:?} in the orders"));
        }
    }
    if found.totals.sold != found.totals.taken {
        let Totals { sold, taken, .. } = found.totals;
        found.money.push(format!("{taken} taken, {sold} sold"));
    }
    found
}

/// One order against what payments and inventory know of it.
fn check_order(id: &str, books: &Books, found: &mut Audit) {
    let Some(order) = books.orders.get(id) else { return };
    let (paid, amount) =
        books.payments.get(id).map_or(("none", None), |(state, amount)| (state.as_str(), *amount));
    let (goods, lines) = match books.reserved.get(id) {
        Some((state, lines)) => (state.as_str(), lines.as_slice()),
        None => ("none", Default::default()),
    };
    let (is_paid, is_kept) = match order.state.as_str() {
        "done" => {
            found.totals.done += 1;
            found.totals.sold += order.amount;
            (paid == "settled", goods == "shipped" && lines == order.lines)
        }
        "cancelled" => {
            found.totals.cancelled += 1;
            let is_free = matches!(goods, "refused" | "released" | "cancelled");
            (matches!(paid, "declined" | "cancelled" | "refunded"), is_free)
        }
        state => return found.limbo.push(format!("`{id}` is {state}, payment {paid}, goods {goods}")),
    };
    let totals = &mut found.totals;
    totals.declined += usize::from(paid == "declined");
    totals.refunded += usize::from(paid == "refunded");
    totals.refused += usize::from(goods == "refused");
    totals.expired += usize::from(order.reason.contains("in time"));
    totals.taken += amount.filter(|_| paid == "settled").unwrap_or_default();
    // Without an amount, the payments have not heard of the order itself.
    if !is_paid || amount != Some(order.amount) {
        found.money.push(format!(
            "`{id}` is {} for {}, the payment is {paid} of {amount:?}",
            order.state, order.amount
        ));
    }
    if !is_kept {
        found.goods.push(format!(
            "`{id}` is {} with {:?}, the goods are {goods} with {lines:?}",
            order.state, order.lines
        ));
    }
}

/// What is left and what is kept for orders is what there was.
fn check_stock(initial: &HashMap<String, i64>, books: &Books, found: &mut Audit) {
    let mut kept = HashMap::<&str, i64>::new();
    for (sku, quantity) in
        books.reserved.values().filter(|(state, _)| is_kept(state)).flat_map(|(_, lines)| lines)
    {
        *kept.entry(sku).or_default() += quantity;
    }
    for (sku, initial) in initial {
        let kept = kept.get(sku.as_str()).copied().unwrap_or_default();
        let left = books.stock.get(sku).copied().unwrap_or(-1);
        if left < 0 || left + kept != *initial {
            found.stock.push(format!("`{sku}`: {initial} ≠ {left} left + {kept} kept"));
        }
    }
}

fn is_kept(state: &str) -> bool {
    matches!(state, "reserved" | "shipped")
}

/// One mail for each order, that it is paid or that it is cancelled.
fn check_mails(books: &Books, found: &mut Audit) {
    let mut kinds = HashMap::<&str, Vec<&str>>::new();
    for (order, kind) in &books.mails {
        kinds.entry(order).or_default().push(kind);
    }
    for (id, order) in &books.orders {
        let expected = if order.state == "done" { "paid" } else { "cancelled" };
        let kinds = kinds.remove(id.as_str()).unwrap_or_default();
        if kinds != [expected] {
            found.mails.push(format!("`{id}` is {}, mails: {kinds:?}", order.state));
        }
    }
    found.mails.extend(kinds.keys().map(|id| format!("`{id}` is no order")));
}

impl Audit {
    pub fn judge(&self, report: &mut Report) {
        for (what, faults) in [
            ("acknowledged orders that are lost", &self.lost),
            ("orders that are not as acknowledged or asked for", &self.altered),
            ("orders that nobody asked for", &self.unasked),
            ("orders that are neither done nor cancelled", &self.limbo),
            ("payments that do not fit their order, and money taken ≠ sold", &self.money),
            ("reservations that do not fit their order", &self.goods),
            ("products whose stock is not initial − kept", &self.stock),
            ("orders without exactly one mail of their kind", &self.mails),
            ("products whose price is not what the catalog says", &self.prices),
        ] {
            report.judge(what, &describe(faults), faults.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::books::Order;
    use super::*;

    fn lines() -> Vec<(String, i64)> {
        vec![("tea".to_owned(), 2)]
    }

    /// `a` is done, `b` was cancelled after it was paid, `c` was asked for and never came.
    fn whole() -> (HashMap<String, Entry>, Books) {
        let entry = |total| Entry { lines: lines(), total };
        let ledger = [("a", entry(Some(10))), ("b", entry(None)), ("c", entry(None))];
        let order =
            |state: &str| Order { state: state.into(), reason: String::new(), amount: 10, lines: lines() };
        let text = str::to_owned;
        let books = Books {
            orders: HashMap::from([(text("a"), order("done")), (text("b"), order("cancelled"))]),
            payments: HashMap::from([
                (text("a"), (text("settled"), Some(10))),
                (text("b"), (text("refunded"), Some(10))),
            ]),
            reserved: HashMap::from([
                (text("a"), (text("shipped"), lines())),
                (text("b"), (text("released"), lines())),
            ]),
            stock: HashMap::from([(text("tea"), 3)]),
            mails: vec![(text("a"), text("paid")), (text("b"), text("cancelled"))],
            offered: HashMap::from([(text("tea"), (1, 5))]),
            known: HashMap::from([(text("tea"), (1, 5))]),
        };
        (ledger.map(|(id, entry)| (text(id), entry)).into(), books)
    }

    fn faults(change: impl Fn(&mut HashMap<String, Entry>, &mut Books)) -> [usize; 9] {
        let (mut ledger, mut books) = whole();
        change(&mut ledger, &mut books);
        let found = audit(&HashMap::from([("tea".to_owned(), 5)]), &ledger, &books);
        let Audit { lost, altered, unasked, limbo, money, goods, stock, mails, prices, .. } = found;
        [lost, altered, unasked, limbo, money, goods, stock, mails, prices].map(|faults| faults.len())
    }

    #[test]
    fn what_adds_up_has_no_faults() {
        assert_eq!(faults(|_, _| {}), [0; 9]);
        let (ledger, books) = whole();
        let totals = audit(&HashMap::new(), &ledger, &books).totals;
        assert_eq!((totals.done, totals.refunded, totals.sold, totals.taken), (1, 1, 10, 10));
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        let order =
            |books: &mut Books, id: &str, state: &str| books.orders.get_mut(id).unwrap().state = state.into();
        let payment =
            |books: &mut Books, id: &str, state: &str| books.payments.get_mut(id).unwrap().0 = state.into();
        let goods =
            |books: &mut Books, id: &str, state: &str| books.reserved.get_mut(id).unwrap().0 = state.into();
        assert_eq!(
            faults(|ledger, _| ledger.get_mut("c").unwrap().total = Some(1)),
            [1, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            faults(|ledger, _| ledger.get_mut("a").unwrap().total = Some(1)),
            [0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            faults(|ledger, _| ledger.get_mut("b").unwrap().lines[0].1 = 1),
            [0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(faults(|ledger, _| drop(ledger.remove("b"))), [0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let limbo = faults(|_, books| order(books, "b", "reserved"));
        assert_eq!(limbo, [0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(faults(|_, books| payment(books, "a", "waiting")), [0, 0, 0, 0, 2, 0, 0, 0, 0]);
        // It is not given back, and so there is more money than was sold for.
        assert_eq!(faults(|_, books| payment(books, "b", "settled")), [0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(faults(|_, books| goods(books, "a", "reserved")), [0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(faults(|_, books| goods(books, "b", "shipped")), [0, 0, 0, 0, 0, 1, 1, 0, 0]);
        assert_eq!(faults(|_, books| *books.stock.get_mut("tea").unwrap() = 4), [0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(faults(|_, books| drop(books.mails.pop())), [0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let twice = faults(|_, books| books.mails.push(("a".into(), "paid".into())));
        assert_eq!(twice, [0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(faults(|_, books| books.known.clear()), [0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
}

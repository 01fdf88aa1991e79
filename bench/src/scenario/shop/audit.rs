//! The customers' ledger against the shop's books. It knows nothing of how either was kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ledger::{Known, Ledger};
use crate::report::Report;

/// What is in the service's tables.
#[derive(Default)]
pub struct Books {
    /// What is left of each product.
    pub stock: HashMap<String, i64>,
    pub reservations: Vec<Reservation>,
}

pub struct Reservation {
    pub id: String,
    pub sku: String,
    pub quantity: i64,
    pub is_held: bool,
}

/// What does not add up, in words.
#[derive(Debug, Default, PartialEq)]
pub struct Audit {
    pub negative: Vec<String>,
    pub unbalanced: Vec<String>,
    pub lost: Vec<String>,
    pub altered: Vec<String>,
    pub unasked: Vec<String>,
    /// Reservations whose answer never came, and that were made.
    pub made_untold: usize,
}

/// `initial` is what there was of each product before anybody came.
pub fn audit(initial: &HashMap<Arc<str>, i64>, ledger: &Ledger, books: &Books) -> Audit {
    let mut found = Audit::default();
    let mut held: HashMap<&str, i64> = HashMap::new();
    let mut seen = HashSet::new();
    for row in &books.reservations {
        if row.is_held {
            *held.entry(&row.sku).or_default() += row.quantity;
        }
        if !seen.insert(row.id.as_str()) {
            found.altered.push(format!("`{}` is there twice", row.id));
        }
        check_row(row, ledger, &mut found);
    }
    for (id, entry) in &ledger.entries {
        if entry.known != Known::Asked && !seen.contains(id.as_str()) {
            found.lost.push(format!("`{id}`, {:?}", entry.known));
        }
    }
    for (sku, initial) in initial {
        let held = held.get(&**sku).copied().unwrap_or_default();
        match books.stock.get(&**sku) {
            Some(left) if *left < 0 => found.negative.push(format!("`{sku}`: {left}")),
            Some(left) if initial - left == held => {}
            Some(left) => found.unbalanced.push(format!("`{sku}`: {initial} − {left} left ≠ {held} held")),
            None => found.lost.push(format!("the stock of `{sku}`")),
        }
    }
    found
}

fn check_row(row: &Reservation, ledger: &Ledger, found: &mut Audit) {
    let Some(entry) = ledger.entries.get(&row.id) else {
        return found.unasked.push(format!("`{}`, {} of `{}`", row.id, row.quantity, row.sku));
    };
    found.made_untold += usize::from(entry.known == Known::Asked);
    let may_be = match entry.known {
        Known::Asked | Known::Held => row.is_held,
        Known::MaybeReleased => true,
        Known::Released => !row.is_held,
    };
    if !may_be || row.quantity != entry.quantity || *row.sku != *entry.sku {
        let (known, state) = (entry.known, if row.is_held { "held" } else { "released" });
        found.altered.push(format!(
            "`{}`: {known:?} {} of `{}`, but {state} {} of `{}`",
            row.id, entry.quantity, entry.sku, row.quantity, row.sku
        ));
    }
}

impl Audit {
    pub fn judge(&self, prefix: &str, report: &mut Report) {
        for (what, faults) in [
            ("products whose stock is negative", &self.negative),
            ("products whose reservations are not initial − left", &self.unbalanced),
            ("acknowledged reservations that are lost", &self.lost),
            ("reservations that are not as acknowledged, or there twice", &self.altered),
            ("reservations that nobody asked for or that were refused", &self.unasked),
        ] {
            report.judge(&format!("{prefix}: {what}"), &describe(faults), faults.is_empty());
        }
    }
}

/// How many, and the first of them.
pub fn describe(faults: &[String]) -> String {
    match faults {
        [] => "none".into(),
        faults => {
            let first: Vec<_> = faults.iter().take(5).map(String::as_str).collect();
            format!("{} (for example: {})", faults.len(), first.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Order;
    use super::*;

    const SKU: &str = "tea";

    /// Of ten, two are held by `a`, three were released by `b`, `c` was asked for, and refused or cut.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for (id, quantity) in [("a", 2), ("b", 3), ("c", 1), ("d", 1)] {
            ledger.ask(&Order { id: id.into(), sku: SKU.into(), quantity });
        }
        ledger.note("a", Known::Held);
        ledger.note("b", Known::Released);
        ledger.refuse("d");
        ledger
    }

    fn of(left: i64, rows: &[(&str, i64, bool)]) -> Audit {
        let reservations = rows.iter().map(|(id, quantity, is_held)| Reservation {
            id: (*id).into(),
            sku: SKU.into(),
            quantity: *quantity,
            is_held: *is_held,
        });
        let books =
            Books { stock: HashMap::from([(SKU.into(), left)]), reservations: reservations.collect() };
        audit(&HashMap::from([(SKU.into(), 10)]), &ledger(), &books)
    }

    #[test]
    fn books_that_are_as_told_have_no_faults() {
        assert_eq!(of(8, &[("a", 2, true), ("b", 3, false)]), Audit::default());
        let untold = Audit { made_untold: 1, ..Audit::default() };
        assert_eq!(of(7, &[("a", 2, true), ("b", 3, false), ("c", 1, true)]), untold);
    }

    #[test]
    fn every_kind_of_fault_is_found() {
        let whole = [("a", 2, true), ("b", 3, false)];
        let faults = |audit: Audit| {
            let Audit { negative, unbalanced, lost, altered, unasked, .. } = audit;
            [negative, unbalanced, lost, altered, unasked].map(|faults| faults.len())
        };
        assert_eq!(faults(of(9, &whole)), [0, 1, 0, 0, 0], "stock was taken for nobody");
        assert_eq!(faults(of(-1, &whole)), [1, 0, 0, 0, 0]);
        assert_eq!(faults(of(10, &whole[1..])), [0, 0, 1, 0, 0], "`a` is lost");
        assert_eq!(faults(of(7, &[("a", 3, true), whole[1]])), [0, 0, 0, 1, 0], "`a` is larger");
        assert_eq!(faults(of(5, &[whole[0], ("b", 3, true)])), [0, 0, 0, 1, 0], "`b` was released");
        assert_eq!(faults(of(6, &[whole[0], whole[0], whole[1]])), [0, 0, 0, 1, 0], "`a` is there twice");
        assert_eq!(faults(of(7, &[whole[0], whole[1], ("d", 1, true)])), [0, 0, 0, 0, 1], "`d` was refused");
        let nothing = audit(&HashMap::from([(SKU.into(), 10)]), &Ledger::default(), &Books::default());
        assert_eq!(faults(nothing), [0, 0, 1, 0, 0], "the product is lost");
    }
}

//! The products of the example shop, and how they are searched and paged. Knows nothing of HTTP.

use std::{fmt, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// Products on one page: how many if nobody says, and at most.
pub const LIMIT_DEFAULT: usize = 20;
pub const LIMIT_MAX: usize = 100;

/// The catalog that is compiled in, read at the first call.
pub fn catalog() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(Catalog::compiled_in);
    &CATALOG
}

/// One thing to buy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    pub sku: &'static str,
    pub name: &'static str,
    pub description: &'static str,
    pub category: &'static str,
    pub tags: Vec<&'static str>,
    pub price: Price,
    pub in_stock: bool,
}

/// An amount in the minor unit of its currency (cents for EUR).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    pub amount: u32,
    pub currency: &'static str,
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02} {}", self.amount / 100, self.amount % 100, self.currency)
    }
}

/// A category and how many products it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Category {
    pub name: &'static str,
    pub products: usize,
}

/// What to list. Empty filters let everything through.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Words that must all occur in name, description or tags, in any case.
    pub text: Option<String>,
    pub category: Option<String>,
    /// The cursor of the page before: the `sku` of its last product.
    pub after: Option<String>,
    pub limit: Option<usize>,
}

/// A part of the matching products, in the order of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page {
    pub items: Vec<&'static Product>,
    /// Matching products on all pages together.
    pub total: usize,
    /// The cursor for the next page; none if this is the last one.
    pub next: Option<&'static str>,
}

/// What is wrong with a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SearchError {
    Limit(usize),
    Cursor(String),
    Category(String),
}

impl fmt::Display for SearchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => write!(f, "`limit` is {limit}, it must be from 1 to {LIMIT_MAX}"),
            Self::Cursor(after) => {
                write!(f, "`after` is `{after}`, which is no cursor; use the `next` of the page before")
            }
            Self::Category(name) => {
                write!(f, "there is no category `{name}`; ask `/categories` for the names")
            }
        }
    }
}

impl std::error::Error for SearchError {}

pub struct Catalog {
    products: Vec<Product>,
    /// What a search looks at, in lower case; same order as the products.
    texts: Vec<String>,
    categories: Vec<Category>,
}

impl Catalog {
    fn compiled_in() -> Self {
        // The file is part of the program and every test reads it: this cannot fail at run time.
        let products =
            serde_json::from_str(include_str!("../products.json")).expect("products.json is valid");
        Self::new(products)
    }

    fn new(products: Vec<Product>) -> Self {
        let texts = products
            .iter()
            .map(|p| format!("{}\n{}\n{}", p.name, p.description, p.tags.join("\n")).to_lowercase())
            .collect();
        let mut categories: Vec<Category> = Vec::new();
        for product in &products {
            match categories.iter_mut().find(|category| category.name == product.category) {
                Some(category) => category.products += 1,
                None => categories.push(Category { name: product.category, products: 1 }),
            }
        }
        Self { products, texts, categories }
    }

    pub fn products(&self) -> &[Product] {
        &self.products
    }

    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The product with this `sku`, in any case.
    pub fn product(&self, sku: &str) -> Option<&Product> {
        self.products.iter().find(|product| product.sku.eq_ignore_ascii_case(sku))
    }

    pub fn search(&'static self, search: &Search) -> Result<Page, SearchError> {
        let limit = search.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(SearchError::Limit(limit));
        }
        let category = filled(&search.category);
        if let Some(name) = category
            && !self.categories.iter().any(|category| category.name == name)
        {
            return Err(SearchError::Category(name.to_owned()));
        }
        let start = match filled(&search.after) {
            None => 0,
            Some(after) => match self.products.iter().position(|product| product.sku == after) {
                Some(index) => index + 1,
                None => return Err(SearchError::Cursor(after.to_owned())),
            },
        };

        let text = search.text.as_deref().unwrap_or("").to_lowercase();
        let words: Vec<&str> = text.split_whitespace().collect();
        let matching = self.products.iter().zip(&self.texts).enumerate().filter(|(_, (product, text))| {
            category.is_none_or(|name| product.category == name)
                && words.iter().all(|word| text.contains(word))
        });

        let mut page = Page { items: Vec::new(), total: 0, next: None };
        let mut more = false;
        for (index, (product, _)) in matching {
            page.total += 1;
            match page.items.len() {
                _ if index < start => {}
                count if count < limit => page.items.push(product),
                _ => more = true,
            }
        }
        if more {
            page.next = page.items.last().map(|product| product.sku);
        }
        Ok(page)
    }
}

fn filled(filter: &Option<String>) -> Option<&str> {
    filter.as_deref().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn search(text: &str, category: &str, after: &str, limit: usize) -> Result<Page, SearchError> {
        catalog().search(&Search {
            text: Some(text.into()),
            category: Some(category.into()),
            after: Some(after.into()),
            limit: Some(limit),
        })
    }

    fn skus(page: &Page) -> Vec<&str> {
        page.items.iter().map(|product| product.sku).collect()
    }

    #[test]
    fn every_product_has_a_name_a_price_and_a_sku_of_its_own() {
        let products = catalog().products();
        assert!(products.len() >= 50);
        let skus: HashSet<_> = products.iter().map(|product| product.sku).collect();
        assert_eq!(skus.len(), products.len());
        assert!(products.iter().all(|product| !product.name.is_empty() && product.price.amount > 0));
    }

    #[test]
    fn pages_joined_together_are_the_whole_catalog() {
        for limit in [1, 7, 20, 100] {
            let mut seen = Vec::new();
            let mut after = String::new();
            loop {
                let page = search("", "", &after, limit).unwrap();
                assert!(page.items.len() <= limit);
                assert_eq!(page.total, catalog().products().len());
                seen.extend(skus(&page).into_iter().map(str::to_owned));
                match page.next {
                    Some(next) => after = next.to_owned(),
                    None => break,
                }
            }
            let all: Vec<_> = catalog().products().iter().map(|product| product.sku).collect();
            assert_eq!(seen, all, "limit {limit}");
        }
    }

    #[test]
    fn a_search_needs_every_word_and_ignores_case() {
        let page = search("GREEN rice", "", "", 100).unwrap();
        assert_eq!(skus(&page), ["TEA-007"]);
        assert_eq!(search("green no-such-word", "", "", 100).unwrap().total, 0);
    }

    #[test]
    fn a_category_lists_what_it_counts() {
        for category in catalog().categories() {
            assert_eq!(search("", category.name, "", 100).unwrap().items.len(), category.products);
        }
    }

    #[test]
    fn a_last_page_that_is_exactly_full_has_no_next() {
        let tea = catalog().categories()[0];
        assert_eq!(search("", tea.name, "", tea.products).unwrap().next, None);
        assert!(search("", tea.name, "", tea.products - 1).unwrap().next.is_some());
    }

    #[test]
    fn a_search_that_makes_no_sense_is_refused() {
        assert_eq!(search("", "", "", 0), Err(SearchError::Limit(0)));
        assert_eq!(search("", "", "", 101), Err(SearchError::Limit(101)));
        assert_eq!(search("", "", "nowhere", 10), Err(SearchError::Cursor("nowhere".into())));
        assert_eq!(search("", "boats", "", 10), Err(SearchError::Category("boats".into())));
    }

    #[test]
    fn a_price_shows_two_decimals() {
        assert_eq!(Price { amount: 1205, currency: "EUR" }.to_string(), "12.05 EUR");
    }
}

//! The products in the database, and how they are searched and paged. Knows nothing of HTTP but what a refusal says.

use serde::{Deserialize, Serialize};
use stoa::{
    Problem,
    sql::{self, Query, Transaction},
};

/// Products on one page: how many if nobody says, and at most.
const LIMIT_DEFAULT: i64 = 20;
const LIMIT_MAX: i64 = 100;

/// One thing to buy.
#[derive(Debug, PartialEq, Serialize)]
pub struct Product {
    sku: String,
    name: String,
    description: String,
    category: String,
    tags: Vec<String>,
    price: Price,
    in_stock: bool,
}

/// An amount in the minor unit of its currency (cents for EUR).
#[derive(Debug, PartialEq, Serialize)]
pub struct Price {
    pub amount: i64,
    pub currency: String,
}

/// A category and how many products it has.
#[derive(Serialize, Deserialize)]
pub struct Category {
    name: String,
    products: i64,
}

/// What to list. Empty filters let everything through.
#[derive(Deserialize)]
pub struct Search {
    /// Words that must all occur in name, description or tags, in any case.
    q: Option<String>,
    category: Option<String>,
    /// The cursor of the page before: the `sku` of its last product.
    after: Option<String>,
    limit: Option<i64>,
}

/// A part of the matching products, in the order of the catalog.
#[derive(Serialize)]
pub struct Page {
    items: Vec<Product>,
    /// Matching products on all pages together.
    total: i64,
    /// The cursor for the next page; none if this is the last one.
    next: Option<String>,
}

const COLUMNS: &str = "sku, name, description, category, tags, price_minor, currency, in_stock";

/// The product with this `sku`, in any case.
pub async fn product(sku: &str) -> Result<Option<Product>, sql::Error> {
    let query = sql::query(format!("select {COLUMNS} from products where sku = $1"));
    let row: Option<Row> = query.bind(sku.to_ascii_uppercase()).fetch_optional().await?;
    Ok(row.map(Product::from))
}

pub async fn categories() -> Result<Vec<Category>, sql::Error> {
    let by_first_product = "select category as name, count(*) as products from products \
                            group by category order by min(position)";
    sql::query(by_first_product).fetch_all().await
}

pub async fn is_empty() -> Result<bool, sql::Error> {
    let first: Option<String> = sql::query("select sku from products limit 1").fetch_optional().await?;
    Ok(first.is_none())
}

impl Search {
    /// The page that is asked for. Its statements are one transaction, so that total and items belong together.
    pub async fn page(&self) -> Result<Page, Problem> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            let detail = format!("`limit` is {limit}, it must be from 1 to {LIMIT_MAX}");
            return Err(Problem::bad_request(detail));
        }
        let filter = Filter::new(self.q.as_deref().unwrap_or(""), filled(&self.category));
        sql::read_only(async |tx| {
            if let Some(name) = filled(&self.category) {
                check_category(tx, name).await?;
            }
            let position = match filled(&self.after) {
                Some(after) => position_of(tx, after).await?,
                None => 0,
            };
            let total = filter.count(tx).fetch_scalar().await?;
            // One more than asked for: it tells whether there is a next page.
            let rows: Vec<Row> = filter.list(tx, position, limit + 1).fetch_all().await?;
            Ok(Page::new(rows, total, limit as usize))
        })
        .await
    }
}

impl Page {
    fn new(rows: Vec<Row>, total: i64, limit: usize) -> Self {
        let more = rows.len() > limit;
        let items: Vec<Product> = rows.into_iter().take(limit).map(Product::from).collect();
        let next = items.last().filter(|_| more).map(|product| product.sku.clone());
        Self { items, total, next }
    }
}

async fn check_category(tx: &Transaction, name: &str) -> Result<(), Problem> {
    let query = tx.query("select category from products where category = $1 limit 1").bind(name);
    match query.fetch_optional::<String>().await? {
        Some(_) => Ok(()),
        None => Err(Problem::bad_request(format!(
            "there is no category `{name}`; ask `/categories` for the names"
        ))),
    }
}

async fn position_of(tx: &Transaction, after: &str) -> Result<i64, Problem> {
    let query = tx.query("select position from products where sku = $1").bind(after);
    query.fetch_optional().await?.ok_or_else(|| {
        Problem::bad_request(format!(
            "`after` is `{after}`, which is no cursor; use the `next` of the page before"
        ))
    })
}

/// The part of a statement that says which products match, with its parameters from `$1` on.
struct Filter {
    condition: String,
    parameters: Vec<String>,
}

impl Filter {
    fn new(text: &str, category: Option<&str>) -> Self {
        let mut filter = Self { condition: "1 = 1".to_owned(), parameters: Vec::new() };
        if let Some(name) = category {
            filter.and("category =", name.to_owned(), "");
        }
        for word in text.to_lowercase().split_whitespace() {
            let text = "lower(name || ' ' || description || ' ' || tags) like";
            filter.and(text, format!("%{}%", escaped(word)), " escape '!'");
        }
        filter
    }

    fn and(&mut self, before: &str, parameter: String, behind: &str) {
        self.parameters.push(parameter);
        let number = self.parameters.len();
        self.condition.push_str(&format!(" and {before} ${number}{behind}"));
    }

    fn count<'a>(&self, tx: &'a Transaction) -> Query<'a> {
        self.bind(tx.query(format!("select count(*) from products where {}", self.condition)))
    }

    fn list<'a>(&self, tx: &'a Transaction, position: i64, limit: i64) -> Query<'a> {
        let next = self.parameters.len() + 1;
        let query = tx.query(format!(
            "select {COLUMNS} from products where {} and position > ${next} order by position limit ${}",
            self.condition,
            next + 1
        ));
        self.bind(query).bind(position).bind(limit)
    }

    fn bind<'a>(&self, query: Query<'a>) -> Query<'a> {
        self.parameters.iter().fold(query, |query, parameter| query.bind(parameter))
    }
}

/// A word that stands for itself in a `like` pattern.
fn escaped(word: &str) -> String {
    word.replace('!', "!!").replace('%', "!%").replace('_', "!_")
}

fn filled(filter: &Option<String>) -> Option<&str> {
    filter.as_deref().filter(|text| !text.is_empty())
}

/// A product as the table has it.
#[derive(Deserialize)]
struct Row {
    sku: String,
    name: String,
    description: String,
    category: String,
    /// Words with spaces between them.
    tags: String,
    price_minor: i64,
    currency: String,
    in_stock: bool,
}

impl From<Row> for Product {
    fn from(row: Row) -> Self {
        Self {
            sku: row.sku,
            name: row.name,
            description: row.description,
            category: row.category,
            tags: row.tags.split_whitespace().map(str::to_owned).collect(),
            price: Price { amount: row.price_minor, currency: row.currency },
            in_stock: row.in_stock,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn brush_pen(sku: &str) -> Row {
        Row {
            sku: sku.into(),
            name: "Brush Pen Black".into(),
            description: "A flexible tip and waterproof ink, for letters and quick sketches.".into(),
            category: "pens".into(),
            tags: "brush art".into(),
            price_minor: 790,
            currency: "EUR".into(),
            in_stock: true,
        }
    }

    #[test]
    fn a_product_keeps_its_shape() {
        assert_eq!(
            serde_json::to_value(Product::from(brush_pen("PEN-008"))).unwrap(),
            json!({
                "sku": "PEN-008",
                "name": "Brush Pen Black",
                "description": "A flexible tip and waterproof ink, for letters and quick sketches.",
                "category": "pens",
                "tags": ["brush", "art"],
                "price": { "amount": 790, "currency": "EUR" },
                "in_stock": true,
            })
        );
    }

    #[test]
    fn a_page_has_a_next_only_if_there_is_more() {
        let page = |limit| Page::new(["a", "b"].map(brush_pen).into(), 9, limit);
        assert_eq!((page(1).items.len(), page(1).next.as_deref()), (1, Some("a")));
        assert_eq!((page(2).items.len(), page(2).next), (2, None));
        assert_eq!(Page::new(Vec::new(), 0, 5).next, None);
    }

    #[test]
    fn a_filter_numbers_its_parameters() {
        let filter = Filter::new("GREEN  100%", Some("tea"));
        assert_eq!(
            filter.condition,
            "1 = 1 and category = $1 \
             and lower(name || ' ' || description || ' ' || tags) like $2 escape '!' \
             and lower(name || ' ' || description || ' ' || tags) like $3 escape '!'"
        );
        assert_eq!(filter.parameters, ["tea", "%green%", "%100!%%"]);
        assert_eq!(Filter::new(" ", None).condition, "1 = 1");
    }

    #[test]
    fn a_pattern_takes_every_character_for_itself() {
        assert_eq!(escaped("a!b%c_d"), "a!!b!%c!_d");
    }

    /// The storefront has its products compiled in: whoever changes one of the two is told of the other.
    #[test]
    fn the_seed_has_the_products_that_the_storefront_shows() {
        let seed = include_str!("../migrations/0002_seed.sql");
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        for (index, product) in shop_catalog::catalog().products().iter().enumerate() {
            let (first, second) = (
                format!(
                    "({}, {}, {}, {},",
                    quoted(product.sku),
                    index + 1,
                    quoted(product.name),
                    quoted(product.description)
                ),
                format!(
                    "{}, {}, {}, {}, {})",
                    quoted(product.category),
                    quoted(&product.tags.join(" ")),
                    product.price.amount,
                    quoted(product.price.currency),
                    product.in_stock
                ),
            );
            let row = format!("{first}\n     {second}");
            assert!(seed.contains(&row), "0002_seed.sql has no row\n{row}");
        }
    }
}

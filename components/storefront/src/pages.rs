//! The pages as HTML text. Everything that is not written here goes through `html`.

use std::fmt::{Display, Write};

use shop_catalog::{Page, Product, Search, catalog};

use crate::{
    assets,
    html::{QueryValue, Text},
};

pub const PRODUCTS_PER_PAGE: usize = 12;

pub fn home(search: &Search, page: &Page) -> String {
    let text = search.text.as_deref().unwrap_or("");
    let category = search.category.as_deref().unwrap_or("");

    let mut main = String::with_capacity(8 * 1024);
    put(&mut main, search_form(text, category));
    put(&mut main, category_links(text, category));
    if search.after.is_none() && text.is_empty() && category.is_empty() {
        put(&mut main, featured_tile());
    }
    match page.total {
        0 => put(&mut main, "<p class=\"note\">Nothing found. Try fewer words.</p>"),
        1 => put(&mut main, "<p class=\"note\">One product</p>"),
        total => put(&mut main, format_args!("<p class=\"note\">{total} products</p>")),
    }
    put(&mut main, "<ul class=\"cards\">");
    for product in &page.items {
        put(&mut main, card(product));
    }
    put(&mut main, "</ul><nav class=\"pages\">");
    if search.after.is_some() {
        put(&mut main, format_args!("<a href=\"{}\">First page</a>", home_address(text, category, None)));
    }
    if let Some(next) = page.next {
        let address = home_address(text, category, Some(next));
        put(&mut main, format_args!("<a rel=\"next\" href=\"{address}\">Next page</a>"));
    }
    put(&mut main, "</nav>");
    layout("All things for a quiet hour", &main)
}

pub fn product(product: &Product) -> String {
    let Product { sku, name, description, category, price, .. } = product;
    let mut main = format!(
        "<article class=\"product\"><p class=\"category\"><a href=\"{address}\">{category}</a></p>\
         <h1>{name}</h1><p>{description}</p><p class=\"price\">{price}</p><p class=\"stock\">{stock}</p>",
        address = home_address("", category, None),
        category = Text(category),
        name = Text(name),
        description = Text(description),
        stock = if product.in_stock { "In stock" } else { "Sold out, back soon" },
    );
    put(&mut main, "<ul class=\"tags\">");
    for tag in &product.tags {
        let address = home_address(tag, "", None);
        put(&mut main, format_args!("<li><a href=\"{address}\">{}</a></li>", Text(tag)));
    }
    put(&mut main, format_args!("</ul><p class=\"note\">No. {}</p></article>", Text(sku)));
    layout(name, &main)
}

pub fn not_found() -> String {
    layout("Not here", "<h1>Not here</h1><p>This page does not exist. <a href=\"/\">Back to the shop</a></p>")
}

pub fn refused(reason: &str) -> String {
    let main =
        format!("<h1>That did not work</h1><p>{}. <a href=\"/\">Back to the shop</a></p>", Text(reason));
    layout("That did not work", &main)
}

fn layout(title: &str, main: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title} · The Covered Street</title>\
         <link rel=\"icon\" type=\"image/svg+xml\" href=\"{favicon}\">\
         <link rel=\"stylesheet\" href=\"{style}\"><script src=\"{script}\" defer></script></head>\
         <body><header><a href=\"/\"><img src=\"{logo}\" alt=\"\" width=\"40\" height=\"40\">\
         The Covered Street</a></header><main>{main}</main>\
         <footer>Tea, paper, pens and books. An example shop made of small services.</footer></body></html>\n",
        title = Text(title),
        favicon = assets::address("favicon.svg"),
        style = assets::address("style.css"),
        script = assets::address("live.js"),
        logo = assets::address("logo.svg"),
    )
}

fn search_form(text: &str, category: &str) -> String {
    let mut form = format!(
        "<form class=\"search\" action=\"/\" role=\"search\">\
         <input type=\"search\" name=\"q\" value=\"{}\" placeholder=\"Search the shop\" aria-label=\"Search\">",
        Text(text)
    );
    if !category.is_empty() {
        put(
            &mut form,
            format_args!("<input type=\"hidden\" name=\"category\" value=\"{}\">", Text(category)),
        );
    }
    put(&mut form, "<button>Search</button></form>");
    form
}

fn category_links(text: &str, current: &str) -> String {
    let mut links = String::from("<nav class=\"categories\" aria-label=\"Categories\">");
    let everything = ("", "everything", catalog().products().len());
    let categories =
        catalog().categories().iter().map(|category| (category.name, category.name, category.products));
    for (name, label, count) in std::iter::once(everything).chain(categories) {
        let mark = if name == current { " aria-current=\"true\"" } else { "" };
        let address = home_address(text, name, None);
        put(
            &mut links,
            format_args!("<a href=\"{address}\"{mark}>{} <small>{count}</small></a>", Text(label)),
        );
    }
    links.push_str("</nav>");
    links
}

fn featured_tile() -> String {
    let Some(product) = catalog().products().first() else {
        return String::new();
    };
    format!(
        "<aside class=\"featured\" id=\"featured\"><small>On the counter</small> \
         <a href=\"/p/{}\">{}</a> <span class=\"price\">{}</span></aside>",
        QueryValue(product.sku),
        Text(product.name),
        product.price
    )
}

fn card(product: &Product) -> String {
    format!(
        "<li class=\"card\"><a href=\"/p/{sku}\"><h2>{name}</h2></a><p>{description}</p>\
         <p class=\"price\">{price}{stock}</p></li>",
        sku = QueryValue(product.sku),
        name = Text(product.name),
        description = Text(product.description),
        price = product.price,
        stock = if product.in_stock { "" } else { " <small>sold out</small>" },
    )
}

/// The address of a list, ready for an attribute.
fn home_address(text: &str, category: &str, after: Option<&str>) -> String {
    let mut address = String::from("/");
    let mut separator = '?';
    for (name, value) in [("q", text), ("category", category), ("after", after.unwrap_or(""))] {
        if !value.is_empty() {
            put(&mut address, format_args!("{separator}{name}={}", QueryValue(value)));
            separator = '&';
        }
    }
    // As HTML wants it: the address only ever stands in an attribute.
    address.replace('&', "&amp;")
}

fn put(page: &mut String, part: impl Display) {
    // A string takes everything.
    _ = write!(page, "{part}");
}

//! `stoa publish`: publishes a message, as the operator.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;
use stoa::limits::ADMIN_MESSAGE_BYTES_MAX;
use stoa::subject::Subject;

use super::client::{AdminArgs, Ask, Client};
use super::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the message is about, such as `orders.placed`
    subject: Subject,
    /// Its body; `-` reads it from standard input [default: empty]
    body: Option<String>,
    /// Read the body from a file
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    file: Option<PathBuf>,
    /// Messages of one key are handled in their order
    #[arg(long)]
    key: Option<String>,
    /// A header; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Deserialize)]
struct Published {
    id: String,
    subscriptions: usize,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let subject = &args.subject;
    let mut message = json!({ "subject": subject, "key": args.key, "headers": args.headers });
    let (name, body) = match String::from_utf8(body(args)?) {
        Ok(text) => ("body", text),
        Err(bytes) => ("body_base64", BASE64.encode(bytes.as_bytes())),
    };
    if let Some(fields) = message.as_object_mut() {
        fields.insert(name.to_owned(), body.into());
    }
    let ask = Ask::post("/v1/messages", "application/json", message.to_string());
    let answer = Client::new(&args.admin)?.ask(ask).with_context(|| format!("publish to `{subject}`"))?;
    if args.admin.json {
        return output::line(&answer.text());
    }
    let Published { id, subscriptions } = answer.read()?;
    output::line(&match subscriptions {
        0 => format!("{id}: published, and kept nowhere: nobody subscribes to `{subject}`"),
        1 => format!("{id}: published to 1 subscription"),
        count => format!("{id}: published to {count} subscriptions"),
    })
}

fn body(args: &Args) -> anyhow::Result<Vec<u8>> {
    match (&args.file, args.body.as_deref()) {
        (Some(path), _) => {
            let shown = path.display();
            let file = File::open(path).with_context(|| format!("open `{shown}`"))?;
            read(file).with_context(|| format!("read `{shown}`"))
        }
        (None, Some("-")) => read(io::stdin().lock()).context("read standard input"),
        (None, body) => Ok(body.unwrap_or_default().into()),
    }
}

/// Reads no more than the host would take.
fn read(source: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    source.take(ADMIN_MESSAGE_BYTES_MAX as u64).read_to_end(&mut body)?;
    if body.len() >= ADMIN_MESSAGE_BYTES_MAX {
        bail!("it is too large for a message");
    }
    Ok(body)
}

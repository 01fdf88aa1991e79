//! A host with the fixture `sql` on it, and what a test says to it.

use serde_json::{Value as Json, json};

use super::place::Place;
use crate::support::{Answer, Bundle, Host, full, request};

/// Tables with a constraint of each kind, in what both databases understand.
pub const SCHEMA: &str = "
    create table t (
        id bigint primary key,
        name text not null,
        n bigint constraint no_debt check (n >= 0),
        word text unique
    );
    create table child (id bigint primary key, t_id bigint not null references t (id));
";

/// One service of the fixture, its host and its database. The order of the fields is that of their end.
pub struct World {
    pub host: Host,
    pub service: String,
    pub place: Place,
}

impl Place {
    /// The fixture as a service with [`SCHEMA`].
    pub fn bundle(&self) -> Bundle {
        self.empty_bundle().migration("0001_schema.sql", SCHEMA)
    }

    /// The fixture as a service whose database is empty.
    pub fn empty_bundle(&self) -> Bundle {
        Bundle::of("sql").named(&self.name("sql")).with("[database]")
    }

    pub async fn start(self) -> World {
        let bundle = self.bundle();
        self.serve(&bundle).await
    }

    /// With these `[limits]`.
    pub async fn start_within(self, limits: &str) -> World {
        let bundle = self.bundle().with(&format!("[limits]\n{limits}"));
        self.serve(&bundle).await
    }

    pub async fn serve(self, bundle: &Bundle) -> World {
        let host = self.host(std::slice::from_ref(bundle)).await;
        World { host, service: bundle.name.clone(), place: self }
    }
}

impl World {
    pub async fn ask(&self, path: &str, body: &Json) -> Answer {
        self.host.send(post(&self.service, path, body)).await
    }

    /// What a statement gives, or its error as the contract has it.
    pub async fn outcome(&self, path: &str, body: &Json) -> Result<Json, Json> {
        outcome(&self.ask(path, body).await)
    }

    pub async fn fetch(&self, sql: &str, params: Json) -> Result<Json, Json> {
        self.outcome("/fetch", &json!({"sql": sql, "params": params})).await
    }

    pub async fn execute(&self, sql: &str, params: Json) -> Result<u64, Json> {
        let done = self.outcome("/execute", &json!({"sql": sql, "params": params})).await?;
        Ok(done["affected"].as_u64().expect("a number of rows"))
    }

    /// Runs a statement that must work.
    pub async fn run(&self, sql: &str) -> u64 {
        self.execute(sql, json!([])).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The rows of a statement that must work, without their types.
    pub async fn rows(&self, sql: &str) -> Json {
        let table = self.fetch(sql, json!([])).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        plain(&table)
    }

    /// Runs steps in a transaction that can be begun; what came of each.
    pub async fn script(&self, steps: Json) -> Vec<Json> {
        self.script_as("read-write", steps).await
    }

    pub async fn script_as(&self, access: &str, steps: Json) -> Vec<Json> {
        let outcome = self.outcome("/script", &json!({"access": access, "steps": steps})).await;
        let outcomes = outcome.unwrap_or_else(|error| panic!("the transaction was not begun: {error}"));
        outcomes.as_array().expect("a list").clone()
    }

    /// The database answers at once, and another transaction may write.
    pub async fn is_well(&self, after: &str) {
        let answer = self.fetch("select count(*) from t", json!([])).await;
        assert!(answer.is_ok(), "after {after}, a fetch gave {answer:?}");
        let steps = json!([insert(4711), {"op": "rollback"}]);
        let outcome = self.outcome("/script", &json!({"steps": steps})).await;
        let done = json!([{"affected": 1}, {"done": "rollback"}]);
        assert_eq!(outcome, Ok(done), "after {after}");
    }
}

/// A request of JSON.
pub fn post(service: &str, path: &str, body: &Json) -> http::Request<crate::support::Body> {
    let request = request("POST", service, path).header("content-type", "application/json");
    request.body(full(body.to_string())).expect("a request")
}

/// What the fixture answers: 200, or 422 with an error of the contract.
pub fn outcome(answer: &Answer) -> Result<Json, Json> {
    match answer.status {
        200 => Ok(answer.json()),
        422 => Err(answer.json()),
        _ => panic!("neither a result nor an error of the contract: {answer:?}"),
    }
}

/// The rows of a table as the bare values.
pub fn plain(table: &Json) -> Json {
    let cells = |row: &Json| -> Json {
        row.as_array().expect("a row").iter().map(|cell| cell["v"].clone()).collect()
    };
    table["rows"].as_array().unwrap_or_else(|| panic!("no rows: {table}")).iter().map(cells).collect::<Json>()
}

pub fn integer(number: i64) -> Json {
    json!({"t": "integer", "v": number})
}

pub fn text(text: &str) -> Json {
    json!({"t": "text", "v": text})
}

/// A step of a script.
pub fn execute(sql: &str) -> Json {
    json!({"op": "execute", "sql": sql})
}

pub fn fetch(sql: &str) -> Json {
    json!({"op": "fetch", "sql": sql})
}

/// A step that adds a row to `t`.
pub fn insert(id: i64) -> Json {
    execute(&format!("insert into t (id, name) values ({id}, 'row')"))
}

/// The numbers from 1, as many as there are to be.
pub fn numbers(count: u32) -> String {
    format!(
        "with recursive c(n) as (select 1 union all select n + 1 from c where n < {count}) select n from c"
    )
}

/// A statement that never ends by itself.
pub const ENDLESS: &str =
    "with recursive c(n) as (select 1 union all select n + 1 from c where n > 0) select count(*) from c";

//! The dead letters of a service, by the admin API.

use super::world::{Dead, World};
use crate::support::{empty, full, until};
use serde_json::Value as Json;

impl World {
    /// The dead letters of the subscriber, the oldest first.
    pub async fn dead(&self) -> Vec<Dead> {
        let path = format!("/v1/services/{}/dead", self.subscriber);
        let rows = self.host.admin("GET", &format!("{path}?limit=1000"), empty()).await;
        if rows.status == 404 {
            return Vec::new();
        }
        let mut letters = Vec::new();
        for row in rows.json().as_array().expect("a list") {
            let answer = self.host.admin("GET", &format!("{path}/{}", row["number"]), empty()).await;
            // Somebody may have taken it out in between.
            if answer.status == 200 {
                letters.push(letter(&answer.json()));
            }
        }
        letters
    }

    /// Waits until a message is a dead letter of the subscriber.
    pub async fn dies(&self, id: &str) -> Dead {
        until(&format!("message {id} is a dead letter"), async || {
            self.dead().await.into_iter().find(|letter| letter.id == id)
        })
        .await
    }

    /// Gives dead letters of the subscriber another chance; answers how many there were.
    pub async fn redrive(&self, which: &Json) -> u64 {
        self.change("redrive", which).await
    }

    pub async fn discard(&self, which: &Json) -> u64 {
        self.change("discard", which).await
    }

    async fn change(&self, what: &str, which: &Json) -> u64 {
        let path = format!("/v1/services/{}/dead/{what}", self.subscriber);
        let answer = self.host.admin("POST", &path, full(which.to_string())).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["count"].as_u64().expect("a number")
    }

    /// Messages that wait for the subscriber.
    pub async fn waiting(&self) -> u64 {
        let answer = self.host.admin("GET", "/v1/messages", empty()).await.json();
        let rows = answer.as_array().expect("a list").iter();
        rows.filter(|row| row["service"] == *self.subscriber).filter_map(|row| row["waiting"].as_u64()).sum()
    }
}

fn letter(shown: &Json) -> Dead {
    let failures = shown["failures"].as_array().unwrap_or_else(|| panic!("no failures: {shown}"));
    let reason = |failure: &Json| failure["reason"].as_str().expect("a reason").to_owned();
    Dead {
        number: shown["number"].as_i64().expect("a number"),
        id: shown["id"].as_str().expect("an id").to_owned(),
        reasons: failures.iter().map(reason).collect(),
        attempts: failures.iter().filter_map(|failure| failure["attempt"].as_i64()).collect(),
    }
}

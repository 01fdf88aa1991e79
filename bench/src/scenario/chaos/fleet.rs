//! The services of the shop as bundles, each in two releases, and what takes the place of one of them for a while.

use anyhow::Result;

use crate::bundle::{Bundle, MESSAGES, Places};

/// The folders of the services in `components`.
pub const SERVICES: [&str; 5] = ["catalog", "inventory", "orders", "payments", "notifications"];

pub const CATALOG: usize = 0;
pub const INVENTORY: usize = 1;
pub const ORDERS: usize = 2;
pub const PAYMENTS: usize = 3;
pub const NOTIFICATIONS: usize = 4;

/// Publishes `orders.expire` when it is told to.
pub const CLOCK: &str = "clock";

/// Whatever is not paid when the clock ticks is cancelled, wherever its goods and its money are by then.
const EXPIRE_AFTER_SECONDS: u32 = 0;

/// What a mail waits for is not lost however long it takes.
const PATIENT: &str =
    "[[subscription]]\nmax_attempts = 100000\nretry_after = \"100ms\"\nretry_after_max = \"2s\"\n";

pub struct Fleet {
    /// The names under which the services are deployed.
    pub names: [String; 5],
    /// What serves at the beginning.
    pub first: Vec<Bundle>,
    /// Both releases of each service, packed.
    pub releases: Vec<[Vec<u8>; 2]>,
    /// In the place of the notifications: traps at every message.
    pub trapping: Vec<u8>,
}

impl Fleet {
    pub fn build(places: &Places, name: impl Fn(&str) -> String) -> Result<Self> {
        let names = SERVICES.map(&name);
        let (mut first, mut releases) = (Vec::new(), Vec::new());
        for (service, name) in SERVICES.into_iter().zip(&names) {
            let both = [release(places, service, name, 1)?, release(places, service, name, 2)?];
            releases.push([both[0].tar()?, both[1].tar()?]);
            first.extend(both.into_iter().take(1));
        }
        let tables = "[database]\n[messaging]\npublish = [\"orders.expire\"]\n";
        first.push(Bundle::new(&name(CLOCK), places.component(MESSAGES)?, &["/publish"], tables));
        let tables = "[settings]\ntrap = \"every\"\n[messaging]\npublish = []\n";
        let service = SERVICES[NOTIFICATIONS];
        let trapping = Bundle::example(places, service, &names[NOTIFICATIONS], tables)?
            .with_words("[[subscription]]\n", PATIENT)?
            .with_component(places.component(MESSAGES)?);
        Ok(Self { names, first, releases, trapping: trapping.tar()? })
    }
}

fn release(places: &Places, service: &str, name: &str, number: u32) -> Result<Bundle> {
    let settings = format!("[settings]\nnumber = {number}\n");
    if service == SERVICES[ORDERS] {
        let expire = format!("\nexpire_after_seconds = {EXPIRE_AFTER_SECONDS}\nnumber = {number}\n");
        return Bundle::example(places, service, name, "")?
            .with_words("\nexpire_after_seconds = 900\n", &expire);
    }
    let bundle = Bundle::example(places, service, name, &settings)?;
    if service == SERVICES[NOTIFICATIONS] {
        return bundle.with_words("[[subscription]]\n", PATIENT);
    }
    Ok(bundle)
}

//! The manifest's rules, one line of input against one line of answer.

use super::*;
use crate::limits::ByteCount;

const FULL: &str = r#"
name = "orders"
component = "../target/wasm32-wasip2/release/orders.wasm"
description = "Places and tracks orders"

[build]
command = "cargo build --release"
watch = ["src", "Cargo.toml"]

[[route]]
path = "/orders/{*rest}"
methods = ["GET", "POST", "GET"]
host = "Shop.example.com"

[[route]]
path = "/"

[health]
path = "/health"

[outbound]
allow = ["https://api.payments.example", "http://localhost:9000"]

[settings]
currency = "EUR"
page = 20
rate = 0.5
strict = true

[secrets]
card_key = { env = "CARD_KEY" }

[instances]
policy = "reuse"
max = 8
concurrency = 16
idle = "5s"
retire_after = 3

[limits]
memory = "32MiB"
request_timeout = "2s"
"#;

const MINIMAL: &str = "name = 'a'\ncomponent = 'a.wasm'\n";

fn verdict(text: &str) -> String {
    Manifest::parse(text).map_or_else(|error| error.to_string(), |_| "accepted".to_owned())
}

/// `rest` follows the two lines that every manifest needs, so it starts at line 3.
fn check(rest: &str, expected: &str) {
    assert_eq!(verdict(&format!("{MINIMAL}{rest}")), expected, "for:\n{rest}");
}

#[test]
fn every_key_is_read() -> anyhow::Result<()> {
    let manifest = Manifest::parse(FULL)?;
    assert_eq!(manifest.name.as_str(), "orders");
    assert_eq!(manifest.component, PathBuf::from("../target/wasm32-wasip2/release/orders.wasm"));
    assert_eq!(manifest.build.as_ref().map(|build| build.watch.len()), Some(2));
    let routes: Vec<_> =
        manifest.routes.iter().map(|r| (r.path.as_str(), r.methods.len(), r.host.as_deref())).collect();
    assert_eq!(routes, [("/orders/{*rest}", 2, Some("shop.example.com")), ("/", 0, None)]);
    let settings: Vec<_> = manifest.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(settings, ["currency=EUR", "page=20", "rate=0.5", "strict=true"]);
    assert_eq!(manifest.secrets.get("card_key").map(|secret| secret.env.as_str()), Some("CARD_KEY"));
    let instances =
        Instances { policy: Policy::Reuse, max: 8, concurrency: 16, idle: Span::seconds(5), retire_after: 3 };
    assert_eq!(manifest.instances, instances);
    assert_eq!(
        (manifest.limits.memory, manifest.limits.request_timeout),
        (ByteCount::mib(32), Span::seconds(2))
    );
    Ok(())
}

#[test]
fn what_is_left_out_has_its_default() -> anyhow::Result<()> {
    let manifest = Manifest::parse(MINIMAL)?;
    assert_eq!(manifest.instances, Instances::default());
    assert_eq!(manifest.limits, ServiceLimits::default());
    assert!(manifest.routes.is_empty() && manifest.outbound.allow.is_empty() && manifest.build.is_none());
    Ok(())
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    check(
        "descripton = 'x'",
        "line 3: unknown key `descripton` in the top level; did you mean `description`?",
    );
    check(
        "[[route]]\npath='/'\nmetods=['GET']",
        "line 5: unknown key `metods` in `[[route]]`; did you mean `methods`?",
    );
    check("[build]\ncomand='x'", "line 4: unknown key `comand` in `[build]`; did you mean `command`?");
    check("[health]\nurl='/'", "line 4: unknown key `url` in `[health]`; known here: `path`");
    check("[outbound]\nalow=[]", "line 4: unknown key `alow` in `[outbound]`; did you mean `allow`?");
    check(
        "[instances]\npolcy='reuse'",
        "line 4: unknown key `polcy` in `[instances]`; did you mean `policy`?",
    );
    check("[limits]\nmemmory='1MiB'", "line 4: unknown key `memmory` in `[limits]`; did you mean `memory`?");
}

#[test]
fn what_a_later_release_offers_is_refused_by_name() {
    check("[calls]\nx='y'", "line 3: `calls`: this release of the host does not offer it yet; remove it");
}

#[test]
fn subscriptions_are_read_with_their_defaults_and_checked() -> anyhow::Result<()> {
    let two =
        "[[subscription]]\nsubject='a.*'\n[[subscription]]\nsubject='b.>'\nmax_attempts=3\nconcurrency=1";
    let manifest = Manifest::parse(&format!("{MINIMAL}{two}"))?;
    let numbers = |with: &Subscription| (with.max_attempts.get(), with.concurrency.get());
    assert_eq!(manifest.subscriptions.iter().map(numbers).collect::<Vec<_>>(), [(8, 8), (3, 1)]);
    let [first, ..] = manifest.subscriptions.as_slice() else { anyhow::bail!("no subscription") };
    assert_eq!((first.retry_after, first.retry_after_max), (Span::seconds(1), Span::seconds(300)));

    for (subjects, at) in [(["a.b", "a.b"], 6), (["a.*", "a.b"], 6), (["a.b.c", "a.>"], 6), ([">", "a"], 6)] {
        let [one, other] = subjects;
        check(
            &format!("[[subscription]]\nsubject='{one}'\n[[subscription]]\nsubject='{other}'"),
            &format!(
                "line {at}: `subscription.1.subject`: a message could come by `{one}`, too, and be handled twice; \
                 make them differ"
            ),
        );
    }
    for subjects in [["a.b", "a.c"], ["a.*", "a.b.c"], ["a.>", "a"], ["a.*.b", "a.*.c"]] {
        let [one, other] = subjects;
        check(&format!("[[subscription]]\nsubject='{one}'\n[[subscription]]\nsubject='{other}'"), "accepted");
    }
    let bad = |keys: &str, problem: &str| check(&format!("[[subscription]]\n{keys}"), problem);
    bad(
        "subject='a b'",
        "line 4: `subscription.subject`: `a b` is no pattern of subjects: write a subject such as `orders.placed`, \
         with `*` for one token, or `>` at the end for the rest",
    );
    bad("max_attempts=3", "line 3: missing key `subject` in `[subscription]`");
    bad("subject='a'\nretry_after='0s'", "line 5: `subscription.0.retry_after`: give a pause such as `1s`");
    bad(
        "subject='a'\nretry_after='2s'\nretry_after_max='1s'",
        "line 6: `subscription.0.retry_after_max`: give at least `retry_after`",
    );
    bad(
        "subject='a'\nmax_attempt=3",
        "line 5: unknown key `max_attempt` in `[[subscription]]`; did you mean `max_attempts`?",
    );
    let zero = Manifest::parse(&format!("{MINIMAL}[[subscription]]\nsubject='a'\nconcurrency=0"));
    assert!(zero.is_err_and(|error| error.to_string().starts_with("line 5: `subscription.concurrency`")));
    Ok(())
}

#[test]
fn what_is_published_is_a_list_of_patterns() {
    check("[messaging]", "accepted");
    check("[messaging]\npublish=['orders.*', 'mails.>', 'x']", "accepted");
    check(
        "[messaging]\npublsh=['x']",
        "line 4: unknown key `publsh` in `[messaging]`; did you mean `publish`?",
    );
    check(
        "[messaging]\npublish=['a..b']",
        "line 4: `messaging.publish`: `a..b` is no pattern of subjects: write a subject such as `orders.placed`, \
         with `*` for one token, or `>` at the end for the rest",
    );
}

#[test]
fn schedules_are_granted_subjects_at_times_that_there_are() {
    let schedule = |keys: &str| format!("[messaging]\npublish=['ticks.*']\n[[schedule]]\n{keys}");
    let bad = |keys: &str, problem: &str| check(&schedule(keys), problem);
    bad("cron='*/5 * * * *'\nsubject='ticks.a'\nzone='Europe/Berlin'\nmissed='skip'", "accepted");
    bad(
        "cron='* * * * *'\nsubject='other.a'",
        "line 7: `schedule.0.subject`: the service may not publish to it; add it to `publish` of `[messaging]`",
    );
    check(
        "[[schedule]]\ncron='* * * * *'\nsubject='ticks.a'",
        "line 5: `schedule.0.subject`: the service may not publish to it; add it to `publish` of `[messaging]`",
    );
    bad(
        "cron='* * * * *'\nsubject='ticks.a'\nzone='Europe/Atlantis'",
        "line 8: `schedule.0.zone`: give a time zone of the IANA database, such as `Europe/Berlin`",
    );
    for cron in ["often", "", "61 * * * *", "* * * *", "0 0 31 2 * * * *"] {
        let verdict =
            verdict(&format!("{MINIMAL}{}", schedule(&format!("cron='{cron}'\nsubject='ticks.a'"))));
        let start = format!("line 6: `schedule.cron`: `{cron}` is no cron expression such as `*/5 * * * *`");
        assert!(verdict.starts_with(&start), "{verdict}");
    }
    bad(
        "cron='* * * * *'\nsubject='ticks.*'",
        "line 7: `schedule.subject`: `ticks.*` is no subject: write tokens of letters, digits, `_` and `-`, \
         separated by dots, such as `orders.placed`",
    );
}

#[test]
fn schedules_of_a_service_differ_and_are_counted() {
    let schedule =
        |cron: &str, zone: &str| format!("[[schedule]]\ncron='{cron}'\nsubject='t'\nzone='{zone}'\n");
    let all = |schedules: &[String]| format!("[messaging]\npublish=['t']\n{}", schedules.concat());
    let (one, later) = (schedule("0 8 * * *", "UTC"), schedule("0 9 * * *", "UTC"));
    check(&all(&[one.clone(), later, schedule("0 8 * * *", "Europe/Berlin")]), "accepted");
    let same = "line 10: `schedule.1.cron`: the service has this schedule already; make them differ";
    check(&all(&[one.clone(), one]), same);
    let many = |count: u32| {
        (0..count).map(|n| schedule(&format!("{} {} * * *", n % 60, n / 60), "UTC")).collect::<Vec<_>>()
    };
    check(&all(&many(64)), "accepted");
    check(&all(&many(65)), "line 262: `schedule.64.cron`: a service has at most 64 schedules");
}

#[test]
fn wrong_values_are_refused_with_line_and_key() {
    check("description = 3", "line 3: `description`: invalid type: integer `3`, expected a string");
    check(
        "[instances]\npolicy='once'",
        "line 4: `instances.policy`: unknown variant `once`, expected `fresh` or `reuse`",
    );
    check(
        "[instances]\nmax=0",
        "line 4: `instances.max`: zero would serve nothing; leave it out for the default",
    );
    check("[instances]\npolicy='fresh'", "accepted");
    check(
        "[instances]\npolicy='fresh'\nconcurrency=2",
        "line 5: `instances.concurrency`: with the policy `fresh` each request has an instance of its own; take `reuse`, or leave this out",
    );
    check("[instances]\npolicy='fresh'\nconcurrency=1", "accepted");
    check("[instances]\nmax=-1", "line 4: `instances.max`: invalid value: integer `-1`, expected u32");
    check(
        "[limits]\nconcurrency=0",
        "line 4: `limits.concurrency`: zero would serve nothing; leave it out for the default",
    );
    check("[limits]\nqueue=0", "accepted");
    check(
        "[limits]\nrequest_timeout='9years'",
        "line 4: `limits.request_timeout`: more than a year; give a shorter span",
    );
    check(
        "[limits]\nrequest_timeout='10'",
        "line 4: `limits.request_timeout`: `10` is not a span such as `10s` or `250ms`: time unit needed, for example 10sec or 10ms",
    );
    check("[settings]\nlist = []", "line 4: `settings.list`: expected a text, a number, `true` or `false`");
    check("[settings]\n\"a b\" = 1", "line 4: `settings.a b`: use 1 to 128 letters, digits, `_`, `-` or `.`");
}

#[test]
fn names_and_paths_are_checked() {
    assert_eq!(verdict("name = 'a'"), "line 1: missing key `component` in the top level");
    let message = verdict("name = 'Orders'\ncomponent = 'a.wasm'");
    assert!(message.starts_with("line 1: `name`: `Orders` is not a service name"), "{message}");
    assert_eq!(
        verdict("name = 'a'\ncomponent = '/a.wasm'"),
        "line 2: `component`: give a path relative to the bundle's folder"
    );
    check(
        "[build]\ncommand='x'\nwatch=['/etc']",
        "line 5: `build.watch.0`: give paths relative to the bundle's folder",
    );
    check("[build]\ncommand=' '", "line 4: `build.command`: give a command line, or leave `[build]` out");
}

#[test]
fn routes_are_checked() {
    let path = "give a path that starts with `/`, without query, fragment or blanks";
    check("[[route]]\npath='x'", &format!("line 4: `route.0.path`: {path}"));
    check("[[route]]\npath='/'\n[[route]]\npath='/?x'", &format!("line 6: `route.1.path`: {path}"));
    check("[health]\npath='x'", &format!("line 4: `health.path`: {path}"));
    check(
        "[[route]]\npath='/'\nmethods=['get']",
        "line 5: `route.methods`: methods are case-sensitive; write `GET` for `get`",
    );
    check(
        "[[route]]\npath='/'\nmethods=['G T']",
        "line 5: `route.methods`: `G T` is not a method; write for example `GET`",
    );
    check(
        "[[route]]\npath='/'\nmethods=[]",
        "line 5: `route.methods`: name at least one method, or leave the key out for all of them",
    );
    let host = "give a host name such as `shop.example.com`, without scheme, port or path";
    check("[[route]]\npath='/'\nhost='a:80'", &format!("line 5: `route.0.host`: {host}"));
    check("[[route]]\npath='/'\nhost='http://a'", &format!("line 5: `route.0.host`: {host}"));
}

#[test]
fn outbound_takes_origins_only() {
    check("[outbound]\nallow=['https://a.example', 'http://[::1]:80', 'https://*.shop.example']", "accepted");
    check(
        "[outbound]\nallow=['https://a', 'https://a/']",
        "line 4: `outbound.allow`: `https://a/` is not an origin: it must end after the host or the port; \
         write it as `https://api.example.com` or `http://10.0.0.7:8080`",
    );
}

#[test]
fn a_secret_is_a_reference_and_never_a_value() {
    check("[secrets]\nkey='hunter2'", "line 4: `secrets.key`: expected a table with `env`");
    check("[secrets]\nkey={ env='' }", "line 4: `secrets.key.env`: give the name of an environment variable");
    check(
        "[settings]\nkey='x'\n[secrets]\nkey={ env='K' }",
        "line 6: `secrets.key`: the same name is in `[settings]`; rename one of them",
    );
}

#[test]
fn a_manifest_that_is_too_long_is_refused() {
    let text = format!("{MINIMAL}# {}", "x".repeat(1 << 20));
    assert_eq!(Manifest::parse(&text), Err(ManifestError::TooLong));
}

//! What `stoa.toml` may say, and what it may not.

use super::*;
use crate::limits::{ByteCount, Span};

fn check(text: &str, expected: &str) {
    let message = Config::parse(text).map_or_else(|error| error.to_string(), |_| "accepted".to_owned());
    assert_eq!(message, expected, "for:\n{text}");
}

#[test]
fn an_empty_file_is_the_default() -> anyhow::Result<()> {
    let config = Config::parse("")?;
    assert_eq!(config.http.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.to_string(), "127.0.0.1:8081");
    assert_eq!((config.workers, config.limits), (None, HostLimits::default()));
    Ok(())
}

#[test]
fn every_key_is_read() -> anyhow::Result<()> {
    let config = Config::parse(
        "data_dir = '/var/lib/stoa'\nhttp = '[::]:80'\nadmin = 'unix:/run/stoa.sock'\nworkers = 4\n\
         services = 'components'\ntrusted_proxies = ['10.0.0.0/8', '::1']\nadmin_token = { env = 'T' }\n\
         [log]\nformat = 'json'\nlevel = 'debug'\n[limits]\nconnections = 10\nbundle_bytes = '1MiB'\n\
         drain_timeout = '1s'",
    )?;
    assert_eq!(config.admin, AdminAddr::Unix(PathBuf::from("/run/stoa.sock")));
    assert_eq!(config.admin_token, Some(TokenSource::Env("T".to_owned())));
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, level: "debug".to_owned() });
    let proxies: Vec<_> = config.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "::1/128"]);
    let limits = config.limits;
    let read = (limits.connections, limits.bundle_bytes, limits.drain_timeout);
    assert_eq!(read, (10, ByteCount::mib(1), Span::seconds(1)));
    Ok(())
}

#[test]
fn what_is_wrong_is_refused_with_line_and_key() {
    check("htp = 1", "line 1: unknown key `htp` in the top level; did you mean `http`?");
    check(
        "[limits]\nconections = 1",
        "line 2: unknown key `conections` in `[limits]`; did you mean `connections`?",
    );
    check(
        "[limits]\nconnections = 0",
        "line 2: `limits.connections`: zero would serve nothing; leave it out for the default",
    );
    check("[limits]\ndeploy_queue = 0", "accepted");
    check(
        "[messaging]\nprefix = 'a.b'",
        "line 2: `messaging.prefix`: give 1 to 32 letters, digits, `_` or `-`",
    );
    check("[messaging]\nnats = 'nats://a, nats://b'\nprefix = 'shop'", "accepted");
    check("workers = 0", "line 1: `workers`: give 1 to 1024, or leave it out for one per core");
    check(
        "admin = 'unix:'",
        "line 1: `admin`: `unix:` is not an admin address: write `127.0.0.1:8081` or `unix:/path/to/socket`",
    );
    check(
        "trusted_proxies = ['me']",
        "line 1: `trusted_proxies`: `me` is neither an address nor a network such as `10.0.0.0/8`",
    );
    check(
        "admin_token = 'hunter2hunter2hunter2'",
        "line 1: `admin_token`: expected a table with `env`, `file`",
    );
    check("[log]\nformat = 'xml'", "line 2: `log.format`: unknown variant `xml`, expected `text` or `json`");
}

#[test]
fn an_open_admin_address_needs_a_token() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("stoa.toml");
    let open = || Overrides { admin: "0.0.0.0:8081".parse().ok(), ..Overrides::default() };
    std::fs::write(&path, "")?;
    assert!(matches!(Config::load(Some(&path), open()), Err(ConfigError::TokenRequired(_))));
    std::fs::write(&path, "admin_token = { file = 'token' }")?;
    assert!(Config::load(Some(&path), open()).is_ok());
    Ok(())
}

#[test]
fn the_command_line_wins_over_the_file() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("stoa.toml");
    std::fs::write(&path, "http = '127.0.0.1:1'\ndata_dir = 'a'")?;
    let overrides = Overrides { http: Some("127.0.0.1:2".parse()?), ..Overrides::default() };
    let config = Config::load(Some(&path), overrides)?;
    assert_eq!((config.http.port(), config.data_dir), (2, PathBuf::from("a")));
    Ok(())
}

#[test]
fn a_configuration_that_is_named_and_missing_is_an_error() {
    let missing = Path::new("no/such/stoa.toml");
    assert!(matches!(Config::load(Some(missing), Overrides::default()), Err(ConfigError::Read { .. })));
}

#[test]
fn a_token_comes_from_a_file_and_is_never_printed() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("token");
    std::fs::write(&path, "0123456789abcdef\n")?;
    let token = TokenSource::File(path.clone()).fetch()?;
    assert_eq!(token.reveal(), "0123456789abcdef");
    assert!(!format!("{token:?}").contains('0'));
    std::fs::write(&path, "short")?;
    assert!(matches!(TokenSource::File(path).fetch(), Err(TokenError::Unfit)));
    assert!(matches!(TokenSource::Env("STOA_TEST_NOT_SET".to_owned()).fetch(), Err(TokenError::NotSet(_))));
    Ok(())
}

/// A bridge with these lines below its name and its broker.
fn bridge(lines: &str) -> String {
    format!("[[bridge]]\nname = 'shop'\nrabbitmq = 'amqp://a'\n{lines}")
}

#[test]
fn a_bridge_is_read_with_its_defaults() -> anyhow::Result<()> {
    let text = bridge(
        "[[bridge.out]]\nsubject = 'orders.>'\nexchange = 'shop'\n[[bridge.in]]\nqueue = 'stoa'\npublish = ['a.>']\n\
         [bridge.limits]\nbacklog = 7\n",
    );
    let config = Config::parse(&text)?;
    let [bridge] = config.bridges.as_slice() else { anyhow::bail!("one bridge") };
    assert_eq!(
        (bridge.name.as_str(), bridge.url()?.as_str(), bridge.limits.backlog),
        ("shop", "amqp://a", 7)
    );
    let (out, from) = (&bridge.outs[0], &bridge.ins[0]);
    assert_eq!((out.key_header.as_str(), out.max_attempts.get(), out.concurrency.get()), ("stoa-key", 8, 8));
    assert_eq!((from.prefetch, from.bind.len(), from.subject.as_ref()), (64, 0, None));
    assert!(!format!("{bridge:?}").contains("amqp://"), "a URL has a password in it");
    Ok(())
}

#[test]
fn a_bridge_that_makes_no_sense_is_refused_with_line_and_key() {
    let out = "[[bridge.out]]\nsubject = 'a.>'\nexchange = 'x'\n";
    let from = "[[bridge.in]]\nqueue = 'q'\npublish = ['a.>']\n";
    check(&bridge(out), "accepted");
    check(&bridge(from), "accepted");
    for (text, expected) in [
        ("", "line 2: `bridge.0.name`: nothing would cross it; add a `[[bridge.out]]` or a `[[bridge.in]]`".to_owned()),
        (
            "[[bridge.out]]\nsubjekt = 'a'\nexchange = 'x'",
            "line 5: unknown key `subjekt` in `[[bridge.out]]`; did you mean `subject`?".to_owned(),
        ),
        (
            &format!("{out}[[bridge.out]]\nsubject = 'a.b'\nexchange = 'y'"),
            "line 8: `bridge.0.out.1.subject`: a message could go by `a.>`, too, and be sent twice; make them differ"
                .to_owned(),
        ),
        (
            &format!("{out}retry_after = '1h'"),
            "line 4: `bridge.0.out.0.retry_after_max`: give at least `retry_after`".to_owned(),
        ),
        (
            &format!("{from}bind = ['#']"),
            "line 7: `bridge.0.in.0.bind`: say to which `exchange` the queue is bound".to_owned(),
        ),
        (
            &format!("{from}exchange = 'x'"),
            "line 7: `bridge.0.in.0.exchange`: say by which keys the queue is bound to it: `bind = [\"#\"]`".to_owned(),
        ),
        (
            &format!("{from}subject = 'b.c'"),
            "line 7: `bridge.0.in.0.subject`: it may not be brought in; add it to `publish`".to_owned(),
        ),
        (&format!("{from}prefetch = 0"), "line 7: `bridge.0.in.0.prefetch`: give 1 to 1000".to_owned()),
        (
            &format!("{from}{from}"),
            "line 8: `bridge.0.in.1.queue`: the bridge reads this queue already".to_owned(),
        ),
        (
            "[[bridge.in]]\nqueue = 'q'\npublish = []",
            "line 6: `bridge.0.in.0.publish`: it could bring in nothing; give subjects such as `[\"payments.>\"]`"
                .to_owned(),
        ),
        (
            &format!("{from}[bridge.limits]\nbacklog = 0"),
            "line 8: `bridge.0.limits.backlog`: zero would let nothing through; leave it out for the default".to_owned(),
        ),
    ] {
        check(&bridge(text), &expected);
    }
    check(
        &format!("{}{}", bridge(from), bridge(from)),
        "line 8: `bridge.1.name`: another bridge has this name; choose another one",
    );
    check(
        "[[bridge]]\nname = 'a'\nrabbitmq = 'http://u:secret@a'",
        "line 3: `bridge.0.rabbitmq`: give a URL such as `amqp://user:password@host:5672/%2f`, or with `amqps`",
    );
    check(
        "[[bridge]]\nname = 'operator'\nrabbitmq = 'amqp://a'",
        "line 2: `bridge.0.name`: what an operator publishes has this name; choose another one",
    );
    check(
        "[[bridge]]\nname = 'a'",
        "line 2: `bridge.0.name`: say where the broker is: give `rabbitmq`, or `rabbitmq_env`",
    );
}

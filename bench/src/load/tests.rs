//! The load generator against servers that do as they should, and against servers that do not.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;

use super::wire::get;
use super::*;

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello\n";
const HELLO_AND_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n";

/// Serves each connection with `answer`, which gets the number of the request and says whether to go on.
fn serve(answer: fn(&mut TcpStream, u64) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count) = (stream.unwrap(), Arc::clone(&count));
            std::thread::spawn(move || {
                let mut input = [0; 4096];
                while stream.read(&mut input).unwrap_or(0) > 0
                    && answer(&mut stream, count.fetch_add(1, Ordering::Relaxed))
                {}
            });
        }
    });
    address
}

fn plan(address: SocketAddr, mode: Mode) -> Plan {
    let check: Check = Arc::new(|reply| match reply.text() {
        "hello" => Ok(()),
        other => Err(Failure::Wrong(other.to_owned())),
    });
    let target = Target { request: get("/", mode == Mode::OnePerConnection), check };
    Plan {
        address,
        targets: vec![target],
        connections: 3,
        mode,
        pause: Duration::ZERO,
        threads: 2,
        phases: 2,
    }
}

/// Runs a load until a hundred requests have ended one way or the other; the sum of its figures.
fn drive_some(plan: &Plan) -> Figures {
    let load = Load::start(plan).unwrap();
    load.enter(1);
    loop {
        std::thread::sleep(Duration::from_millis(1));
        let sum: u64 = load
            .shared
            .figures
            .iter()
            .map(|all| {
                all.lock().unwrap().iter().map(|figures| figures.answers + figures.failed()).sum::<u64>()
            })
            .sum();
        if sum >= 100 {
            break;
        }
    }
    let mut sum = Figures::default();
    load.finish().unwrap().iter().for_each(|figures| sum.merge(figures));
    sum
}

#[test]
fn right_answers_are_counted_and_nothing_else() {
    let address = serve(|stream, _| stream.write_all(HELLO).is_ok());
    let figures = drive_some(&plan(address, Mode::KeepAlive));
    assert_eq!(figures.describe_failures(), "none");
    assert!(figures.answers >= 100);
    assert_eq!(figures.answers, figures.latencies.count());
}

#[test]
fn figures_of_a_phase_are_its_own() {
    let address = serve(|stream, _| stream.write_all(HELLO).is_ok());
    let mut plan = plan(address, Mode::KeepAlive);
    plan.pause = Duration::from_millis(1);
    let load = Load::start(&plan).unwrap();
    let phases = load.finish().unwrap();
    assert_eq!(phases.len(), 2);
    assert_eq!(phases[1].answers, 0);
}

#[test]
fn connections_that_are_ended_in_order_are_no_failures() {
    let address = serve(|stream, _| {
        let _ = stream.write_all(HELLO_AND_CLOSE);
        false
    });
    for mode in [Mode::OnePerConnection, Mode::KeepAlive] {
        assert_eq!(drive_some(&plan(address, mode)).describe_failures(), "none", "{mode:?}");
    }
}

#[test]
fn connections_that_end_without_notice_are_failures() {
    let address = serve(|stream, number| stream.write_all(HELLO).is_ok() && number % 10 != 9);
    let figures = drive_some(&plan(address, Mode::KeepAlive));
    assert!(figures.failures["connection"] >= 5, "{}", figures.describe_failures());
}

#[test]
fn answers_that_are_cut_off_are_failures() {
    let address = serve(|stream, _| {
        let _ = stream.write_all(&HELLO[..HELLO.len() - 2]);
        false
    });
    let figures = drive_some(&plan(address, Mode::KeepAlive));
    assert_eq!((figures.answers, figures.failures.keys().count()), (0, 1));
    assert!(figures.failures["malformed"] >= 100, "{}", figures.describe_failures());
}

#[test]
fn wrong_answers_are_failures() {
    let address = serve(|stream, number| {
        let text = if number % 2 == 0 { "hello\n" } else { "hullo\n" };
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n{text}").as_bytes()).is_ok()
    });
    let figures = drive_some(&plan(address, Mode::KeepAlive));
    assert!(
        figures.failures["wrong answer"] >= 40 && figures.answers >= 40,
        "{}",
        figures.describe_failures()
    );
    assert!(figures.samples.iter().all(|sample| sample == "answer: hullo"));
}

#[test]
fn a_request_that_is_never_answered_is_a_failure() {
    let address = serve(|stream, number| {
        number % 50 != 49 && stream.write_all(HELLO).is_ok() || {
            std::thread::sleep(GRACE * 3);
            false
        }
    });
    let figures = drive_some(&plan(address, Mode::KeepAlive));
    assert!(figures.failures["unanswered"] >= 1, "{}", figures.describe_failures());
    assert!(figures.latencies.max() >= GRACE, "its waiting time is part of the latencies");
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(Load::start(&plan(address, Mode::KeepAlive)).is_err());
}

//! Processes under test: heard to the end of every line, bounded in time, and gone when the test is.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Lines of the host's log that are kept for a failed test.
const LOG_LINES_MAX: usize = 4000;

/// The program under test, quiet about the machine it runs on.
pub fn stoa() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stoa"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("STOA_") || name.starts_with("RUST_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    die_with_this_thread(&mut command);
    command
}

/// The process, and everything it says.
pub struct Process {
    pub child: Child,
    pub http: SocketAddr,
    pub admin: String,
    pub log: Log,
}

impl Process {
    /// Starts the command and waits until it says where it listens.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the host");
        let log = Log::default();
        let announced = read_lines(child.stdout.take().expect("its output"), log.clone());
        drop(read_lines(child.stderr.take().expect("its errors"), log.clone()));
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut process = Self { child, http: unknown, admin: String::new(), log };
        (process.http, process.admin) = addresses(&announced);
        process
    }

    pub fn kill(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- what the host said ---\n{}---", self.log.text());
        }
    }
}

/// Reads `listening http=ADDRESS admin=ADDRESS`.
fn addresses(announced: &mpsc::Receiver<String>) -> (SocketAddr, String) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = announced.recv_timeout(left).expect("the host did not say where it listens");
        let Some(rest) = line.strip_prefix("listening ") else { continue };
        let value =
            |key: &str| rest.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let http = value("http=").and_then(|address| address.parse().ok()).expect("an address for http");
        return (http, value("admin=").expect("an address for admin"));
    }
}

/// The last lines that a process has written.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(line.to_owned());
        if lines.len() > LOG_LINES_MAX {
            lines.pop_front();
        }
    }

    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

/// Reads to the end, so that the process never waits for us.
fn read_lines(output: impl Read + Send + 'static, log: Log) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            log.push(&line);
            // Whoever has heard enough does not listen any more.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Sends a signal to a process that was not waited for.
pub fn signal(child: &Child, signal: libc::c_int) {
    let pid = i32::try_from(child.id()).expect("a process id");
    // SAFETY: no memory is passed; the process was not waited for yet, so the number is its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "send a signal to a process");
}

pub fn die_with_this_thread(command: &mut Command) {
    // SAFETY: between fork and exec only this one system call is made.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Runs a command to its end and answers its exit code, its output and its errors.
pub fn run(mut command: Command) -> (i32, String, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start the command");
    let (out, err) = (Log::default(), Log::default());
    let readers = [
        read_lines(child.stdout.take().expect("its output"), out.clone()),
        read_lines(child.stderr.take().expect("its errors"), err.clone()),
    ];
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("look at the command") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} did not end within {PATIENCE:?}; it said:\n{}{}", out.text(), err.text());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    for reader in readers {
        while reader.recv_timeout(Duration::from_secs(5)).is_ok() {}
    }
    (status.code().unwrap_or(-1), out.text(), err.text())
}

//! A server process: started, waited for, measured from outside, and gone when its value is dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// On which of its outputs a server says that it is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Announces {
    OnStdout,
    OnStderr,
}

pub struct Server {
    child: Child,
    log: PathBuf,
}

/// Resident memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub now_bytes: u64,
    /// The most since the start, or since [`Server::reset_peak`].
    pub peak_bytes: u64,
}

impl Server {
    /// Starts `command` and waits until `found` makes something of a line of its output. What it says otherwise goes
    /// to the file `log`.
    pub fn start<T>(
        mut command: Command,
        log: &Path,
        announces: Announces,
        timeout: Duration,
        found: impl Fn(&str) -> Option<T>,
    ) -> Result<(Self, T)> {
        let program = command.get_program().to_string_lossy().into_owned();
        let file = File::create(log).with_context(|| format!("create `{}`", log.display()))?;
        command.stdin(Stdio::null());
        match announces {
            Announces::OnStdout => command.stdout(Stdio::piped()).stderr(file.try_clone()?),
            Announces::OnStderr => command.stderr(Stdio::piped()).stdout(file.try_clone()?),
        };
        die_with_this_process(&mut command);
        let mut child = command.spawn().with_context(|| format!("start `{program}`"))?;
        let output: Box<dyn Read + Send> = match announces {
            Announces::OnStdout => Box::new(child.stdout.take().context("take the output")?),
            Announces::OnStderr => Box::new(child.stderr.take().context("take the output")?),
        };
        let server = Self { child, log: log.to_owned() };
        let lines = read_lines(output, file);
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(value) = found(&line) {
                        return Ok((server, value));
                    }
                }
                Err(_) => bail!(
                    "`{program}` did not say within {timeout:?} that it listens; {}",
                    server.last_words()
                ),
            }
        }
    }

    /// Processor time of all its threads, those that have ended included.
    pub fn cpu(&self) -> Result<Duration> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: `clock` is a place for the identifier; an unknown process is answered by an error number.
        let outcome = unsafe { libc::clock_getcpuclockid(self.pid(), &raw mut clock) };
        ensure!(outcome == 0, "find the clock of process {}", self.pid());
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a place for the result.
        let outcome = unsafe { libc::clock_gettime(clock, &raw mut time) };
        ensure!(outcome == 0, "read the clock of process {}; {}", self.pid(), self.last_words());
        Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
    }

    pub fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path)
            .with_context(|| format!("read `{path}`; {}", self.last_words()))?;
        let bytes = |key: &str| -> Result<u64> {
            let line = status.lines().find(|line| line.starts_with(key));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            let kib: u64 = number.with_context(|| format!("`{path}` has no `{key}`"))?.parse()?;
            Ok(kib << 10)
        };
        Ok(Memory { now_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
    }

    /// From now on, the peak is that of what follows.
    pub fn reset_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        std::fs::write(&path, "5").with_context(|| format!("write `{path}`"))
    }

    /// Open file descriptors: connections, for the most part.
    pub fn open_files(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.pid());
        Ok(std::fs::read_dir(&path).with_context(|| format!("read `{path}`"))?.count())
    }

    /// Stops it from running, so that it cannot disturb the one that is measured.
    pub fn pause(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// Sends a signal to it and to the processes that it has started.
    pub fn signal_family(&self, signal: libc::c_int) -> Result<()> {
        // First of all to itself, so that it starts no further ones.
        self.signal(signal)?;
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(&path).with_context(|| format!("read `{path}`"))?;
        for child in children.split_whitespace() {
            // One that has ended meanwhile needs no signal. SAFETY: no memory is passed.
            unsafe { libc::kill(child.parse()?, signal) };
        }
        Ok(())
    }

    /// Asks it to end, and waits.
    pub fn terminate(self, timeout: Duration) -> Result<()> {
        self.end_by(libc::SIGTERM, timeout)
    }

    /// Sends a signal that is to end it, and waits.
    pub fn end_by(mut self, signal: libc::c_int, timeout: Duration) -> Result<()> {
        self.signal(signal)?;
        let deadline = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "process {} did not end within {timeout:?}", self.pid());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server has ended with {status}; {}", self.last_words()),
            None => Ok(()),
        }
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        match String::from_utf8_lossy(tail).trim() {
            "" => "it logged nothing".into(),
            words => format!("the end of its log:\n{words}"),
        }
    }

    fn pid(&self) -> libc::pid_t {
        self.child.id().cast_signed()
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        // SAFETY: no memory is passed. The process was not waited for yet, so its number is still its own.
        let outcome = unsafe { libc::kill(self.pid(), signal) };
        ensure!(outcome == 0, "send a signal to process {}", self.pid());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Raises the number of files this process, and those it starts, may open, as far as the system allows.
pub fn raise_open_files() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a place for the result.
    let outcome = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(outcome == 0, "read the limit of open files");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a whole value.
    let outcome = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(outcome == 0, "raise the limit of open files to {}", limit.rlim_max);
    Ok(limit.rlim_cur)
}

fn die_with_this_process(command: &mut Command) {
    // SAFETY: between fork and exec only this one system call is made.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Reads to the end, so that the server never waits for us; every line goes to the log, too.
fn read_lines(output: Box<dyn Read + Send>, mut log: File) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // A log that cannot be written is no reason to stop; a receiver that is gone has found its line.
            let _ = writeln!(log, "{line}");
            let _ = sender.send(line);
        }
    });
    receiver
}

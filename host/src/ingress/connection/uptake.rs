//! How much of what was written to a client has reached it.
//!
//! That a write succeeds says little: the kernel lets its own buffer grow for a client that takes nothing, and holds a
//! write back for a client that takes a little. What the client's side has acknowledged is what counts.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::limits::UPTAKE_BYTES_MIN;

/// What is known of the writes to one socket, which must stay open as long as this is asked.
pub(super) struct Uptake {
    socket: RawFd,
    written_bytes: AtomicU64,
    /// The last write found no room.
    is_held_back: AtomicBool,
    /// Since when the client owes its uptake, in the connection's own time; zero while it owes none.
    owed_since: AtomicU64,
    /// What it will have taken when it owes nothing any more.
    goal_bytes: AtomicU64,
}

impl Uptake {
    pub const fn of(socket: RawFd) -> Self {
        Self {
            socket,
            written_bytes: AtomicU64::new(0),
            is_held_back: AtomicBool::new(false),
            owed_since: AtomicU64::new(0),
            goal_bytes: AtomicU64::new(0),
        }
    }

    /// The kernel has taken so much.
    pub fn wrote(&self, bytes: usize) {
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.owed_since.load(Ordering::Relaxed) != 0 {
            self.is_held_back.store(false, Ordering::Relaxed);
            if self.has_taken_its_share() {
                self.owed_since.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The kernel takes no more at this moment, or the connection's task has had its share of the thread.
    pub fn held_back(&self, now: impl FnOnce() -> u64) {
        self.is_held_back.store(true, Ordering::Relaxed);
        if self.owed_since.load(Ordering::Relaxed) == 0 {
            self.begin(now());
        }
    }

    /// Since when the client owes its uptake, or zero. If its time is over and it has taken its share, it has its time again from
    /// `now`; if nothing waits for it any more, it owes nothing.
    pub fn owed_since(&self, is_over: impl FnOnce(u64) -> bool, now: u64) -> u64 {
        let since = self.owed_since.load(Ordering::Relaxed);
        let is_held_back = self.is_held_back.load(Ordering::Relaxed);
        if since != 0 && (!is_held_back || is_over(since)) && self.has_taken_its_share() {
            if is_held_back {
                self.begin(now);
            } else {
                self.owed_since.store(0, Ordering::Relaxed);
            }
        }
        self.owed_since.load(Ordering::Relaxed)
    }

    fn begin(&self, now: u64) {
        let written = self.written_bytes.load(Ordering::Relaxed);
        let goal = match unacknowledged(self.socket) {
            // The client is not what the write waits for.
            Some(0) => return self.owed_since.store(0, Ordering::Relaxed),
            Some(bytes) => (written.saturating_sub(bytes) + UPTAKE_BYTES_MIN).min(written),
            None => written + UPTAKE_BYTES_MIN,
        };
        self.goal_bytes.store(goal, Ordering::Relaxed);
        self.owed_since.store(now, Ordering::Relaxed);
    }

    fn has_taken_its_share(&self) -> bool {
        let written = self.written_bytes.load(Ordering::Relaxed);
        let taken = written.saturating_sub(unacknowledged(self.socket).unwrap_or(0));
        taken >= self.goal_bytes.load(Ordering::Relaxed)
    }
}

/// Bytes in a socket's send buffer that the other side has not acknowledged; `None` where the system does not tell.
fn unacknowledged(socket: RawFd) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    #[expect(unsafe_code, reason = "the standard library does not tell what was acknowledged")]
    // SAFETY: `bytes` is a place for the answer; a number that is no socket is answered by an error.
    let outcome = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    if outcome == 0 { u64::try_from(bytes).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// A connection that was written to until the kernel took no more: the writing end, the reading one.
    fn full() -> (TcpStream, TcpStream, Uptake) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        server.set_nonblocking(true).expect("make it not wait");
        send_buffer(&server, 32 << 10);
        let uptake = Uptake::of(server.as_raw_fd());
        let chunk = vec![b'x'; 64 << 10];
        while let Ok(bytes) = server.write(&chunk) {
            uptake.wrote(bytes);
        }
        uptake.held_back(|| 7);
        (server, client, uptake)
    }

    fn send_buffer(socket: &TcpStream, bytes: usize) {
        socket2::SockRef::from(socket).set_send_buffer_size(bytes).expect("set the buffer's size");
    }

    /// As it is seen when the client's time is over, at this moment.
    fn owed_by(uptake: &Uptake, now: u64) -> u64 {
        uptake.owed_since(|_| true, now)
    }

    fn read_all(mut client: &TcpStream, uptake: &Uptake) {
        let mut left = uptake.written_bytes.load(Ordering::Relaxed);
        let mut chunk = vec![0; 64 << 10];
        while left > 0 {
            left -= client.read(&mut chunk).expect("read") as u64;
        }
        // It was read; that it is acknowledged may take a moment more.
        while unacknowledged(uptake.socket) != Some(0) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_the_kernel_keeps_for_a_client_does_not_count_as_taken() {
        let (server, _client, uptake) = full();
        assert!(unacknowledged(server.as_raw_fd()) > Some(UPTAKE_BYTES_MIN));
        // The kernel takes more because its buffer has grown. The client has taken nothing of it.
        send_buffer(&server, 128 << 10);
        let more = (&server).write(&vec![b'x'; 64 << 10]).expect("write");
        uptake.wrote(more);
        assert!(more as u64 > UPTAKE_BYTES_MIN);
        assert_eq!(owed_by(&uptake, 9), 7);
    }

    #[test]
    fn a_client_that_reads_has_its_time_again_when_it_is_over_and_not_before() {
        let (_server, client, uptake) = full();
        read_all(&client, &uptake);
        assert_eq!(uptake.owed_since(|_| false, 8), 7);
        // All of it is taken: whatever the write waits for now, it is not this client.
        assert_eq!(owed_by(&uptake, 9), 0);
        uptake.wrote(1);
        uptake.held_back(|| 11);
        assert_eq!(owed_by(&uptake, 12), 0);
    }

    #[test]
    fn a_client_that_reads_a_part_owes_the_next_one() {
        let (mut server, mut client, uptake) = full();
        let mut part = vec![0; 64 << 10];
        while !uptake.has_taken_its_share() {
            client.read_exact(&mut part[..1024]).expect("read");
        }
        while let Ok(bytes) = server.write(&part) {
            uptake.wrote(bytes);
        }
        uptake.held_back(|| 8);
        assert_ne!(owed_by(&uptake, 9), 0);
    }

    #[test]
    fn a_client_that_has_taken_all_that_there_is_owes_nothing() {
        let (mut server, client, uptake) = full();
        read_all(&client, &uptake);
        uptake.wrote(server.write(b"the end").expect("write"));
        assert_eq!(uptake.owed_since(|_| false, 9), 0);
    }

    #[test]
    fn where_the_system_does_not_tell_what_was_written_counts() {
        let uptake = Uptake::of(-1);
        uptake.held_back(|| 7);
        uptake.wrote(1);
        assert_eq!(owed_by(&uptake, 9), 7, "it has taken too little");
        uptake.wrote(usize::try_from(UPTAKE_BYTES_MIN).expect("it is small"));
        assert_eq!(owed_by(&uptake, 9), 0);
    }
}

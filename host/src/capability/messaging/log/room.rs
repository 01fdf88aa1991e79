//! The room on the disk of the log.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::limits::MESSAGE_LOG_DISK_RESERVE;

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the disk has {free} bytes left, and {MESSAGE_LOG_DISK_RESERVE} of them are for what handles and settles messages"
)]
pub struct NoRoom {
    free: u64,
}

/// The room on a disk where not everything may have some.
pub struct Tight {
    log: PathBuf,
    spare: u64,
    taken: u64,
}

impl Tight {
    pub fn new(log: &Path, spare: u64) -> Self {
        Self { log: log.to_owned(), spare, taken: 0 }
    }

    /// Takes room for messages of so many bytes.
    ///
    /// # Errors
    /// When there is too little.
    pub fn take(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let taken = self.taken.saturating_add(bytes);
        check(&self.log, taken, self.spare)?;
        self.taken = taken;
        Ok(())
    }
}

/// Checks that messages of so many bytes may be published, in a file that has some to spare. To settle them takes room,
/// too: without a reserve a disk that is full would stay full.
///
/// # Errors
/// When there is too little room. If nobody can tell, there is enough, and SQLite finds out.
pub fn check(log: &Path, bytes: u64, spare: u64) -> Result<(), NoRoom> {
    let Some(free) = free(log) else { return Ok(()) };
    let reserve = MESSAGE_LOG_DISK_RESERVE.get();
    // Once in the write-ahead log, which cannot use what the file has to spare, and once where it belongs.
    let is_enough = free >= (reserve / 2).saturating_add(bytes)
        && free.saturating_add(spare) >= reserve.saturating_add(bytes.saturating_mul(2));
    if is_enough { Ok(()) } else { Err(NoRoom { free }) }
}

fn free(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut about = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and outlives the call, which fills `about` if it answers 0.
    #[expect(unsafe_code, reason = "the standard library does not tell the room on a disk")]
    let about = unsafe {
        if libc::statvfs(path.as_ptr(), about.as_mut_ptr()) != 0 {
            return None;
        }
        about.assume_init()
    };
    Some(about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_some_bytes_and_not_for_all_there_are() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(free(folder.path()).is_some_and(|free| free > 0));
        assert!(check(folder.path(), u64::MAX / 4, u64::MAX).is_err(), "there is no such disk");
        let refused = check(folder.path(), u64::MAX, 0).expect_err("nor such a one");
        assert!(refused.to_string().contains("32MiB"), "{refused}");
        assert!(check(&folder.path().join("nowhere"), u64::MAX, 0).is_ok());
    }

    #[test]
    fn what_does_not_fit_takes_nothing_from_what_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut tight = Tight::new(folder.path(), 0);
        for bytes in [0, u64::MAX / 4, 1, u64::MAX, 2] {
            assert_eq!(tight.take(bytes).is_ok(), bytes < 3, "{bytes}");
        }
        assert_eq!(tight.taken, 3);
    }
}

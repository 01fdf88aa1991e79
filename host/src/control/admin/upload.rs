//! Receives a body: sized, and timed per piece, so that neither a large nor a slow client holds memory for long.

use std::io;

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;

use super::problem::AdminError;
use crate::limits::{ADMIN_TIMEOUT, HostLimits};

/// Bytes that the tar may need beyond the content: a header and padding per file, and the end mark.
const TAR_BYTES_PER_FILE: u64 = 1024;

/// The largest tar that can hold a bundle within the limits.
pub(super) fn bundle_bytes_max(limits: &HostLimits) -> u64 {
    let files = u64::from(limits.bundle_files).saturating_add(2);
    limits.bundle_bytes.get().saturating_add(files.saturating_mul(TAR_BYTES_PER_FILE))
}

/// Reads a body in the pieces it comes in. Each piece has its own deadline: a large bundle over a slow line
/// is fine, a client that stops sending is not.
pub(super) async fn read(body: Body, bytes_max: u64) -> Result<Vec<Bytes>, AdminError> {
    let mut pieces = body.into_data_stream();
    let (mut received, mut bytes) = (Vec::new(), 0_u64);
    while let Some(piece) =
        tokio::time::timeout(ADMIN_TIMEOUT, pieces.next()).await.map_err(|_| AdminError::TooSlow)?
    {
        let piece = piece.map_err(AdminError::BodyCut)?;
        bytes = bytes.saturating_add(piece.len() as u64);
        if bytes > bytes_max {
            return Err(AdminError::TooLarge(bytes_max));
        }
        received.push(piece);
    }
    Ok(received)
}

/// Reads the pieces one after the other, and frees each once it is read.
pub(super) struct Reader {
    pieces: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl Reader {
    pub(super) fn new(pieces: Vec<Bytes>) -> Self {
        Self { pieces: pieces.into_iter(), current: Bytes::new() }
    }
}

impl io::Read for Reader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.next() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = target.len().min(self.current.len());
        let (Some(target), Some(source)) = (target.get_mut(..count), self.current.get(..count)) else {
            return Ok(0);
        };
        target.copy_from_slice(source);
        self.current.advance(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_and_one_byte_more_is_refused() -> anyhow::Result<()> {
        let pieces =
            || Body::from_stream(futures_util::stream::iter(["ab", "", "cde"].map(Ok::<_, io::Error>)));
        let mut text = String::new();
        let received = read(pieces(), 5).await?;
        Reader::new(received).read_to_string(&mut text)?;
        assert_eq!(text, "abcde");
        assert!(matches!(read(pieces(), 4).await, Err(AdminError::TooLarge(4))));
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_sending_is_ended() {
        let body = Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>());
        assert!(matches!(read(body, 5).await, Err(AdminError::TooSlow)));
    }
}

//! One connection, one request after the other: prepared bytes out, a whole reply in.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Failure;
use super::wire::{REPLY_BYTES_MAX, Reply, parse};

/// A connection while there is one, and room for what comes by it.
pub struct Exchange {
    pub stream: Option<TcpStream>,
    input: Vec<u8>,
    body: Vec<u8>,
}

impl Exchange {
    pub fn new() -> Self {
        Self { stream: None, input: Vec::with_capacity(16 << 10), body: Vec::new() }
    }

    /// Sends a request and hands its whole reply to `read`.
    pub async fn ask<T>(&mut self, request: &[u8], read: impl FnOnce(&Reply<'_>) -> T) -> Result<T, Failure> {
        let Some(stream) = &mut self.stream else { return Err(Failure::Unanswered) };
        stream.write_all(request).await.map_err(Failure::Io)?;
        self.input.clear();
        loop {
            let count = stream.read_buf(&mut self.input).await.map_err(Failure::Io)?;
            if self.input.is_empty() {
                return Err(Failure::Io(ErrorKind::UnexpectedEof.into()));
            }
            let parsed = parse(&self.input, count == 0, &mut self.body).map_err(Failure::Malformed)?;
            if let Some(reply) = parsed {
                return Ok(read(&reply));
            }
            if self.input.len() > REPLY_BYTES_MAX {
                return Err(Failure::Malformed(anyhow::anyhow!("longer than {REPLY_BYTES_MAX} bytes")));
            }
        }
    }
}

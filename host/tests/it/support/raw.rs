//! A client that writes what it likes, byte by byte.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENCE, within};

pub struct Raw {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.expect("connect");
        stream.set_nodelay(true).expect("set no delay");
        Self { stream, read: Vec::new() }
    }

    /// Connects, and sends at once.
    pub async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::connect(address).await;
        raw.write(bytes).await;
        raw
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes).await.expect("write");
    }

    pub async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        within("the host to read", self.stream.write_all(bytes.as_ref())).await
    }

    /// Everything until the host closes the connection. A reset counts as the end.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        within("the connection's end", async { while self.read_more().await {} }).await;
        std::mem::take(&mut self.read)
    }

    /// The same as text.
    pub async fn text_to_end(&mut self) -> String {
        String::from_utf8_lossy(&self.read_to_end().await).into_owned()
    }

    /// Reads until `wanted` was there; answers all that was read so far.
    pub async fn read_until(&mut self, wanted: &str) -> String {
        let reading = async {
            while !self.has(wanted) {
                if !self.read_more().await {
                    break;
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        let text = String::from_utf8_lossy(&self.read).into_owned();
        assert!(ended.is_ok() && self.has(wanted), "`{wanted}` did not come, but:\n{text}");
        text
    }

    /// Whether the host leaves the connection open and silent for so long.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        let before = self.read.len();
        let ended = tokio::time::timeout(time, async { while self.read_more().await {} }).await;
        ended.is_err() && self.read.len() == before
    }

    fn has(&self, wanted: &str) -> bool {
        self.read.windows(wanted.len()).any(|window| window == wanted.as_bytes())
    }

    /// Reads something; false at the end.
    async fn read_more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.read.extend_from_slice(chunk.get(..count).unwrap_or_default());
                true
            }
        }
    }
}

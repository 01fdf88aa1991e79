//! A result that the guest reads as it comes.
//!
//! The statement is a future that is polled when the guest asks for rows, in the store's own event loop:
//! a guest that reads slowly holds it back, and one that is gone drops it, connection and all.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, StreamProducer, StreamResult, VecBuffer};

use super::bindings::{Column, Error, Row, Value};
use super::connection::Rows;
use super::session::{Target, bytes_of};
use crate::limits::{SQL_PIECE_BYTES, SQL_PIECE_ROWS};

/// Feeds rows into a stream, piece by piece.
struct Feed {
    columns: Option<oneshot::Sender<Vec<Column>>>,
    pieces: mpsc::Sender<Vec<Row>>,
    piece: Vec<Row>,
    piece_bytes: u64,
    row_bytes_max: u64,
}

impl Rows for Feed {
    fn columns(&mut self, columns: Vec<Column>) {
        if let Some(waiting) = self.columns.take() {
            // The guest may have given up.
            let _ = waiting.send(columns);
        }
    }

    async fn row(&mut self, row: Row) -> Result<(), Error> {
        let bytes: u64 = row.iter().map(bytes_of).sum();
        if bytes > self.row_bytes_max {
            return Err(Error::TooLarge("a row is larger than `sql_result`".to_owned()));
        }
        self.piece.push(row);
        self.piece_bytes += bytes;
        if self.piece.len() < SQL_PIECE_ROWS && self.piece_bytes < SQL_PIECE_BYTES {
            return Ok(());
        }
        self.flush().await
    }
}

impl Feed {
    async fn flush(&mut self) -> Result<(), Error> {
        self.piece_bytes = 0;
        let piece = std::mem::take(&mut self.piece);
        if piece.is_empty() {
            return Ok(());
        }
        // The reader is dropped together with this future.
        self.pieces.send(piece).await.map_err(|_| Error::Ended)
    }
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A statement at work, until it is done. Its guest reads it, and the end of the request ends it.
pub struct Feeding(Mutex<Option<Running>>);

impl Feeding {
    fn poll(&self, cx: &mut Context<'_>) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_mut().is_some_and(|running| running.as_mut().poll(cx).is_ready()) {
            *running = None;
        }
    }

    /// Drops it, connection and all.
    pub fn end(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(running);
    }
}

/// A statement whose columns are known and whose rows are still to be read.
pub struct Stream {
    pub feeding: Arc<Feeding>,
    pieces: mpsc::Receiver<Vec<Row>>,
}

/// A statement that has begun.
pub struct Begun {
    pub columns: Vec<Column>,
    pub rows: Stream,
    pub end: oneshot::Receiver<Result<(), Error>>,
}

/// Runs a statement until its columns are known.
///
/// # Errors
/// When it fails before that.
pub async fn begin(target: Target, text: String, parameters: Vec<Value>) -> Result<Begun, Error> {
    let row_bytes_max = target.row_bytes_max();
    let (columns, mut told) = oneshot::channel();
    let (pieces, read) = mpsc::channel(1);
    let (end, mut ended) = oneshot::channel();
    let mut running: Running = Box::pin(async move {
        let mut feed =
            Feed { columns: Some(columns), pieces, piece: Vec::new(), piece_bytes: 0, row_bytes_max };
        let mut ran = target.run(&text, parameters, &mut feed).await.map(drop);
        if ran.is_ok() {
            ran = feed.flush().await;
        }
        // Whoever asks for the end may have gone.
        let _ = end.send(ran);
    });
    let columns = std::future::poll_fn(|cx| {
        let is_over = running.as_mut().poll(cx).is_ready();
        match told.try_recv() {
            Ok(columns) => Poll::Ready(Ok((columns, is_over))),
            Err(_) if is_over => match ended.try_recv() {
                Ok(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok((Vec::new(), true))),
            },
            Err(_) => Poll::Pending,
        }
    })
    .await;
    let (columns, is_over) = columns?;
    let feeding = Arc::new(Feeding(Mutex::new((!is_over).then_some(running))));
    Ok(Begun { columns, rows: Stream { feeding, pieces: read }, end: ended })
}

impl<D> StreamProducer<D> for Stream {
    type Item = Row;
    type Buffer = VecBuffer<Row>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Row, VecBuffer<Row>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut piece = this.pieces.poll_recv(cx);
        // Pending does not mean that there is nothing: this task may only have had its share of the thread.
        if piece.is_pending() {
            this.feeding.poll(cx);
            piece = this.pieces.poll_recv(cx);
        }
        match piece {
            Poll::Ready(Some(rows)) => {
                destination.set_buffer(rows.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(None) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

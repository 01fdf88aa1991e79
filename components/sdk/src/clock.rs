//! Waiting. The host's clock is the only one that a guest can wait for.

use std::time::Duration;

use futures_util::{Stream, stream};

/// Waits for this long.
///
/// Compiled for anything but wasm it blocks the thread, which is enough for a unit test.
pub async fn sleep(duration: Duration) {
    #[cfg(target_family = "wasm")]
    {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        wasip3::clocks::monotonic_clock::wait_for(nanoseconds).await;
    }
    #[cfg(not(target_family = "wasm"))]
    std::thread::sleep(duration);
}

/// Counts up from 0, the first at once and each further one after this long.
///
/// Server-sent events from it end when the client leaves:
///
/// ```
/// use std::{convert::Infallible, time::Duration};
/// use futures_util::{Stream, StreamExt};
/// use stoa::axum::response::sse::{Event, Sse};
///
/// async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
///     let events = stoa::every(Duration::from_secs(1));
///     Sse::new(events.map(|count| Ok(Event::default().event("tick").data(count.to_string()))))
/// }
/// ```
pub fn every(period: Duration) -> impl Stream<Item = u64> + Send + Unpin {
    Box::pin(stream::unfold(0u64, move |count| async move {
        if count > 0 {
            sleep(period).await;
        }
        Some((count, count.wrapping_add(1)))
    }))
}

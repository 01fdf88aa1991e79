//! Memory and tables: what an instance may grow to.

use wasmtime::ResourceLimiter;

/// The ceiling of one instance, over all memories of its component.
pub struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    table_elements_max: usize,
    is_exhausted: bool,
}

/// Elements of one table; far above what compilers emit, far below what would hurt.
const TABLE_ELEMENTS_MAX: usize = 100_000;

impl Limiter {
    pub fn new(memory_bytes_max: usize) -> Self {
        Self {
            memory_bytes_max,
            memory_bytes: 0,
            table_elements_max: TABLE_ELEMENTS_MAX,
            is_exhausted: false,
        }
    }

    /// Whether the guest was refused memory when it had most of what it may have. A runtime that asks for twice of what it
    /// has, for good measure, is not at its end.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if grown > self.memory_bytes_max {
            self.is_exhausted |= self.memory_bytes >= self.memory_bytes_max / 4 * 3;
            return Ok(false);
        }
        self.memory_bytes = grown;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.table_elements_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_exhausted_when_it_is_refused_memory_near_its_limit() {
        let mut limiter = Limiter::new(64);
        let mut grow = |from, to| (limiter.memory_growing(from, to, None).ok(), limiter.is_exhausted());
        assert_eq!(grow(0, 40), (Some(true), false));
        assert_eq!(grow(40, 80), (Some(false), false), "it asked for twice as much, for good measure");
        assert_eq!(grow(40, 60), (Some(true), false));
        assert_eq!(grow(60, 65), (Some(false), true));
        assert_eq!(grow(60, 64), (Some(true), true));
    }
}

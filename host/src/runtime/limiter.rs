//! Memory and tables: what an instance may grow to.

use wasmtime::ResourceLimiter;

/// The ceiling of one instance, over all memories of its component.
pub struct Limiter {
    memory_bytes_max: usize,
    memory_bytes: usize,
    table_elements_max: usize,
}

/// Elements of one table; far above what compilers emit, far below what would hurt.
const TABLE_ELEMENTS_MAX: usize = 100_000;

impl Limiter {
    pub fn new(memory_bytes_max: usize) -> Self {
        Self { memory_bytes_max, memory_bytes: 0, table_elements_max: TABLE_ELEMENTS_MAX }
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

//! The sandbox: compiled releases, their instances, and one call at work in one of them.
//!
//! It speaks `http` types and knows neither a server nor the catalog. Reading order: [`engine`]
//! compiles, [`release`] is what a deploy makes of a component, [`instance`] is one sandbox and the
//! pool of idle ones, [`state`] is what an instance carries, [`call`] drives one request through it.

pub mod admission;
pub mod call;
pub mod deadline;
pub mod engine;
mod exports;
pub mod instance;
pub mod limiter;
pub mod release;
pub mod state;
pub mod ticks;

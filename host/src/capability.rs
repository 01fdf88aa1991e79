//! What the host gives a guest beyond plain WASI. Each capability is linked for all, granted per
//! service at deploy, and knows none of the others.

pub mod outbound;
pub mod sql;

//! What the host gives a guest beyond plain WASI. Each capability is linked for all, granted per
//! service at deploy, and knows none of the others, but for messaging, which needs the database for its outbox.

pub mod messaging;
pub mod outbound;
pub mod sql;

//! Whose fault a failure is. The answer decides the status, the metric label and the log level.

/// Who has to act so that the failure does not come back (invariant 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The request was wrong, or the client went away.
    Client,
    /// The service's code, or a limit that it reached.
    Guest,
    /// The host itself, or the machine it runs on.
    Host,
    /// Something that the host or the guest depends on.
    Upstream,
}

impl Blame {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Guest => "guest",
            Self::Host => "host",
            Self::Upstream => "upstream",
        }
    }
}

/// An error and its causes in one line, for the log and the operator; clients never see it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

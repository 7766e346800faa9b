//! One error type for the whole kit: a sentence that says which step failed and why.

use std::fmt;

/// What went wrong, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

/// The result of every step of the kit.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Puts the step in front of another error, for `map_err`.
pub fn context<E: fmt::Display>(step: impl fmt::Display) -> impl FnOnce(E) -> Error {
    move |error| Error(format!("{step}: {error}"))
}

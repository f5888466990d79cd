//! OpenAI's HTTP interface as far as it is served here: what comes in, what goes out, and how it is refused.

mod error;
mod request;
mod response;

pub(crate) use error::ApiError;
pub(super) use request::{Asked, Prompt, chat, completion};
pub(super) use response::{Shape, Text, models};

//! OpenAI's HTTP interface as far as it is served here: what comes in, what goes out, and how it is refused.

mod error;
mod request;
mod response;
mod whole;

pub(crate) use error::ApiError;
pub(super) use request::{Asked, Prompt, Tier, chat, completion};
pub(super) use response::{Said, Shape, Text, models};
pub(super) use whole::{LARGEST, LOGARITHMS, Whole};

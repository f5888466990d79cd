//! Page sizes and tokens (AIP-158). A token is the key of the last row seen, marked so that only we can make one.

use std::str::FromStr;

use sluice_proto::error::{refuse, refuse_field};
use sluice_store::Page;
use sluice_types::Reason;
use tonic::Status;

use super::Api;

const DEFAULT_SIZE: u32 = 50;
const MAX_SIZE: u32 = 1000;
const MARK: usize = 16;

/// The size wanted: 50 for 0, at most 1000.
pub(crate) fn size(page_size: i32) -> Result<u32, Status> {
    match u32::try_from(page_size) {
        Ok(0) => Ok(DEFAULT_SIZE),
        Ok(size) => Ok(size.min(MAX_SIZE)),
        Err(_) => Err(refuse_field("page_size", "a page size is 0 to 1000")),
    }
}

impl Api {
    /// The page that a request asks for. `list` names the list, so that a token of one is no token of another.
    pub(crate) fn page<K: FromStr>(&self, list: &str, page_size: i32, token: &str) -> Result<Page<K>, Status> {
        let limit = size(page_size)?;
        if token.is_empty() {
            return Ok(Page { after: None, limit });
        }
        Ok(Page { after: Some(self.open_token(list, token)?), limit })
    }

    /// The key in a token of ours.
    pub(crate) fn open_token<K: FromStr>(&self, list: &str, token: &str) -> Result<K, Status> {
        let wrong = || refuse(Reason::InvalidToken, "the token is not one that this list gave out");
        let (key, mark) = token.rsplit_once('.').ok_or_else(wrong)?;
        if token.len() > 256 || mark != self.mark(list, key) {
            return Err(wrong());
        }
        key.parse().map_err(|_| wrong())
    }

    /// The token for what follows `key`; empty at the end.
    pub(crate) fn next_token(&self, list: &str, key: Option<String>) -> String {
        key.map_or_else(String::new, |key| format!("{key}.{}", self.mark(list, &key)))
    }

    fn mark(&self, list: &str, key: &str) -> String {
        let mark = self.secrets.derive("page token", format!("{list}\0{key}").as_bytes());
        hex::encode(&mark[..MARK / 2])
    }
}

/// The key of the last row, if the page was full: then there may be more.
pub(crate) fn last<R, K: ToString>(rows: &[R], limit: u32, key: impl Fn(&R) -> K) -> Option<String> {
    let full = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
    rows.last().filter(|_| full).map(|row| key(row).to_string())
}

//! Sites, nodes and join tokens.

use sluice_lifecycle::model::{JoinToken, Node, Site};
use sluice_types::{Digest, NodeId, SiteId};

use super::{OnConflict, Stored, Table};
use crate::Result;
use crate::value::{Value, body, id, instant};

static SITES: Table = Table::new("sites", 1, &["id", "name", "body"], OnConflict::Replace);
static NODES: Table = Table::new("nodes", 1, &["id", "site", "name", "body"], OnConflict::Replace);
static TOKENS: Table = Table::new("join_tokens", 1, &["hash", "expires", "body"], OnConflict::Replace);

impl Stored for Site {
    type Key = SiteId;

    fn table() -> &'static Table {
        &SITES
    }

    fn key(&self) -> SiteId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), self.name.as_str().into(), body("sites", self)?]);
        Ok(())
    }
}

impl Stored for Node {
    type Key = NodeId;

    fn table() -> &'static Table {
        &NODES
    }

    fn key(&self) -> NodeId {
        self.id
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([id(self.id.raw()), id(self.site.raw()), self.name.as_str().into(), body("nodes", self)?]);
        Ok(())
    }
}

impl Stored for JoinToken {
    type Key = Digest;

    fn table() -> &'static Table {
        &TOKENS
    }

    fn key(&self) -> Digest {
        self.hash
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        values.extend([self.hash.to_string().into(), instant(self.expires), body("join_tokens", self)?]);
        Ok(())
    }
}

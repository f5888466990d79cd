//! Uploads, and what vaults may delete.

use sluice_lifecycle::model::{Discard, Upload};
use sluice_types::{Digest, ProjectId, SiteId};

use super::{OnConflict, Stored, Table};
use crate::Result;
use crate::value::{Value, body, id};

static UPLOADS: Table = Table::new("uploads", 2, &["project", "digest", "live", "body"], OnConflict::Replace);
static DISCARDS: Table = Table::new("discards", 2, &["site", "manifest", "live", "body"], OnConflict::Replace);

impl Stored for Upload {
    type Key = (ProjectId, Digest);

    fn table() -> &'static Table {
        &UPLOADS
    }

    fn key(&self) -> (ProjectId, Digest) {
        (self.project, self.digest)
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        let digest = self.digest.to_string();
        values.extend([id(self.project.raw()), digest.as_str().into(), (!self.deleted).into(), body("uploads", self)?]);
        Ok(())
    }
}

impl Stored for Discard {
    type Key = (SiteId, Digest);

    fn table() -> &'static Table {
        &DISCARDS
    }

    fn key(&self) -> (SiteId, Digest) {
        (self.site, self.manifest)
    }

    fn put(&self, values: &mut Vec<Value>) -> Result<()> {
        let manifest = self.manifest.to_string();
        values.extend([id(self.site.raw()), manifest.as_str().into(), (!self.done).into(), body("discards", self)?]);
        Ok(())
    }
}

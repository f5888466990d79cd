//! Versions of quotas, as they are seen while objects change. One that differs from the one before it in nothing but
//! its version is of a command that was carried out twice.
//!
//! The controller tells no list of its commands, so only what is there at a look is judged. The operator asks again 2 s
//! after an answer that it did not get: a second time is not missed for being too soon after the first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_proto::v1;
use tokio::task::JoinHandle;

use super::world::World;
use crate::client::Client;
use crate::figure::Figure;

/// Between two looks at all of them.
const LOOK: Duration = Duration::from_millis(500);

/// A quota as it was seen.
#[derive(Debug, Clone)]
struct Version {
    name: String,
    /// All that a command sets, and which row of the name it is.
    says: String,
    etag: String,
}

impl Version {
    fn of(row: v1::Quota) -> Self {
        let limits = (row.nominal_milli, row.borrow_milli, row.lend_milli, row.policy());
        let says = format!("{limits:?} {} {:?}", row.manager, row.create_time);
        Self { name: row.name, says, etag: row.etag }
    }
}

/// A look at the quotas of tenants, in a task of its own.
pub(super) struct Versions {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Version>>,
}

impl Versions {
    /// Begins.
    pub(super) fn watch(world: &World, tenants: &[String]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = look(world.client()?, tenants.to_vec(), Arc::clone(&stop));
        Ok(Self { stop, task: world.system.runtime().spawn(looks) })
    }

    /// What it saw.
    pub(super) fn judged(self, world: &World) -> anyhow::Result<Figure> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = world.system.block(self.task)?;
        // The last of its name, as if it had been set once more.
        let again = seen.last().map(|version| Version { etag: format!("{} again", version.etag), ..version.clone() });
        let more = twice(&seen.iter().cloned().chain(again).collect::<Vec<_>>());
        let found = twice(&seen);
        let metric = "commands for quotas that were carried out twice: versions that say what the one before them said";
        let figure = Figure::exactly(metric, i64::try_from(found)?, 0);
        let figure = figure.control(format!("one version told again as another: {more} found"), more > found);
        Ok(figure.peer(&format!("{} versions seen, with {} ms and more between looks", seen.len(), LOOK.as_millis())))
    }
}

async fn look(client: Client, tenants: Vec<String>, stop: Arc<AtomicBool>) -> Vec<Version> {
    let (mut seen, mut last) = (Vec::new(), BTreeMap::<String, String>::new());
    while !stop.load(Ordering::Relaxed) {
        for tenant in &tenants {
            let request = v1::ListQuotasRequest { tenant: format!("tenants/{tenant}") };
            // A controller that was killed says nothing.
            let Ok(answer) = client.money().list_quotas(request).await else { continue };
            for version in answer.into_inner().quotas.into_iter().map(Version::of) {
                if last.get(&version.name) != Some(&version.etag) {
                    last.insert(version.name.clone(), version.etag.clone());
                    seen.push(version);
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    seen
}

/// How many versions say what the one of their name before them said.
fn twice(seen: &[Version]) -> usize {
    let mut said = BTreeMap::new();
    seen.iter().filter(|version| said.insert(&version.name, &version.says) == Some(&version.says)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_says_what_the_last_one_did_is_a_command_too_many() {
        let version = |name: &str, says: &str, etag: u32| Version {
            name: name.to_owned(),
            says: says.to_owned(),
            etag: etag.to_string(),
        };
        let mut seen = vec![version("a", "1", 1), version("b", "1", 2), version("a", "2", 3), version("a", "1", 4)];
        assert_eq!(twice(&seen), 0);
        seen.push(version("b", "1", 5));
        assert_eq!(twice(&seen), 1);
    }
}

//! `list`, `get` and `checkpoints`: lists of things, cut at a limit, and the watch over jobs.

use sluice_proto::v1;

use super::watch::{Told, Watch, state_word};
use super::{Invocation, fleet, money, quota, rent, tenants};
use crate::args::{GetArgs, JobFilter, Kind, ListArgs};
use crate::connect::read_pages;
use crate::error::CliError;
use crate::output::{Format, View, line};
use crate::reference::tenant;
use crate::view::{CheckpointView, EventView, JobView};

/// Where a command has no `--limit`.
pub(super) const DEFAULT_LIMIT: usize = 500;

pub(super) async fn list(at: &Invocation, args: ListArgs) -> Result<(), CliError> {
    if args.watch { watch(at, &args.filter).await } else { jobs(at, &args.filter, args.limit.get()).await }
}

pub(super) async fn get(at: &Invocation, args: GetArgs) -> Result<(), CliError> {
    let limit = args.limit.get();
    if args.kind == Kind::Jobs {
        return match args.names.as_slice() {
            [] if args.watch => watch(at, &args.filter).await,
            [] => jobs(at, &args.filter, limit).await,
            _ if args.watch => Err(CliError::field("--watch", "watches all jobs; for one, use describe or --wait")),
            names => named_jobs(at, names).await,
        };
    }
    if args.kind == Kind::Orders && !args.watch {
        return rent::orders(at, &args.names, limit).await;
    }
    if args.watch {
        return Err(CliError::field("--watch", "only jobs can be watched"));
    }
    let name = match args.names.as_slice() {
        [] => None,
        [one] => Some(one.as_str()),
        _ => return Err(CliError::field("NAME", "several names are for jobs only")),
    };
    let job = || {
        name.ok_or_else(|| CliError::Usage {
            message: "no job is named".into(),
            field: Some("NAME".into()),
            next: Some("Pass one, for example: sluice get events JOB".into()),
        })
    };
    match args.kind {
        Kind::Jobs | Kind::Orders => Ok(()),
        Kind::Sites => fleet::list_sites(at, limit).await,
        Kind::Nodes => fleet::list_nodes(at, name, limit).await,
        Kind::Devices => fleet::devices(at, name, limit).await,
        Kind::Classes => fleet::classes(at).await,
        Kind::Tenants => tenants::list_tenants(at, limit).await,
        Kind::Projects => tenants::list_projects(at, name, limit).await,
        Kind::Keys => tenants::list_keys(at, tenant(name, &at.scope)?, limit).await,
        Kind::Secrets => tenants::list_secrets(at, limit).await,
        Kind::Quotas => quota::list_quotas(at, name).await,
        Kind::Budgets => money::list_budgets(at, name).await,
        Kind::Prices => money::prices(at, name).await,
        Kind::Checkpoints => checkpoints(at, job()?, limit).await,
        Kind::Events => events(at, job()?, limit).await,
        Kind::Usage => money::usage(at, name, limit).await,
        Kind::Transfers => money::transfers(at, name, limit).await,
    }
}

/// Reads one job.
pub(super) async fn read_job(at: &Invocation, name: &str) -> Result<v1::Job, CliError> {
    let request = v1::GetJobRequest { name: name.to_owned() };
    at.api.unary("read the job", request, async |r| at.api.jobs().get_job(r).await).await
}

async fn named_jobs(at: &Invocation, names: &[String]) -> Result<(), CliError> {
    let mut views = Vec::new();
    for name in names {
        views.push(JobView::from(&read_job(at, &at.job(name).await?).await?));
    }
    match views.as_slice() {
        [one] => at.console.one(one),
        several => at.console.list(several),
    }
}

/// Whose jobs.
fn parent(at: &Invocation, filter: &JobFilter) -> Result<String, CliError> {
    match (filter.all_tenants, filter.all_projects) {
        (true, _) => Ok("tenants/-".to_owned()),
        (false, true) => at.scope.tenant(),
        (false, false) => at.scope.project(),
    }
}

/// The filter in AIP-160's simplest form.
fn filter_text(filter: &JobFilter) -> Result<String, CliError> {
    let mut terms = Vec::new();
    let mut term = |field: &str, flag: &str, value: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if value.is_empty() || !value.bytes().all(word) || !field.bytes().all(word) {
            return Err(CliError::field(flag, format!("`{value}` has characters that a filter cannot hold")));
        }
        terms.push(format!("{field}={value}"));
        Ok(())
    };
    if let Some(state) = &filter.state {
        let state = state.to_ascii_uppercase();
        if v1::JobState::from_str_name(&format!("JOB_STATE_{state}")).is_none() {
            return Err(CliError::field("--state", format!("`{state}` is no state of a job")));
        }
        term("state", "--state", &state)?;
    }
    if let Some(name) = &filter.name {
        term("display_name", "--name", name)?;
    }
    for (key, value) in &filter.label {
        term(&format!("labels.{key}"), "--label", value)?;
    }
    Ok(terms.join(" AND "))
}

/// The same over one job: a watch has no filter of its own.
fn matches(filter: &JobFilter, job: &v1::Job) -> bool {
    let label = |key: &String, value: &String| {
        job.spec.as_ref().is_some_and(|spec| spec.labels.get(key.as_str()).is_some_and(|found| found == value))
    };
    filter.state.as_ref().is_none_or(|state| state_word(job).eq_ignore_ascii_case(state))
        && filter.name.as_ref().is_none_or(|name| job.display_name == *name)
        && filter.label.iter().all(|(key, value)| label(key, value))
}

async fn jobs(at: &Invocation, filter: &JobFilter, limit: usize) -> Result<(), CliError> {
    let (parent, filter) = (parent(at, filter)?, filter_text(filter)?);
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListJobsRequest { parent: parent.clone(), page_size, page_token, filter: filter.clone() };
        let page = at.api.unary("list the jobs", request, async |r| at.api.jobs().list_jobs(r).await).await?;
        Ok((page.jobs, page.next_page_token))
    })
    .await?;
    let views: Vec<JobView> = listing.items.iter().map(JobView::from).collect();
    print_listing(at, &views, listing.more)
}

/// Prints a list and says where it was cut.
pub(super) fn print_listing<V: View>(at: &Invocation, views: &[V], more: bool) -> Result<(), CliError> {
    at.console.list(views)?;
    if more {
        at.console.note(&format!("there are more than these {}; raise --limit", views.len()));
    }
    Ok(())
}

/// Prints each matching job now and at every change, until Ctrl-C.
async fn watch(at: &Invocation, filter: &JobFilter) -> Result<(), CliError> {
    filter_text(filter)?;
    let mut watch = Watch::new(at, parent(at, filter)?);
    let mut titled = false;
    let print = async {
        loop {
            match watch.next().await? {
                Told::Again => at.console.note("changes were missed; the current jobs follow"),
                Told::Current => {}
                Told::Job(job) if !matches(filter, &job) => {}
                Told::Job(job) => {
                    let view = JobView::from(job.as_ref());
                    at.console.data(&changed(at, &view, titled)?)?;
                    titled = true;
                }
            }
        }
    };
    tokio::select! {
        ended = print => ended,
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted("no longer watched".into())),
    }
}

/// One change: a row below titles of fixed widths, a line of JSON, a YAML document or a name.
fn changed(at: &Invocation, view: &JobView, titled: bool) -> Result<String, CliError> {
    let how = at.console.rendered();
    match how.format {
        Format::Json => line(view),
        Format::Yaml => Ok(format!("---\n{}", crate::output::document(JobView::KIND, view, Format::Yaml)?)),
        Format::Name => Ok(view.name()),
        Format::Table | Format::Wide => {
            let mut text = String::new();
            let cells = view.cells(how.now);
            let widths = [18, 20, 10, 20, 12, 10, 14, 6];
            let row = |cells: Vec<String>| {
                let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", dash(cell)));
                padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
            };
            if !titled {
                let titles = ["ID", "NAME", "STATE", "REASON", "SITE", "STEP", "SPENT", "AGE"];
                text.push_str(&row(titles.map(str::to_owned).into()));
            }
            text.push_str(&row(cells));
            Ok(text)
        }
    }
}

fn dash(cell: &str) -> String {
    if cell.is_empty() { "-".to_owned() } else { crate::output::printable(cell) }
}

/// Reads a job's checkpoints, newest first.
pub(super) async fn read_checkpoints(
    at: &Invocation,
    job: &str,
    limit: usize,
) -> Result<(Vec<CheckpointView>, bool), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListCheckpointsRequest { parent: job.to_owned(), page_size, page_token };
        let page =
            at.api.unary("list the checkpoints", request, async |r| at.api.jobs().list_checkpoints(r).await).await?;
        Ok((page.checkpoints, page.next_page_token))
    })
    .await?;
    Ok((listing.items.iter().map(CheckpointView::from).collect(), listing.more))
}

pub(super) async fn checkpoints(at: &Invocation, job: &str, limit: usize) -> Result<(), CliError> {
    let job = at.job(job).await?;
    let (views, more) = read_checkpoints(at, &job, limit).await?;
    print_listing(at, &views, more)
}

/// Reads a job's events, oldest first.
pub(super) async fn read_events(at: &Invocation, job: &str, limit: usize) -> Result<(Vec<EventView>, bool), CliError> {
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListEventsRequest { parent: job.to_owned(), page_size, page_token };
        let page = at.api.unary("list the events", request, async |r| at.api.jobs().list_events(r).await).await?;
        Ok((page.events, page.next_page_token))
    })
    .await?;
    Ok((listing.items.iter().map(EventView::from).collect(), listing.more))
}

async fn events(at: &Invocation, job: &str, limit: usize) -> Result<(), CliError> {
    let job = at.job(job).await?;
    let (views, more) = read_events(at, &job, limit).await?;
    print_listing(at, &views, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_words_joined_by_and() {
        let filter = JobFilter {
            state: Some("running".into()),
            name: Some("train-1".into()),
            label: vec![("team".into(), "a/b".into())],
            ..JobFilter::default()
        };
        assert_eq!(filter_text(&filter).unwrap(), "state=RUNNING AND display_name=train-1 AND labels.team=a/b");
        let wrong = [
            JobFilter { state: Some("happy".into()), ..JobFilter::default() },
            JobFilter { name: Some("x OR y".into()), ..JobFilter::default() },
            JobFilter { label: vec![("a b".into(), "c".into())], ..JobFilter::default() },
        ];
        for filter in wrong {
            assert_eq!(filter_text(&filter).unwrap_err().exit(), crate::Exit::Usage);
        }
        let mut job = v1::Job { display_name: "train-1".into(), ..Default::default() };
        job.set_state(v1::JobState::Running);
        assert!(!matches(&filter, &job));
        job.spec.get_or_insert_default().labels.insert("team".into(), "a/b".into());
        assert!(matches(&filter, &job));
    }
}

//! `describe` and `why`: all that is known of one job, and why it waits.

use serde::Serialize;
use sluice_proto::v1;

use super::Invocation;
use super::get::{read_checkpoints, read_events, read_job};
use super::rent::{leg_of, read_order};
use crate::error::CliError;
use crate::output::{Column, Rendered, Style, View, Width, document, grid, printable};
use crate::view::{CheckpointView, EventView, ExplanationView, JobView, MigrationView, age, job::TaskView, short_site};

/// Events shown.
const LAST_EVENTS: usize = 10;
/// Checkpoints shown.
const NEWEST_CHECKPOINTS: usize = 5;
/// Events are listed oldest first, so the last ones are found by reading all; more than so many are not read.
const MOST_EVENTS: usize = 20_000;

/// All that is known of a job.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Description {
    pub(crate) job: JobView,
    /// The newest.
    pub(crate) checkpoints: Vec<CheckpointView>,
    /// The last, oldest first.
    pub(crate) events: Vec<EventView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits: Option<ExplanationView>,
}

pub(super) async fn describe(at: &Invocation, job: &str) -> Result<(), CliError> {
    let name = match job.rsplit('/').next().is_some_and(|id| id.starts_with("ord-")) {
        // All that is known of a rental is known of the job that holds its slices.
        true => leg_of(&read_order(at, job).await?)?,
        false => at.job(job).await?,
    };
    let job = read_job(at, &name).await?;
    let (checkpoints, _) = read_checkpoints(at, &name, NEWEST_CHECKPOINTS).await?;
    let (mut events, _) = read_events(at, &name, MOST_EVENTS).await?;
    events.drain(..events.len().saturating_sub(LAST_EVENTS));
    let waits = match job.state() {
        v1::JobState::Pending => Some(explain(at, &name).await?),
        _ => None,
    };
    let description = Description { job: JobView::from(&job), checkpoints, events, waits };
    if at.console.is_human() {
        at.console.data(&text(&description, at.console.rendered()))
    } else if at.console.format == crate::output::Format::Name {
        at.console.data(&description.job.name)
    } else {
        at.console.data(&document("JobDescription", &description, at.console.format)?)
    }
}

async fn explain(at: &Invocation, name: &str) -> Result<ExplanationView, CliError> {
    let request = v1::ExplainJobRequest { name: name.to_owned() };
    let answer = at.api.unary("explain the job", request, async |r| at.api.jobs().explain_job(r).await).await?;
    Ok(ExplanationView::new(name, &answer))
}

pub(super) async fn why(at: &Invocation, job: &str) -> Result<(), CliError> {
    let name = at.job(job).await?;
    let explanation = explain(at, &name).await?;
    if at.console.is_human() {
        return at.console.data(&explanation.text(at.console.out));
    }
    if at.console.format == crate::output::Format::Name {
        return at.console.data(explanation.reason.as_deref().unwrap_or_default());
    }
    at.console.data(&document("Explanation", &explanation, at.console.format)?)
}

/// Lines of `Label: value`, without those that have no value.
struct Sheet {
    text: String,
    style: Style,
}

impl Sheet {
    fn line(&mut self, label: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if !value.is_empty() {
            let label = self.style.dim(&format!("{:<14}", format!("{label}:")));
            self.text.push_str(&format!("{label}{}\n", printable(value)));
        }
    }

    fn section(&mut self, title: &str, body: &str) {
        if !body.is_empty() {
            self.text.push_str(&format!("\n{title}\n"));
            for line in body.lines() {
                self.text.push_str(&format!("  {line}\n"));
            }
        }
    }
}

/// The description for people.
pub(crate) fn text(description: &Description, how: Rendered) -> String {
    let job = &description.job;
    let mut sheet = Sheet { text: String::new(), style: how.style };
    head(&mut sheet, job, how);
    asked(&mut sheet, job);
    sheet.section("Placement", &grid(TASK_COLUMNS, job.tasks.iter().map(task).collect(), Width::Normal, how.style));
    if let Some(migration) = &job.migration {
        sheet.section("Migration", &migration_line(migration));
    }
    sheet.section("Money", &money(job));
    sheet.section("Checkpoints", &rows(&description.checkpoints, how));
    sheet.section("Last events", &rows(&description.events, how));
    if let Some(waits) = &description.waits {
        sheet.section("Why it waits", &waits.text(how.style));
    }
    sheet.text
}

fn rows<V: View>(items: &[V], how: Rendered) -> String {
    let cells = items.iter().map(|item| item.cells(how.now)).collect();
    grid(V::COLUMNS, cells, Width::Normal, how.style)
}

fn head(sheet: &mut Sheet, job: &JobView, how: Rendered) {
    let since = |time: &Option<String>| match time {
        None => String::new(),
        Some(time) => format!("{time} ({} ago)", age(Some(time), how.now)),
    };
    sheet.line("Name", &job.display_name);
    sheet.line("Id", &job.id);
    sheet.line("Resource", &job.name);
    // Coloured text must not pass through `printable`.
    let label = sheet.style.dim(&format!("{:<14}", "State:"));
    sheet.text.push_str(&format!("{label}{}\n", how.style.state(&job.state)));
    sheet.line("Reason", job.reason.as_deref().unwrap_or_default());
    sheet.line("Message", job.message.as_deref().unwrap_or_default());
    sheet.line("Site", job.site.as_deref().map(short_site).unwrap_or_default());
    sheet.line("Submitted", since(&job.create_time));
    sheet.line("Started", since(&job.start_time));
    sheet.line("Ended", since(&job.end_time));
    let limit = job.spec.max_run_time.as_ref().map_or("no limit".to_owned(), |limit| format!("of {limit}"));
    sheet.line("Run time", format!("{} ({limit})", job.run_time));
    sheet.line("Attempts", format!("{} ({} lost), generation {}", job.attempts, job.losses, job.generation));
    let metrics: Vec<String> = job.metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
    sheet.line("Step", [vec![job.step.to_string()], metrics].concat().join(", "));
}

fn asked(sheet: &mut Sheet, job: &JobView) {
    let (spec, resources) = (&job.spec, &job.spec.resources);
    sheet.line("Command", spec.command.join(" "));
    sheet.line(
        "Resources",
        format!(
            "{} x ({} of {}, {}; host {} cores, {})",
            spec.tasks, resources.share, resources.class, resources.memory, resources.host_cores, resources.host_memory
        ),
    );
    sheet.line("Priority", spec.priority.to_string());
    sheet.line("Network", &spec.network);
    sheet.line("Sites", spec.sites.iter().map(|site| short_site(site)).collect::<Vec<_>>().join(", "));
    let pairs = |map: &std::collections::BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    sheet.line("Environment", pairs(&spec.env));
    sheet.line("Labels", pairs(&spec.labels));
    if let Some(folder) = &spec.work_dir {
        sheet.line("Workdir", format!("{} ({} bytes)", folder.digest, folder.size_bytes));
    }
    sheet.line("Secrets", spec.secrets.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "));
    if let Some(retry) = &spec.retry {
        sheet.line("Retries", format!("{} after failures, {} after losses", retry.on_failure, retry.on_loss));
    }
    let Some(policy) = &spec.checkpoint else { return sheet.line("Checkpoint", "never: it starts again after a loss") };
    let how = match &policy.directory {
        Some(folder) => format!("folder {}", folder.path),
        None if policy.home => "its home folder, also at its end".to_owned(),
        None => "state provider".to_owned(),
    };
    let steps = (policy.every_steps > 0).then(|| format!(", every {} steps", policy.every_steps));
    let time = policy.every.as_ref().map(|every| format!(", every {every}"));
    sheet.line("Checkpoint", format!("{how}{}{}", steps.unwrap_or_default(), time.unwrap_or_default()));
}

const TASK_COLUMNS: &[Column] = &[
    Column::new("RANK").right(),
    Column::new("STATE"),
    Column::new("NODE"),
    Column::new("DEVICE").right(),
    Column::new("LEASE"),
    Column::new("ENDED"),
];

fn task(task: &TaskView) -> Vec<String> {
    vec![
        task.rank.to_string(),
        task.state.clone(),
        task.node.clone(),
        task.device.to_string(),
        task.lease.clone(),
        task.ending(),
    ]
}

fn migration_line(migration: &MigrationView) -> String {
    let reason = migration.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let text = format!(
        "{} -> {}: {}{reason}, at step {}, asked by {}",
        short_site(&migration.from_site),
        short_site(&migration.to_site),
        migration.phase,
        migration.step,
        migration.cause
    );
    printable(&text)
}

fn money(job: &JobView) -> String {
    format!(
        "spent so far  {}\ncredited back {}\nheld          {}\nper hour      {}\nper second    {}\n",
        job.spent,
        job.credited,
        job.held,
        job.hourly,
        job.hourly.per_second()
    )
}

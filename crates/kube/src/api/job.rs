//! `GpuJob`: a job on slices of devices.

use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Condition;
use crate::amount::{Share, Size, Span};

/// Why a change of anything but `suspend` is refused.
const FIXED: &str = "only suspend can change: delete the job and make another";
/// Paths that stay below where they begin.
const INNER: &str = "!self.startsWith('/') && !self.split('/').exists(part, part == '' || part == '.' || part == '..')";

fn fixed() -> Rule {
    Rule::new("self == oldSelf").message(FIXED)
}

fn inner_path() -> Rule {
    Rule::new(INNER).message("a path below the working directory, without `..`")
}

/// What somebody wants run. All but suspend is fixed when the object is made.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "GpuJob",
    plural = "gpujobs",
    shortname = "gj",
    category = "sluice",
    namespaced,
    status = "GpuJobStatus",
    derive = "PartialEq",
    doc = "GpuJob is a job that Sluice runs on slices of devices, in the name of the tenant that its namespace belongs to. Deleting it ends the job; the object goes when the last window is billed.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where it stands"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        description = "A documented reason, where there is one"
    ),
    printcolumn(
        name = "Class",
        type_ = "string",
        json_path = ".spec.resources.deviceClass",
        description = "Device class"
    ),
    printcolumn(
        name = "Share",
        type_ = "string",
        json_path = ".spec.resources.share",
        description = "Share of a device per task"
    ),
    printcolumn(
        name = "Spent",
        type_ = "integer",
        json_path = ".status.spentCredits",
        description = "Billed so far, in credits: 1e-6 of the currency"
    ),
    printcolumn(
        name = "Site",
        type_ = "string",
        json_path = ".status.site",
        description = "Where it is",
        priority = "1"
    ),
    printcolumn(
        name = "Step",
        type_ = "integer",
        json_path = ".status.step",
        description = "Last step told",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.maxRunTime) == has(oldSelf.maxRunTime)").message(FIXED).field_path(".maxRunTime"),
    validation = Rule::new("has(self.checkpoint) == has(oldSelf.checkpoint)").message(FIXED).field_path(".checkpoint"),
    validation = Rule::new("has(self.workDir) == has(oldSelf.workDir)").message(FIXED).field_path(".workDir"),
    validation = Rule::new("self.tasks == 1 || !has(self.checkpoint) || !has(self.checkpoint.stateProvider) || !has(self.checkpoint.every)").message("the tasks of a gang have no common clock, and parts of different steps are no checkpoint: set everySteps instead").field_path(".checkpoint"),
)]
pub struct GpuJobSpec {
    /// True stops the job at a checkpoint and frees what it holds; false queues it again. The only field that can change.
    #[serde(default)]
    pub suspend: bool,
    /// Program and arguments, run in the working directory.
    #[schemars(length(min = 1, max = 256), inner(length(max = 32768)))]
    #[x_kube(validation = Rule::new("self[0] != ''").message("a job has a program to run"),
             validation = fixed())]
    pub command: Vec<String>,
    /// Environment.
    #[serde(default)]
    #[schemars(length(max = 256))]
    #[x_kube(validation = fixed(),
             merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub env: Vec<EnvVar>,
    /// The working directory: a tar archive that was uploaded to the project before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = fixed())]
    pub work_dir: Option<Blob>,
    /// Read-only data that was uploaded to the project before.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(validation = fixed())]
    pub inputs: Vec<Input>,
    /// Tasks of the job, started all or none.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = fixed())]
    pub tasks: i64,
    /// What each task gets.
    #[x_kube(validation = fixed())]
    pub resources: Resources,
    /// Higher goes first: -100 to 100.
    #[serde(default)]
    #[schemars(range(min = -100, max = 100))]
    #[x_kube(validation = fixed())]
    pub priority: i64,
    /// The job is ended after so much run time over all attempts, for example 20m. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8784h')").message("a run limit is 1s to 8784h (366 days)"),
             validation = fixed())]
    pub max_run_time: Option<Span>,
    /// What happens after failures.
    #[serde(default)]
    #[x_kube(validation = fixed())]
    pub retry: Retry,
    /// How the job's state is captured. Default: it is not, and the job starts again from nothing after a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = fixed())]
    pub checkpoint: Option<Checkpoint>,
    /// Secrets of the project that the job reads as files /run/secrets/NAME.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(validation = fixed(),
             merge_strategy = ListMerge::Map(vec!["name".to_string()]))]
    pub secrets: Vec<SecretFile>,
    /// What the tasks may reach: Loopback is their own, Gang the other tasks of the job, Egress all that the host reaches. The
    /// project's policy must allow the latter two.
    #[serde(default)]
    #[x_kube(validation = fixed())]
    pub network: Network,
    /// Sites that it may run at. Default: any that the project may use.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    #[x_kube(validation = fixed(),
             merge_strategy = ListMerge::Set)]
    pub sites: Vec<String>,
}

const fn one() -> i64 {
    1
}

/// A variable of the environment.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Letters, digits and _. Names that begin with SLUICE_ are set by the system.
    #[schemars(length(max = 256), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('SLUICE_')").message("variables that begin with SLUICE_ are set by the system"))]
    pub name: String,
    /// Its value.
    #[serde(default)]
    #[schemars(length(max = 32768))]
    pub value: String,
}

/// Content that was uploaded before.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// BLAKE3 of the content, 64 hexadecimal digits.
    #[schemars(length(min = 64, max = 64), pattern("^[0-9a-f]*$"))]
    pub digest: String,
    /// Its size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
}

/// Content that is placed below the working directory.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// BLAKE3 of the content, 64 hexadecimal digits.
    #[schemars(length(min = 64, max = 64), pattern("^[0-9a-f]*$"))]
    pub digest: String,
    /// Its size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
    /// Path below the working directory where it is placed.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = inner_path())]
    pub path: String,
}

/// What one task gets.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Device class, for example cpu.
    #[serde(default = "cpu")]
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub device_class: String,
    /// Share of one device: 1m to 1 (the whole device).
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('1m')) >= 0 && quantity(string(self)).compareTo(quantity('1')) <= 0").message("a slice is 1m to 1000m of one device"))]
    pub share: Share,
    /// Memory of the device (of the host, for class cpu): a hard cap.
    #[serde(default = "memory")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('1Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1024Ti')) <= 0").message("a slice has 1Mi to 1024Ti of memory"))]
    pub memory: Size,
    /// Host processor beside the slice, in cores: 2, or 250m.
    #[serde(default = "no_cores")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).compareTo(quantity('1000')) <= 0").message("a task has 0 to 1000 host cores"))]
    pub host_cores: Share,
    /// Host memory beside the slice.
    #[serde(default = "no_memory")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity('0')) >= 0 && quantity(string(self)).compareTo(quantity('1024Ti')) <= 0").message("a task has 0 to 1024Ti of host memory"))]
    pub host_memory: Size,
}

fn cpu() -> String {
    "cpu".to_owned()
}

fn memory() -> Size {
    Size::text("512Mi")
}

fn no_memory() -> Size {
    Size::text("0")
}

fn no_cores() -> Share {
    Share::from_milli(0)
}

/// Retries. What the job did and what happened to it are counted apart.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How often a job that failed by itself is started again.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub on_failure: i64,
    /// How often a job that lost its node or site is started again.
    #[serde(default = "often")]
    #[schemars(range(min = 0, max = 100_000))]
    pub on_loss: i64,
}

const fn often() -> i64 {
    100
}

impl Default for Retry {
    fn default() -> Self {
        Self { on_failure: 0, on_loss: often() }
    }
}

/// When the job's state is captured, and how.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.stateProvider) != has(self.directory)").message("a checkpoint has either stateProvider or directory"),
)]
pub struct Checkpoint {
    /// The job speaks the state-provider protocol: bit-exact, and moves between types of devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_provider: Option<StateProvider>,
    /// The job writes complete sets into a folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Directory>,
    /// Capture after so many steps; 0 = not by steps.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub every_steps: i64,
    /// Capture after so much time, for example 10m. Default: not by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms')").message("an interval is at least 100ms"))]
    pub every: Option<Span>,
    /// At how many sites a checkpoint must be stored before it counts as durable; 0 = 2 where there are two.
    #[serde(default)]
    #[schemars(range(min = 0, max = 64))]
    pub durable_sites: i64,
}

/// The protocol has no settings.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
pub struct StateProvider {}

/// A folder that an unmodified program writes.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.completionFile) != has(self.renamedPrefix)").message("declare completionFile or renamedPrefix: without it a half-written checkpoint could be taken for a whole one"),
)]
pub struct Directory {
    /// Path below the working directory.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = inner_path())]
    pub path: String,
    /// A set is complete when this file appears in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), pattern("^[^/]*$"))]
    pub completion_file: Option<String>,
    /// A set is a folder whose name begins with this and that is renamed into place when complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), pattern("^[^/]*$"))]
    pub renamed_prefix: Option<String>,
    /// Asks the program to write a set. Default: it writes on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(pattern("^(USR1|USR2|TERM)$"))]
    pub signal: Option<String>,
    /// How long it may take to write a set after the signal, at most 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("a grace is at most 1h"))]
    pub grace: Option<Span>,
}

/// A secret that the job reads.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretFile {
    /// Name of the secret.
    #[schemars(length(max = 63), pattern("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A variable that holds the path of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), pattern("^[A-Za-z_][A-Za-z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!self.startsWith('SLUICE_')").message("variables that begin with SLUICE_ are set by the system"))]
    pub path_variable: Option<String>,
}

/// What tasks may reach.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// Their own loopback.
    #[default]
    Loopback,
    /// The other tasks of the job.
    Gang,
    /// All that the host reaches.
    Egress,
}

/// What is so. Written by the operator.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuJobStatus {
    /// The generation of the spec that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted: Sluice took the job. Running, Suspended: it does, it is. Complete, Failed: it ended well or otherwise.
    /// Settled: its receipt is final.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// Pending, Starting, Running, Suspending, Suspended, Migrating, Cancelling, Succeeded, Failed or Cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// A documented reason for the phase, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reason in words, with what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The job in Sluice: tenants/TENANT/projects/PROJECT/jobs/JOB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The site where it is, while it is somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Attempts so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i64>,
    /// Last step told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// When it first ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<String>,
    /// Billed so far, in credits (1e-6 of the currency).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent_credits: Option<i64>,
    /// Credited back so far, because the platform caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credited_credits: Option<i64>,
}

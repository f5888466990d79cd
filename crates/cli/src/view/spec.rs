//! What was asked for, in the words of the job file.

use std::collections::BTreeMap;

use serde::Serialize;
use sluice_proto::v1;
use sluice_types::Bytes;

use super::{filled, milli, word};
use crate::duration;

/// A job's specification.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SpecView {
    pub(crate) command: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) work_dir: Option<BlobView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) inputs: Vec<BlobView>,
    pub(crate) tasks: u32,
    pub(crate) resources: ResourcesView,
    pub(crate) priority: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_run_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<RetryView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<CheckpointPolicyView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<SecretRefView>,
    pub(crate) network: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sites: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
}

/// Uploaded content.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlobView {
    pub(crate) digest: String,
    pub(crate) size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
}

/// What each task gets.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResourcesView {
    pub(crate) class: String,
    pub(crate) share: String,
    pub(crate) memory: String,
    pub(crate) host_cores: String,
    pub(crate) host_memory: String,
}

/// What happens after failures.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RetryView {
    pub(crate) on_failure: u32,
    pub(crate) on_loss: u32,
}

/// A secret that it reads.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretRefView {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path_variable: Option<String>,
}

/// How and when its state is captured.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckpointPolicyView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state_provider: Option<StateProviderView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<DirectoryView>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) home: bool,
    pub(crate) every_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<String>,
    pub(crate) durable_sites: u32,
}

/// The protocol has no settings.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StateProviderView {}

/// A watched folder.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DirectoryView {
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) renamed_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grace: Option<String>,
}

impl From<&v1::BlobRef> for BlobView {
    fn from(blob: &v1::BlobRef) -> Self {
        Self { digest: blob.digest.clone(), size_bytes: blob.size_bytes, path: filled(&blob.path) }
    }
}

fn span(span: Option<&prost_types::Duration>) -> Option<String> {
    span.map(duration::from_proto).map(duration::print_duration)
}

impl From<&v1::CheckpointPolicy> for CheckpointPolicyView {
    fn from(policy: &v1::CheckpointPolicy) -> Self {
        use v1::checkpoint_policy::Capture;
        use v1::watched_directory::Completion;
        let (state_provider, directory) = match &policy.capture {
            // Whether it is one is shown by `home`.
            None | Some(Capture::Home(_)) => (None, None),
            Some(Capture::StateProvider(_)) => (Some(StateProviderView {}), None),
            Some(Capture::Directory(folder)) => {
                let (completion_file, renamed_prefix) = match &folder.completion {
                    None => (None, None),
                    Some(Completion::CompletionFile(file)) => (Some(file.clone()), None),
                    Some(Completion::RenamedPrefix(prefix)) => (None, Some(prefix.clone())),
                };
                let view = DirectoryView {
                    path: folder.path.clone(),
                    completion_file,
                    renamed_prefix,
                    signal: filled(&folder.signal),
                    grace: span(folder.grace.as_ref()),
                };
                (None, Some(view))
            }
        };
        Self {
            state_provider,
            directory,
            home: matches!(policy.capture, Some(Capture::Home(_))),
            every_steps: policy.every_steps,
            every: span(policy.every.as_ref()),
            durable_sites: policy.durable_sites,
        }
    }
}

impl From<&v1::JobSpec> for SpecView {
    fn from(spec: &v1::JobSpec) -> Self {
        let resources = spec.resources.clone().unwrap_or_default();
        let secret =
            |s: &v1::SecretRef| SecretRefView { name: s.secret.clone(), path_variable: filled(&s.path_variable) };
        let network = match spec.network() {
            v1::NetworkMode::Unspecified => "loopback".to_owned(),
            mode => word(mode.as_str_name(), "NETWORK_MODE_").to_ascii_lowercase(),
        };
        Self {
            command: spec.command.clone(),
            env: spec.env.clone().into_iter().collect(),
            work_dir: spec.work_dir.as_ref().map(BlobView::from),
            inputs: spec.inputs.iter().map(BlobView::from).collect(),
            tasks: spec.tasks.max(1),
            resources: ResourcesView {
                class: resources.device_class,
                share: milli(resources.milli),
                memory: Bytes::new(resources.memory_bytes).to_string(),
                host_cores: milli(resources.host_core_milli),
                host_memory: Bytes::new(resources.host_memory_bytes).to_string(),
            },
            priority: spec.priority,
            max_run_time: span(spec.max_run_time.as_ref()),
            retry: spec.retry.as_ref().map(|r| RetryView { on_failure: r.on_failure, on_loss: r.on_loss() }),
            checkpoint: spec.checkpoint.as_ref().map(CheckpointPolicyView::from),
            secrets: spec.secrets.iter().map(secret).collect(),
            network,
            sites: spec.sites.clone(),
            labels: spec.labels.clone().into_iter().collect(),
        }
    }
}

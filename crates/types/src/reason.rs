//! The reasons that errors and verdicts carry: one documented word each, the same through every door, never reused.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $remedy:literal;)+) => {
        /// Why something was refused, waits or ended. The text form is `google.rpc.ErrorInfo.reason`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it means, one paragraph.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }

            /// What the reader can do next.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)+ }
            }
        }

        impl std::str::FromStr for Reason {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$name),)+ _ => Err(()) }
            }
        }
    };
}

reasons! {
    /// A field of the request has a wrong form or value.
    InvalidField = "INVALID_FIELD", "Correct the field that the error names.";
    /// A required field is missing.
    MissingField = "MISSING_FIELD", "Set the field that the error names.";
    /// The message, list or upload is larger than its bound.
    TooLarge = "TOO_LARGE", "Send less; the error names the bound.";
    /// The request id was used before with another request.
    RequestIdReused = "REQUEST_ID_REUSED", "Use a new request id for a new request.";
    /// No credentials, or credentials that are not known.
    Unauthenticated = "UNAUTHENTICATED", "Pass an API key: --key, SLUICE_KEY or the key file that `sluice up` names.";
    /// The caller may see the object but not do this.
    PermissionDenied = "PERMISSION_DENIED", "Ask an admin of the tenant for a key with the needed role.";
    /// There is no such object, or the caller may not know of it.
    NotFound = "NOT_FOUND", "List the objects you may see: `sluice get KIND`.";
    /// An object of that name exists already.
    AlreadyExists = "ALREADY_EXISTS", "Choose another name.";
    /// The object is not in a state that allows this.
    WrongState = "WRONG_STATE", "Look at its state first: `sluice describe`.";
    /// The object changed since the caller read it.
    EtagMismatch = "ETAG_MISMATCH", "Read it again and retry with the new etag.";
    /// A page or resume token is not one of ours, or too old.
    InvalidToken = "INVALID_TOKEN", "Start again without the token.";
    /// Too many requests or objects are waiting.
    Overloaded = "OVERLOADED", "Retry after the time that the error names.";
    /// The controller is starting, stopping or not the leader.
    Unavailable = "UNAVAILABLE", "Retry with the same request id.";
    /// The deadline passed before the answer was known.
    DeadlineExceeded = "DEADLINE_EXCEEDED", "Retry with the same request id and a later deadline.";
    /// A fault of ours.
    Internal = "INTERNAL", "Report it with the request id.";

    /// No device has enough free share for a task right now.
    NoFreeShare = "NO_FREE_SHARE", "Wait, ask for less, or add a node; `sluice why` names the smallest change.";
    /// No device has enough free memory for a task right now.
    NoFreeMemory = "NO_FREE_MEMORY", "Wait, ask for less memory, or add a node.";
    /// No host has enough free cores for a task right now.
    NoFreeCores = "NO_FREE_CORES", "Wait, ask for fewer host cores, or add a node.";
    /// Not all tasks of the gang fit at one site at once.
    GangDoesNotFit = "GANG_DOES_NOT_FIT", "Wait, ask for fewer tasks, or add nodes.";
    /// No device could ever hold what one task asks for.
    NeverFits = "NEVER_FITS", "Ask for at most what the largest device offers.";
    /// No site has a device of this class.
    UnknownClass = "UNKNOWN_CLASS", "Choose a class from `sluice get classes`.";
    /// The project's residency, or the request, names sites that cannot run it.
    NoAllowedSite = "NO_ALLOWED_SITE", "Name a site from `sluice get sites` that the project may use.";
    /// The nodes that could run it are cordoned, draining or lost.
    NodesUnavailable = "NODES_UNAVAILABLE", "Uncordon a node or wait for one to come back.";
    /// The newest checkpoint is at no site that could run the job.
    CheckpointUnreachable = "CHECKPOINT_UNREACHABLE", "Wait for the site that holds it, or resume from an older one.";
    /// The tenant's funds do not cover the quoted ceiling.
    InsufficientFunds = "INSUFFICIENT_FUNDS", "Deposit money, or lower the run limit or size.";
    /// The tenant's budget of the period does not cover the quoted ceiling.
    BudgetExhausted = "BUDGET_EXHAUSTED", "Raise the budget, wait for the next period, or ask for less.";
    /// The tenant's quota of the class does not cover the request.
    QuotaExceeded = "QUOTA_EXCEEDED", "Wait for own jobs to end, ask for less, or ask a platform admin to raise the quota.";
    /// The tenant's own quota covers the request, but others have borrowed it: it is being called back.
    QuotaLent = "QUOTA_LENT", "Wait: what was borrowed is stopped at a checkpoint, the newest first.";
    /// It used quota that was lowered or called back, so it was checkpointed and suspended.
    QuotaReclaimed = "QUOTA_RECLAIMED", "Nothing: it resumes by itself when the quota covers it again; platform admins may raise it.";
    /// The quota would be lower than what is in use, and its policy is to refuse that.
    QuotaInUse = "QUOTA_IN_USE", "Wait, stop work, or set it with the policy `drain`.";
    /// Something else manages the object, and changes it as it sees fit.
    ManagedElsewhere = "MANAGED_ELSEWHERE", "Change it where it is managed, or take it away from there: `sluice detach`.";
    /// Prices are higher than what the order may cost.
    PriceAboveLimit = "PRICE_ABOVE_LIMIT", "Ask for a new quote, or raise what it may cost at most.";
    /// The price book has no price for this class, isolation and site.
    NoPrice = "NO_PRICE", "An admin sets one: `sluice price set`.";
    /// Jobs of higher priority wait in front.
    BehindOthers = "BEHIND_OTHERS", "Wait, or raise the priority.";
    /// The user suspended it.
    SuspendedByUser = "SUSPENDED_BY_USER", "`sluice resume` it.";
    /// A renewal of its hold failed, so it was checkpointed and suspended.
    SuspendedForMoney = "SUSPENDED_FOR_MONEY", "Deposit money or raise the budget, then `sluice resume` it.";
    /// The policy of the project does not allow the network mode.
    NetworkNotAllowed = "NETWORK_NOT_ALLOWED", "Use loopback, or ask an admin to allow the mode for the project.";
    /// A watched directory needs a declared completion file or atomic rename.
    CheckpointNotDeclared = "CHECKPOINT_NOT_DECLARED", "Declare how a complete checkpoint is recognised.";

    /// The process ended with a status other than 0.
    ExitStatus = "EXIT_STATUS", "Read its log: `sluice logs`.";
    /// A signal ended the process.
    Signalled = "SIGNALLED", "Read its log: `sluice logs`.";
    /// The kernel killed it at its memory cap.
    OutOfMemory = "OUT_OF_MEMORY", "Ask for more memory.";
    /// It filled one of its folders, or a file system that it was given.
    DiskLimit = "DISK_LIMIT", "Write less: the detail names the folder and its bound.";
    /// It ran longer than its run limit.
    RunLimit = "RUN_LIMIT", "Raise the run limit.";
    /// It could not be started.
    StartFailed = "START_FAILED", "Check the command and the working directory in the detail.";
    /// Its host could not start it: no slice, no sandbox, no disk.
    HostFailed = "HOST_FAILED", "Nothing: it is started again elsewhere; an admin looks at the node that it names.";
    /// What it starts from did not come in time: the vault of the site, or what it should hold, was out of reach.
    DataUnreachable = "DATA_UNREACHABLE", "Nothing: it is started again; an admin looks at the site's vault.";
    /// Its node was lost.
    NodeLost = "NODE_LOST", "Nothing: it resumes from its newest durable checkpoint.";
    /// Its site was lost.
    SiteLost = "SITE_LOST", "Nothing: it resumes at another site.";
    /// Its retries for infrastructure losses are used up.
    RetriesExhausted = "RETRIES_EXHAUSTED", "Resubmit it, or raise the retry limit.";
    /// A step of a migration took longer than its deadline; the job went on where it was.
    MigrationTimedOut = "MIGRATION_TIMED_OUT", "Retry the migration; `sluice describe` shows the phase that was late.";
    /// A report of a holder that no longer owns the job was refused.
    StaleGeneration = "STALE_GENERATION", "Nothing: its work is fenced.";
    /// The gateway that had the request is gone, so nothing is paid for it.
    GatewayLost = "GATEWAY_LOST", "Send the request again.";
    /// The file is not a model that can be served.
    NotAModel = "NOT_A_MODEL", "Import a file in GGUF format; the detail and the import's log say what is wrong with it.";
    /// The node cannot enforce slices.
    NotEnforceable = "NOT_ENFORCEABLE", "Give the node writable cgroups, or start it with --advisory.";
}

impl Reason {
    /// What ended a task was its host, its site or the way to its data, not the task: it counts against the retries for
    /// losses, not against those for failures.
    #[must_use]
    pub const fn is_infrastructure(self) -> bool {
        matches!(self, Self::NodeLost | Self::SiteLost | Self::DataUnreachable) || self.is_host_fault()
    }

    /// A host that was there could not do what it offers.
    #[must_use]
    pub const fn is_host_fault(self) -> bool {
        matches!(self, Self::HostFailed | Self::NotEnforceable | Self::NoFreeShare)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_and_round_trip() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.as_str()), "{reason} twice");
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert!(!reason.meaning().is_empty() && reason.remedy().ends_with('.'));
        }
    }
}

//! Names under which the operator does things: request ids, and the manager of what it keeps.

/// The field manager of everything that the operator writes into objects.
pub const FIELD_MANAGER: &str = "sluice-operator";
/// Keeps an object until its money is settled.
pub const FINALIZER: &str = "sluice.dev/settle";

/// The request id of one thing that is done for an object.
///
/// It names the object, what is done, the generation that asks for it and the version of the target that it was decided on.
/// So the same decision, however often and by whichever operator it is carried out, is one request; and a target that was
/// changed by somebody else is a new decision.
#[must_use]
pub fn request_id(uid: &str, action: &str, generation: i64, observed: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [uid, action, &generation.to_string(), observed] {
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes()).update(part.as_bytes());
    }
    let mut bytes = [0u8; 16];
    hasher.finalize_xof().fill(&mut bytes);
    // RFC 9562 §5.8: version 8 is for ids by a rule of one's own.
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A cluster as managers name it: by the uid of its namespace kube-system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster(String);

impl Cluster {
    /// By uid.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        Self(uid.to_owned())
    }

    /// The manager that an object is.
    #[must_use]
    pub fn manager(&self, uid: &str) -> String {
        format!("kubernetes/{}/{uid}", self.0)
    }

    /// The uid of the object that a manager is, where it is one of this cluster.
    #[must_use]
    pub fn object<'a>(&self, manager: &'a str) -> Option<&'a str> {
        manager.strip_prefix("kubernetes/")?.strip_prefix(&self.0)?.strip_prefix('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_decision_is_one_request() {
        let id = request_id("u", "suspend", 2, "7");
        assert_eq!(id, request_id("u", "suspend", 2, "7"));
        assert_eq!((id.len(), id.as_bytes()[14], id.matches('-').count()), (36, b'8', 4));
        for other in
            [("v", "suspend", 2, "7"), ("u", "resume", 2, "7"), ("u", "suspend", 3, "7"), ("u", "suspend", 2, "8")]
        {
            assert_ne!(id, request_id(other.0, other.1, other.2, other.3));
        }
        assert_ne!(request_id("ab", "c", 0, ""), request_id("a", "bc", 0, ""));
    }

    #[test]
    fn only_managers_of_the_cluster_are_objects_of_it() {
        let cluster = Cluster::new("c1");
        assert_eq!(cluster.object(&cluster.manager("u")), Some("u"));
        for foreign in ["", "kubernetes/c2/u", "kubernetes/c1", "terraform/c1/u", "kubernetes/c11/u"] {
            assert_eq!(cluster.object(foreign), None, "{foreign}");
        }
    }
}

//! The system-call filter of a sandbox: everything is allowed but what attacks the kernel, other tenants or the sandbox.
//!
//! A list of what is denied, not of what is allowed, because tasks are arbitrary programs; the namespaces, the missing
//! privileges and the whitelist of files do the main work, this removes kernel surface. The choice follows Docker's and
//! systemd's (`@mount @module @raw-io @reboot @swap @debug @keyring @obsolete`) with io_uring and user namespaces
//! added. Denied calls fail with EPERM, `clone3` with ENOSYS so that libraries fall back to `clone`, whose flags a
//! filter can see. A foreign architecture kills the process (seccompiler checks it first).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why no filter could be made.
#[derive(Debug, thiserror::Error)]
#[error("the system-call filter cannot be compiled for this machine")]
pub(crate) struct FilterError(#[from] seccompiler::BackendError);

/// Flags of `clone` and `unshare` that make namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Denied whatever the arguments are.
const DENIED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    // quotactl_fd; not named by every C library.
    443,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// Execution domains that programs ask for in earnest: the native one, 32 bits, 2.6 version numbers, "tell me".
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The filters in the kernel's own form, each for one `--add-seccomp-fd`.
///
/// # Errors
/// The machine's architecture has no filter.
pub(crate) fn filters() -> Result<Vec<Vec<u8>>, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = compile(denied_rules()?, libc::EPERM, arch)?;
    let absent = compile(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS, arch)?;
    Ok(vec![to_bytes(&denied), to_bytes(&absent)])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, errno: i32, arch: TargetArch) -> Result<BpfProgram, FilterError> {
    let errno = u32::try_from(errno).unwrap_or(1);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)?;
    Ok(BpfProgram::try_from(filter)?)
}

/// A rule holds where all its conditions do.
fn when(conditions: &[(u8, Op, u64)]) -> Result<SeccompRule, FilterError> {
    let conditions = conditions.iter().map(|(place, op, value)| {
        // The kernel looks at the lower half of these arguments only, and so must we.
        SeccompCondition::new(*place, Len::Dword, op.clone(), *value)
    });
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

fn denied_rules() -> Result<Rules, FilterError> {
    let mut rules: Rules = DENIED.iter().chain(DENIED_HERE).map(|call| (*call, Vec::new())).collect();
    let mut clone = Vec::new();
    for flag in NAMESPACES {
        let bit = u64::from(flag.cast_unsigned());
        clone.push(when(&[(0, Op::MaskedEq(bit), bit)])?);
    }
    // A thread with descriptors of its own could keep files open where `/proc` does not show them (`disk`).
    let (thread, files) = (libc::CLONE_THREAD.cast_unsigned(), libc::CLONE_FILES.cast_unsigned());
    clone.push(when(&[(0, Op::MaskedEq(u64::from(thread | files)), u64::from(thread))])?);
    rules.insert(libc::SYS_clone, clone);
    let unshare = u64::from(libc::CLOSE_RANGE_UNSHARE);
    rules.insert(libc::SYS_close_range, vec![when(&[(2, Op::MaskedEq(unshare), unshare)])?]);
    let terminal = |request: u64| when(&[(1, Op::Eq, request)]);
    // Typing into the terminal of whoever started us, and the console's selection.
    rules.insert(libc::SYS_ioctl, vec![terminal(0x5412)?, terminal(0x541c)?]);
    let personality: Vec<_> = PERSONALITIES.iter().map(|domain| (0, Op::Ne, *domain)).collect();
    rules.insert(libc::SYS_personality, vec![when(&personality)?]);
    let sockets = socket_rules()?;
    rules.insert(libc::SYS_socket, sockets.clone());
    rules.insert(libc::SYS_socketpair, sockets);
    // The x32 calls of x86-64 are the same numbers with a bit set, and pass the architecture check.
    #[cfg(target_arch = "x86_64")]
    {
        let twins: Vec<_> = rules.iter().map(|(call, rule)| (call | 0x4000_0000, rule.clone())).collect();
        rules.extend(twins);
        rules.extend((512..=547).map(|call| (call | 0x4000_0000, Vec::new())));
    }
    Ok(rules)
}

/// Unix, IPv4, IPv6 and, of netlink, only routing: programs list their network interfaces by it, and in a network
/// namespace of their own without privileges they see and change nothing else.
fn socket_rules() -> Result<Vec<SeccompRule>, FilterError> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let other: Vec<_> = families.iter().map(|family| (0, Op::Ne, u64::from(family.cast_unsigned()))).collect();
    let netlink = u64::from(libc::AF_NETLINK.cast_unsigned());
    let route = u64::from(libc::NETLINK_ROUTE.cast_unsigned());
    Ok(vec![when(&other)?, when(&[(0, Op::Eq, netlink), (2, Op::Ne, route)])?])
}

/// `struct sock_filter` as the kernel reads it: two bytes, one, one, four, in the machine's order.
fn to_bytes(program: &BpfProgram) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for step in program {
        bytes.extend(step.code.to_ne_bytes());
        bytes.extend([step.jt, step.jf]);
        bytes.extend(step.k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_to_what_the_kernel_takes() {
        let filters = filters().unwrap();
        assert_eq!(filters.len(), 2);
        for filter in filters {
            assert!(filter.len() % 8 == 0 && filter.len() / 8 <= 4096, "{} steps", filter.len() / 8);
        }
    }
}

//! Ports that stay free until their owner listens.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;

use anyhow::Context as _;

/// Linux gives ports from 32768 on to outgoing connections; a port of those that was free a moment ago need not be.
const PORTS: Range<u16> = 10_000..20_000;

/// A free address of the loopback that no outgoing connection takes; another caller is unlikely to get the same.
///
/// # Errors
/// No such port is free.
pub fn quiet_address() -> anyhow::Result<SocketAddr> {
    Ok(quiet_listener()?.local_addr()?)
}

/// As [`quiet_address`], still held: several that are held at once differ.
///
/// # Errors
/// No such port is free.
pub(crate) fn quiet_listener() -> anyhow::Result<TcpListener> {
    let mut random = [0; 2];
    getrandom::fill(&mut random).context("no random numbers")?;
    let ports = PORTS.end - PORTS.start;
    let first = u16::from_le_bytes(random) % ports;
    (first..ports)
        .chain(0..first)
        .find_map(|place| TcpListener::bind((Ipv4Addr::LOCALHOST, PORTS.start + place)).ok())
        .context("no free port from 10000 to 19999")
}

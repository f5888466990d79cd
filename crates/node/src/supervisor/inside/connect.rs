//! A connection to a port of the sandbox's own loopback, carried over the session's input and output.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 << 10;

/// Carries bytes both ways until the peer has sent everything; the end of the input is passed on.
///
/// # Errors
/// In words: nobody listens, or the connection broke.
pub(super) fn relay(port: u16) -> Result<(), String> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let peer = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| format!("port {port}: {error}"))?;
    let broken = |error: io::Error| format!("port {port}: {error}");
    // Typed characters go out at once. A peer that is gone shows at the next read.
    let _slower = peer.set_nodelay(true);
    let to = peer.try_clone().map_err(broken)?;
    std::thread::Builder::new().spawn(move || send(to)).map_err(broken)?;
    copy(peer, io::stdout().lock()).map_err(broken)
}

/// The same for what listens at `path`, below the working directory.
///
/// # Errors
/// As [`relay`].
pub(super) fn relay_to_engine(path: &Path) -> Result<(), String> {
    let broken = |error: io::Error| format!("the engine: {error}");
    let peer = UnixStream::connect(path).map_err(broken)?;
    let mut to = peer.try_clone().map_err(broken)?;
    let send = move || {
        let _deaf = copy(io::stdin().lock(), &mut to);
        let _gone = to.shutdown(Shutdown::Write);
    };
    std::thread::Builder::new().spawn(send).map_err(broken)?;
    copy(peer, io::stdout().lock()).map_err(broken)
}

fn send(mut to: TcpStream) {
    // What the peer does not take it does not want; its own direction goes on.
    let _deaf = copy(io::stdin().lock(), &mut to);
    let _gone = to.shutdown(Shutdown::Write);
}

/// Passes on what comes as it comes.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => to.write_all(&buffer[..size]).and_then(|()| to.flush())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

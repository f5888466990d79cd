//! The connection of a peer: what it showed of itself, and how often it may have us read a few bytes.
//!
//! A client that opens the window of an HTTP/2 stream byte by byte has the server send frames of one byte, and each costs as
//! much as one of 16 KiB (CVE-2019-9511). Bytes per second do not bound that, and neither does a bound for each connection,
//! for a tenant may have many. So what is counted is reads of few bytes, over all connections of a tenant; whoever has used
//! them up is read later, when more has come, and less often. Whoever receives much opens the window in large steps, and
//! whoever says much is read in large pieces: neither notices.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use rustls_pki_types::CertificateDer;
use sluice_types::TenantId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::pace::Pace;

/// Quarters of small reads per second of a tenant: 4,000 of less than [`SMALL`] bytes, or four times as many of less than
/// [`LARGE`].
pub(crate) const READS: u64 = 4 * 4000;
/// A caller whose tenant is not known yet, or who has none, has so much less for each connection.
const STRANGER: u64 = 4;
/// Frames that only keep a connection going are smaller: two openings of windows are 26 bytes, a ping is 17.
const SMALL: usize = 64;
/// From here on what is read is worth it.
const LARGE: usize = 1024;

fn cost(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        1..SMALL => 4,
        SMALL..LARGE => 1,
        _ => 0,
    }
}

/// The paces of all tenants that are connected.
#[derive(Debug)]
pub(crate) struct Readers {
    rate: u64,
    tenants: Mutex<HashMap<TenantId, Weak<Pace>>>,
}

impl Readers {
    /// With so many quarters of small reads per second for each tenant.
    pub(crate) fn new(rate: u64) -> Arc<Self> {
        Arc::new(Self { rate, tenants: Mutex::default() })
    }

    fn of(&self, tenant: TenantId) -> Arc<Pace> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return pace;
        }
        tenants.retain(|_, pace| pace.strong_count() > 0);
        let pace = Arc::new(Pace::new(self.rate));
        tenants.insert(tenant, Arc::downgrade(&pace));
        pace
    }
}

/// The pace of one connection: its own, until it is known whose it is.
#[derive(Debug)]
struct Reads {
    all: Arc<Readers>,
    own: Pace,
    tenant: OnceLock<Arc<Pace>>,
}

impl Reads {
    fn pace(&self) -> &Pace {
        self.tenant.get().map_or(&self.own, |pace| &**pace)
    }
}

/// What calls know of their connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    certificates: Arc<Vec<CertificateDer<'static>>>,
    reads: Option<Arc<Reads>>,
}

impl Peer {
    /// The chain that it showed; empty: none.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// It had us do what costs as much as so many quarters of small reads; it is read later for that.
    pub(crate) fn pays(&self, quarters: usize) {
        if let Some(reads) = &self.reads {
            let _later = reads.pace().pass(quarters, Instant::now());
        }
    }

    /// Its first caller was of this tenant; that holds for as long as it is open.
    pub(crate) fn is_of(&self, tenant: TenantId) {
        if let Some(reads) = &self.reads {
            reads.tenant.get_or_init(|| reads.all.of(tenant));
        }
    }
}

/// A peer's connection.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    inner: S,
    peer: Peer,
    /// Until when nothing is read.
    held: Option<Pin<Box<Sleep>>>,
}

impl Connection<TlsStream<TcpStream>> {
    /// Hosts of the cluster, which show a certificate, are read always: they speak for many.
    pub(crate) fn new(inner: TlsStream<TcpStream>, readers: &Arc<Readers>) -> Self {
        let chain = inner.get_ref().1.peer_certificates();
        let chain: Vec<_> = chain.unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect();
        Self::of(inner, chain, readers)
    }
}

impl<S> Connection<S> {
    fn of(inner: S, certificates: Vec<CertificateDer<'static>>, readers: &Arc<Readers>) -> Self {
        let own =
            || Reads { all: Arc::clone(readers), own: Pace::new(readers.rate / STRANGER), tenant: OnceLock::new() };
        let reads = certificates.is_empty().then(|| Arc::new(own()));
        Self { inner, peer: Peer { certificates: Arc::new(certificates), reads }, held: None }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(held) = &mut self.held {
            ready!(held.as_mut().poll(context));
            self.held = None;
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, into))?;
        if let Some(reads) = &self.peer.reads {
            let until = reads.pace().pass(cost(into.filled().len() - before), Instant::now());
            self.held = until.map(|until| Box::pin(sleep_until(until)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    struct Pair {
        ours: Connection<DuplexStream>,
        theirs: DuplexStream,
    }

    fn mk_pair(readers: &Arc<Readers>, tenant: Option<u64>, chain: Vec<CertificateDer<'static>>) -> Pair {
        let (ours, theirs) = duplex(1 << 20);
        let ours = Connection::of(ours, chain, readers);
        if let Some(tenant) = tenant {
            ours.connect_info().is_of(TenantId::from_raw(tenant));
        }
        Pair { ours, theirs }
    }

    /// How long it takes that so many reads are each answered with the next bytes.
    async fn takes(pair: &mut Pair, reads: usize, size: usize) -> Duration {
        let begin = Instant::now();
        let (word, mut heard) = (vec![7; size], vec![0; 1 << 16]);
        for _ in 0..reads {
            pair.theirs.write_all(&word).await.unwrap();
            assert_eq!(pair.ours.read(&mut heard).await.unwrap(), size);
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_drips_is_read_less_often_and_nobody_else_is() {
        let readers = Readers::new(READS);
        let of = |tenant| mk_pair(&readers, Some(tenant), Vec::new());
        let (mut one, mut two, mut other) = (of(1), of(1), of(2));
        // Both of a tenant together: 10,000 reads at 4,000 a second, but for what may come at once.
        let both = tokio::join!(takes(&mut one, 5000, 26), takes(&mut two, 5000, 26));
        let took = both.0.max(both.1);
        assert!((Duration::from_millis(1900)..Duration::from_millis(2700)).contains(&took), "{took:?}");
        assert!(takes(&mut other, 1000, 26).await < Duration::from_millis(50));
        // What is worth reading is read.
        assert!(takes(&mut one, 1, 26).await < Duration::from_millis(50));
        assert!(takes(&mut other, 20_000, LARGE).await < Duration::from_millis(50));
        let calls = takes(&mut other, 20_000, 300).await;
        assert!(calls < Duration::from_millis(1300), "{calls:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_call_costs_is_paid_with_later_reads_of_its_tenant() {
        let readers = Readers::new(READS);
        let (mut one, mut other) = (mk_pair(&readers, Some(1), Vec::new()), mk_pair(&readers, Some(2), Vec::new()));
        one.ours.connect_info().pays(usize::try_from(2 * READS).unwrap());
        // What is read now was under way; what comes after it waits.
        let waited = takes(&mut one, 2, 26).await;
        assert!((Duration::from_millis(1400)..Duration::from_millis(1600)).contains(&waited), "{waited:?}");
        assert!(takes(&mut other, 2, 26).await < Duration::from_millis(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_has_less_and_hosts_are_not_bounded() {
        let readers = Readers::new(READS);
        let stranger = takes(&mut mk_pair(&readers, None, Vec::new()), 3000, 26).await;
        assert!(stranger > Duration::from_millis(2000), "{stranger:?}");
        let host = vec![CertificateDer::from(vec![1])];
        assert!(takes(&mut mk_pair(&readers, None, host), 20_000, 26).await < Duration::from_millis(50));
        // The control: without a rate nobody is.
        let free = Readers::new(u64::MAX);
        assert!(takes(&mut mk_pair(&free, Some(1), Vec::new()), 20_000, 26).await < Duration::from_millis(50));
        assert_eq!(free.tenants.lock().unwrap().len(), 1);
        free.of(TenantId::from_raw(2));
        free.of(TenantId::from_raw(3));
        assert_eq!(free.tenants.lock().unwrap().len(), 1, "those without a connection are forgotten");
    }
}

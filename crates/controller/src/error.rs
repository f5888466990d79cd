//! What ends a controller.

/// Why the controller could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The database. After a failed commit its outcome is unknown, so the process ends and starts again.
    #[error("the database failed")]
    Store(#[from] sluice_store::StoreError),
    /// Keys and certificates.
    #[error("the cluster's identity cannot be used")]
    Identity(#[from] sluice_identity::IdentityError),
    /// The blob folder.
    #[error("the upload folder cannot be used: {0}")]
    Uploads(String),
    /// A socket.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates of the server, or of whom it lets in.
    #[error("the server's TLS cannot be set up: {0}")]
    Tls(String),
    /// The gRPC server.
    #[error("the server failed")]
    Serve(#[from] tonic::transport::Error),
    /// A file of the data folder.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The books do not balance: nothing is served until somebody looked.
    #[error("the ledger does not balance: {0}")]
    Ledger(#[from] sluice_ledger::LedgerError),
    /// A task ended that never should.
    #[error("{0} stopped")]
    Stopped(&'static str),
}

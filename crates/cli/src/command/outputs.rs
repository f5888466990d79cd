//! `cp`: a job's outputs to this host; files in and out of rentals are in `session`.

use std::fs::File;
use std::path::{Path, PathBuf};

use sluice_proto::v1;
use sluice_types::OrderId;

use super::get::read_job;
use super::{Invocation, session};
use crate::archive::{Wanted, unpack};
use crate::args::{CpArgs, Place, SandboxArg};
use crate::error::CliError;
use crate::upload::fetch_outputs;

pub(super) async fn cp(at: &Invocation, args: CpArgs) -> Result<(), CliError> {
    let to = match args.to.parse() {
        Ok(Place::Remote(rental, path)) => return session::copy_in(at, &args.from, &rental, args.rank, path).await,
        Ok(Place::Local(to)) => to,
        Err(never) => match never {},
    };
    let (job, path) = match args.from.split_once(':') {
        None => (args.from.as_str(), None),
        Some((job, path)) => (job, Some(path)),
    };
    if let Some(rental) = rental_of(at, job).await? {
        return session::copy_out(at, rental, args.rank, path.unwrap_or_default(), &to).await;
    }
    outputs(at, job, path, args.rank, &to).await
}

/// The job of a rental's sandboxes, where this names a rental and no other job.
async fn rental_of(at: &Invocation, text: &str) -> Result<Option<String>, CliError> {
    if text.parse::<OrderId>().is_ok() || text.contains("/orders/") {
        let sandbox = SandboxArg { rental: text.to_owned(), rank: 0 };
        return session::job_of(at, &sandbox).await.map(Some);
    }
    let job = read_job(at, &at.job(text).await?).await?;
    let rental = job.spec.as_ref().is_some_and(|spec| spec.kind() == v1::JobKind::Rental);
    Ok(rental.then_some(job.name))
}

async fn outputs(at: &Invocation, job: &str, path: Option<&str>, rank: u32, to: &Path) -> Result<(), CliError> {
    let wanted = wanted(path, to)?;
    let near = match &wanted {
        Wanted::All(dir) => {
            std::fs::create_dir_all(dir)
                .map_err(|error| CliError::io(format!("create the folder {}", dir.display()), error))?;
            dir.clone()
        }
        Wanted::One { to, .. } => folder_of(to),
    };
    let job = at.job(job).await?;
    let file = fetch_outputs(at, &job, rank, &near).await?;
    unpack_to(at, file, wanted, to).await
}

/// Unpacks an archive on a thread of its own.
pub(super) async fn unpack_to(at: &Invocation, file: File, wanted: Wanted, to: &Path) -> Result<(), CliError> {
    let written = tokio::task::spawn_blocking(move || unpack(std::io::BufReader::new(file), &wanted)).await;
    let written = written.map_err(|error| CliError::io("unpack the archive", std::io::Error::other(error)))?;
    let written = written.map_err(|error| match error {
        crate::archive::ArchiveError::Absent(path) => CliError::Missing {
            what: format!("`{path}` in the outputs"),
            next: "Copy all of them: sluice cp JOB DIR".into(),
        },
        other => CliError::io("unpack the archive", std::io::Error::other(other)),
    })?;
    at.console.note(&format!("{} files, {} bytes to {}", written.files, written.bytes, to.display()));
    Ok(())
}

pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// What to take and where to; a path of plain names only.
fn wanted(path: Option<&str>, to: &Path) -> Result<Wanted, CliError> {
    let Some(path) = path.map(|path| path.trim_start_matches("./").trim_end_matches('/')) else {
        return Ok(Wanted::All(to.to_path_buf()));
    };
    if path.is_empty() || path == "." {
        return Ok(Wanted::All(to.to_path_buf()));
    }
    let path = PathBuf::from(path);
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let (true, Some(name)) = (plain, path.file_name()) else {
        return Err(CliError::field("JOB:PATH", format!("{} is not a path below the outputs", path.display())));
    };
    // As cp does: into a folder that exists, else to the new name.
    let to = if to.is_dir() { to.join(name) } else { to.to_path_buf() };
    if to.file_name().is_none() {
        return Err(CliError::field("DEST", format!("{} has no name to write to", to.display())));
    }
    Ok(Wanted::One { path, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_destinations_are_read_like_cp() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path();
        assert_eq!(wanted(None, to).unwrap(), Wanted::All(to.into()));
        assert_eq!(wanted(Some("."), to).unwrap(), Wanted::All(to.into()));
        assert_eq!(wanted(Some("m/w"), to).unwrap(), Wanted::One { path: "m/w".into(), to: to.join("w") });
        let new = to.join("new");
        assert_eq!(wanted(Some("./m/"), &new).unwrap(), Wanted::One { path: "m".into(), to: new });
        for bad in ["../x", "/etc/passwd", "a/../../b"] {
            assert_eq!(wanted(Some(bad), to).unwrap_err().exit(), crate::Exit::Usage, "{bad}");
        }
    }
}

//! `cp`: a job's outputs to this host.

use std::path::{Path, PathBuf};

use super::Invocation;
use crate::archive::{Wanted, unpack};
use crate::args::CpArgs;
use crate::error::CliError;
use crate::upload::fetch_outputs;

pub(super) async fn cp(at: &Invocation, args: CpArgs) -> Result<(), CliError> {
    let (job, path) = match args.from.split_once(':') {
        None => (args.from.as_str(), None),
        Some((job, path)) => (job, Some(path)),
    };
    let wanted = wanted(path, &args.to)?;
    let near = match &wanted {
        Wanted::All(dir) => {
            std::fs::create_dir_all(dir)
                .map_err(|error| CliError::io(format!("create the folder {}", dir.display()), error))?;
            dir.clone()
        }
        Wanted::One { to, .. } => folder_of(to),
    };
    let job = at.job(job).await?;
    let file = fetch_outputs(at, &job, args.rank, &near).await?;
    let shown = args.to.display().to_string();
    let written = tokio::task::spawn_blocking(move || unpack(std::io::BufReader::new(file), &wanted)).await;
    let written = written.map_err(|error| CliError::io("unpack the outputs", std::io::Error::other(error)))?;
    let written = written.map_err(|error| match error {
        crate::archive::ArchiveError::Absent(path) => CliError::Missing {
            what: format!("`{path}` in the outputs"),
            next: "Copy all of them: sluice cp JOB DIR".into(),
        },
        other => CliError::io("unpack the outputs", std::io::Error::other(other)),
    })?;
    at.console.note(&format!("{} files, {} bytes to {shown}", written.files, written.bytes));
    Ok(())
}

fn folder_of(path: &Path) -> PathBuf {
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

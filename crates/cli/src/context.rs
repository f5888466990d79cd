//! Where to connect and as whom: flags, then environment, then the context file that `sluice up` writes.
//!
//! The key of the context goes only to a server that the context's own CA vouches for: whoever passes another CA
//! passes the key too.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::error::CliError;
use crate::reference::Scope;

/// Name of the file in the data folder.
pub const CONTEXT_FILE: &str = "context.json";

/// The largest context, CA or key file that is read.
const LARGEST_FILE: u64 = 1 << 20;

/// What `sluice up` leaves for the commands that follow: `<data folder>/context.json`, mode 0600. Relative paths
/// are below the data folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The controller, for example `https://127.0.0.1:7443`.
    pub server: String,
    /// The CA that signed the controller's certificate, PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// A file that holds the API key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The tenant that commands mean when none is named.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The project that commands mean when none is named.
    #[serde(default)]
    pub project: Option<String>,
}

impl Context {
    /// Reads the context of a data folder; `None` where there is none.
    ///
    /// # Errors
    /// The file cannot be read or is not a context.
    pub fn read(data: &Path) -> Result<Option<Self>, CliError> {
        let path = data.join(CONTEXT_FILE);
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io(format!("read the context {}", path.display()), error)),
        };
        let mut context: Self = serde_json::from_str(&text)
            .map_err(|error| CliError::usage(format!("{} is not a context: {error}", path.display())))?;
        for file in [&mut context.ca_file, &mut context.key_file].into_iter().flatten() {
            *file = data.join(&*file);
        }
        Ok(Some(context))
    }
}

/// An API key; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ApiKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() || text.len() > 4096 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a key is one word of printable ASCII");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// All that a connection needs.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) server: String,
    pub(crate) ca_pem: String,
    pub(crate) key: Option<ApiKey>,
    pub(crate) scope: Scope,
}

/// The way to the controller that the flags and the context name: its address, its authority (PEM) and the key, where there
/// is one. For roles that are clients of the controller.
///
/// # Errors
/// As for any user command.
pub fn controller_of(global: &Global) -> Result<(String, String, Option<String>), CliError> {
    let connection = resolve(global)?;
    Ok((connection.server, connection.ca_pem, connection.key.map(|key| key.reveal().to_owned())))
}

/// The data folder when none is named: `$SLUICE_DATA`, else `$XDG_DATA_HOME/sluice`, else `~/.local/share/sluice`.
///
/// # Errors
/// None of the three variables is set.
pub fn default_data_dir(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf, CliError> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("SLUICE_DATA")
        .or_else(|| set("XDG_DATA_HOME").map(|home| home.join("sluice")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/sluice")))
        .ok_or_else(|| CliError::field("--data", "no data folder: HOME is not set"))
}

/// Puts flags (and the environment behind them) before the context file.
pub(crate) fn resolve(global: &Global) -> Result<Connection, CliError> {
    let data = global.data_dir()?;
    let context = Context::read(&data)?;
    let missing = |field: &str| CliError::Usage {
        message: format!("no server is known: there is no {CONTEXT_FILE} in {}", data.display()),
        field: Some(field.to_owned()),
        next: Some("Start one with `sluice up`, or pass --server, --ca and --key-file.".into()),
    };
    let server = global
        .server
        .clone()
        .or_else(|| context.as_ref().map(|c| c.server.clone()))
        .ok_or_else(|| missing("--server"))?;
    let server = checked_server(&server)?;
    let context_ca = context.as_ref().and_then(|c| c.ca_file.clone());
    let ca = global.ca.clone().or(context_ca).ok_or_else(|| missing("--ca"))?;
    let ca_pem = read_bounded(&ca).map_err(|e| CliError::io(format!("read the CA {}", ca.display()), e))?;
    let context_key = context.as_ref().filter(|_| global.ca.is_none()).and_then(|c| c.key_file.clone());
    let key = match (&global.key, global.key_file.clone().or(context_key)) {
        (Some(key), _) => Some(key.clone()),
        (None, Some(file)) => Some(read_key(&file)?),
        (None, None) => None,
    };
    let (tenant, project) = context.map(|c| (c.tenant, c.project)).unwrap_or_default();
    let scope = Scope {
        tenant: global.tenant.clone().or(tenant),
        project: global.project.clone().or(project).unwrap_or_else(|| "default".into()),
    };
    Ok(Connection { server, ca_pem, key, scope })
}

fn checked_server(text: &str) -> Result<String, CliError> {
    let server = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    // A key over plain text would be anyone's.
    if !server.starts_with("https://") {
        return Err(CliError::field("--server", format!("`{text}` is not https://HOST:PORT")));
    }
    Ok(server)
}

fn read_key(path: &Path) -> Result<ApiKey, CliError> {
    let text = read_bounded(path).map_err(|e| CliError::io(format!("read the key file {}", path.display()), e))?;
    text.parse().map_err(|why: &str| CliError::field("--key-file", format!("{}: {why}", path.display())))
}

/// Reads a small UTF-8 file.
pub(crate) fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > LARGEST_FILE) {
        return Err(io::Error::other("the file is larger than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "CA").unwrap();
        std::fs::write(dir.path().join("key"), "slk_1\n").unwrap();
        let context = Context {
            server: "https://127.0.0.1:7443".into(),
            ca_file: Some("ca.pem".into()),
            key_file: Some("key".into()),
            tenant: Some("acme".into()),
            project: None,
        };
        std::fs::write(dir.path().join(CONTEXT_FILE), serde_json::to_string(&context).unwrap()).unwrap();
        dir
    }

    #[test]
    fn the_context_fills_what_no_flag_says() {
        let dir = folder();
        let global = Global { data: Some(dir.path().into()), ..Global::default() };
        let connection = resolve(&global).unwrap();
        assert_eq!(connection.server, "https://127.0.0.1:7443");
        assert_eq!(connection.key.unwrap().reveal(), "slk_1");
        assert_eq!(connection.scope, Scope { tenant: Some("acme".into()), project: "default".into() });
        let other = Global { tenant: Some("b".into()), server: Some("host:1".into()), ..global };
        let connection = resolve(&other).unwrap();
        assert_eq!((connection.server.as_str(), connection.scope.tenant.as_deref()), ("https://host:1", Some("b")));
    }

    #[test]
    fn another_ca_never_gets_the_key_of_the_context() {
        let dir = folder();
        let ca = dir.path().join("ca.pem");
        let global = Global { data: Some(dir.path().into()), ca: Some(ca), ..Global::default() };
        assert_eq!(resolve(&global).unwrap().key, None);
    }

    #[test]
    fn what_is_missing_or_unsafe_is_a_usage_error() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { data: Some(dir.path().into()), ..Global::default() };
        assert_eq!(resolve(&global).unwrap_err().exit(), crate::Exit::Usage);
        assert!(checked_server("http://host:1").is_err());
        assert!("a b".parse::<ApiKey>().is_err() && "".parse::<ApiKey>().is_err());
        assert_eq!(format!("{:?}", "slk_1".parse::<ApiKey>().unwrap()), "ApiKey(…)");
        std::fs::write(dir.path().join(CONTEXT_FILE), "{").unwrap();
        assert_eq!(Context::read(dir.path()).unwrap_err().exit(), crate::Exit::Usage);
    }

    #[test]
    fn the_data_folder_follows_the_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            default_data_dir(move |name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(with(&[("SLUICE_DATA", "/d"), ("HOME", "/h")]).unwrap(), PathBuf::from("/d"));
        assert_eq!(with(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]).unwrap(), PathBuf::from("/x/sluice"));
        assert_eq!(with(&[("SLUICE_DATA", ""), ("HOME", "/h")]).unwrap(), PathBuf::from("/h/.local/share/sluice"));
        assert!(with(&[]).is_err());
    }
}

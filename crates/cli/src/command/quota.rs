//! `quota` and `detach`.

use sluice_proto::v1;
use sluice_types::MilliGpu;

use super::Invocation;
use crate::args::{DetachArgs, QuotaCommand, QuotaLowering, QuotaSetArgs};
use crate::error::CliError;
use crate::reference::{label, site, tenant};
use crate::request_id::new_request_id;
use crate::view::QuotaView;

pub(super) async fn quota(at: &Invocation, command: QuotaCommand) -> Result<(), CliError> {
    match command {
        QuotaCommand::List(args) => list_quotas(at, args.tenant.as_deref()).await,
        QuotaCommand::Set(args) => set(at, args).await,
        QuotaCommand::Delete { tenant: of, class, site: place, yes } => {
            let (of, class) = (tenant(Some(&of), &at.scope)?, label("CLASS", &class)?);
            let place = place.as_deref().map_or(Ok("-".to_owned()), |text| Ok(leaf(&site(text)?)))?;
            let name = format!("{of}/quotas/{place}/{class}");
            at.console.confirm(yes, &format!("Take away {name}"))?;
            let request = v1::DeleteQuotaRequest { request_id: new_request_id()?, name, ..Default::default() };
            let api = &at.api;
            let quota = api.unary("delete the quota", request, async |r| api.money().delete_quota(r).await).await?;
            at.console.note(&format!("{} is gone", quota.name));
            Ok(())
        }
    }
}

fn leaf(name: &str) -> String {
    crate::reference::leaf(name).to_owned()
}

async fn set(at: &Invocation, args: QuotaSetArgs) -> Result<(), CliError> {
    let milli = |share: MilliGpu| i64::from(share.get());
    let policy = match args.policy {
        QuotaLowering::Refuse => v1::QuotaPolicy::Refuse,
        QuotaLowering::Drain => v1::QuotaPolicy::Drain,
    };
    let request = v1::SetQuotaRequest {
        request_id: new_request_id()?,
        tenant: tenant(Some(&args.tenant), &at.scope)?,
        device_class: label("CLASS", &args.class)?.to_owned(),
        site: args.site.as_deref().map(site).transpose()?.unwrap_or_default(),
        nominal_milli: milli(args.share),
        borrow_milli: milli(args.borrow),
        lend_milli: milli(args.lend),
        policy: policy.into(),
        ..Default::default()
    };
    let quota = at.api.unary("set the quota", request, async |r| at.api.money().set_quota(r).await).await?;
    at.console.one(&QuotaView::from(&quota))
}

pub(super) async fn list_quotas(at: &Invocation, of: Option<&str>) -> Result<(), CliError> {
    let request = v1::ListQuotasRequest { tenant: tenant(of, &at.scope)? };
    let answer = at.api.unary("list the quotas", request, async |r| at.api.money().list_quotas(r).await).await?;
    at.console.list(&answer.quotas.iter().map(QuotaView::from).collect::<Vec<_>>())
}

pub(super) async fn detach(at: &Invocation, args: DetachArgs) -> Result<(), CliError> {
    let whole = args.name.starts_with("tenants/") && !args.name.contains("/jobs/");
    let name = if whole { args.name } else { at.job(&args.name).await? };
    at.console.confirm(args.yes, &format!("Take {name} away from what manages it"))?;
    let request = v1::SetManagerRequest { request_id: new_request_id()?, name, detach: true, ..Default::default() };
    let answer = at.api.unary("detach it", request, async |r| at.api.tenants().set_manager(r).await).await?;
    at.console.note(&format!("{} is managed by nobody", answer.name));
    Ok(())
}

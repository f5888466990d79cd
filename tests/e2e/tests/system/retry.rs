//! The same request id is the same request.

use sluice_e2e::{Options, request_id};
use sluice_proto::v1;

use crate::support::{reach, start};

fn request(id: &str, program: &str) -> v1::SubmitJobRequest {
    let resources = v1::TaskResources {
        device_class: "cpu".to_owned(),
        milli: 100,
        memory_bytes: 64 << 20,
        ..v1::TaskResources::default()
    };
    v1::SubmitJobRequest {
        request_id: id.to_owned(),
        parent: "tenants/default/projects/default".to_owned(),
        spec: Some(v1::JobSpec {
            command: vec![program.to_owned()],
            tasks: 1,
            resources: Some(resources),
            ..v1::JobSpec::default()
        }),
        ..v1::SubmitJobRequest::default()
    }
}

#[test]
fn a_retry_with_the_same_request_id_is_answered_with_the_same_job_also_after_a_kill() -> anyhow::Result<()> {
    let Some(mut own) = start("retry", Options::default())? else { return Ok(()) };
    let client = own.system.client()?;
    let id = request_id();
    let submit = |message| async { client.jobs().submit_job(message).await };
    let first = own.system.block(submit(request(&id, "true")))?.into_inner();
    let again = own.system.block(submit(request(&id, "true")))?.into_inner();
    assert_eq!(first.name, again.name);
    let other = own.system.block(submit(request(&id, "false"))).expect_err("another request under the same id");
    assert!(other.message().contains("request id"), "{other:?}");
    own.system.kill_up()?;
    own.system.start_up()?;
    let client = own.system.client()?;
    let third = own.system.block(async { client.jobs().submit_job(request(&id, "true")).await })?.into_inner();
    assert_eq!(first.name, third.name);
    assert_eq!(own.system.block(client.list_jobs())?.len(), 1);
    reach(&own.system.cli(), first.name.rsplit('/').next().unwrap_or_default(), "SUCCEEDED")?;
    Ok(())
}

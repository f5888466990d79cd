//! Models, endpoints and requests.

use sluice_lifecycle::Rows;
use sluice_lifecycle::model::{EndpointState, ModelState};
use sluice_store::{Page, StoreError};
use sluice_types::{Nanos, ProjectId};

use super::Fixture;

pub(crate) async fn models_and_endpoints_are_found_until_they_are_deleted(mut fixture: Fixture) {
    let sample = &mut fixture.sample;
    let (mut model, mut other) = (sample.model_row("smol"), sample.model_row("large"));
    other.state = ModelState::Importing;
    let mut endpoint = sample.endpoint_row(&model, "chat");
    let rows =
        Rows { models: vec![model.clone(), other.clone()], endpoints: vec![endpoint.clone()], ..Rows::default() };
    fixture.commit(&rows).await;
    let loaded = fixture.loaded().await;
    assert_eq!((&loaded.rows.models, &loaded.rows.endpoints), (&rows.models, &rows.endpoints));
    assert_eq!(loaded.last_id, endpoint.id.raw());
    let (store, project) = (&fixture.store, fixture.sample.project);
    assert_eq!(store.get_model(model.id).await.unwrap().as_ref(), Some(&model));
    assert_eq!(store.model_by_name(project, &model.name).await.unwrap().as_ref(), Some(&model));
    assert_eq!(store.list_models(project, Page::first(9)).await.unwrap(), [other.clone(), model.clone()]);
    assert_eq!(store.importing_models(Page::first(9)).await.unwrap(), [other.clone()]);
    assert_eq!(store.endpoint_by_name(project, &endpoint.name).await.unwrap().as_ref(), Some(&endpoint));
    assert_eq!(store.list_endpoints(project, Page::first(9)).await.unwrap(), [endpoint.clone()]);
    let elsewhere = ProjectId::from_raw(99);
    assert_eq!(store.model_by_name(elsewhere, &model.name).await.unwrap(), None);
    assert_eq!(store.list_endpoints(elsewhere, Page::first(9)).await.unwrap(), []);

    (model.state, endpoint.state) = (ModelState::Deleted, EndpointState::Deleted);
    let gone = Rows { models: vec![model.clone()], endpoints: vec![endpoint.clone()], ..Rows::default() };
    fixture.commit(&gone).await;
    let loaded = fixture.loaded().await.rows;
    assert_eq!((loaded.models, loaded.endpoints.len()), (vec![other.clone()], 0));
    let store = &fixture.store;
    assert_eq!(store.get_endpoint(endpoint.id).await.unwrap().as_ref(), Some(&endpoint), "by its id still");
    assert_eq!(store.endpoint_by_name(project, &endpoint.name).await.unwrap(), None);
    // The name is free again, and only once.
    let again = fixture.sample.model_row("smol");
    fixture.commit(&Rows { models: vec![again], ..Rows::default() }).await;
    let twice = fixture.sample.model_row("smol");
    let refused = fixture.store.commit(fixture.leader, &Rows { models: vec![twice], ..Rows::default() }).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
}

pub(crate) async fn requests_are_listed_by_endpoint_and_by_caller_and_forgotten(mut fixture: Fixture) {
    let sample = &mut fixture.sample;
    let model = sample.model_row("smol");
    let (one, two) = (sample.endpoint_row(&model, "one"), sample.endpoint_row(&model, "two"));
    let mut rows: Vec<_> = (0..3).map(|_| sample.inference_row(&one)).collect();
    let mut stranger = sample.inference_row(&two);
    stranger.project = ProjectId::from_raw(77);
    rows.push(stranger);
    fixture.commit(&Rows { inference: rows.clone(), ..Rows::default() }).await;
    assert_eq!(fixture.loaded().await.rows.inference, rows);
    let (store, project) = (&fixture.store, fixture.sample.project);
    let newest: Vec<_> = rows[..3].iter().rev().cloned().collect();
    assert_eq!(store.inference_of(one.id, Page::first(9)).await.unwrap(), newest);
    let page = Page { after: Some(newest[0].id), limit: 1 };
    assert_eq!(store.inference_of(one.id, page).await.unwrap(), newest[1..2]);
    assert_eq!(store.inference_by(project, Page::first(9)).await.unwrap(), newest);
    assert_eq!(store.inference_by(ProjectId::from_raw(77), Page::first(9)).await.unwrap(), rows[3..]);
    assert_eq!(store.get_inference(rows[0].id).await.unwrap().as_ref(), Some(&rows[0]));

    let closed = [fixture.sample.voided(&rows[0]), fixture.sample.voided(&rows[1])];
    fixture.commit(&Rows { inference: closed.to_vec(), ..Rows::default() }).await;
    assert_eq!(fixture.loaded().await.rows.inference, rows[2..], "only what is open can change");
    let later = closed[1].closed.unwrap().after(Nanos::from_secs(1));
    assert_eq!(fixture.store.forget_inference(fixture.leader, closed[1].closed.unwrap(), 9).await.unwrap(), 1);
    assert_eq!(fixture.store.forget_inference(fixture.leader, later, 9).await.unwrap(), 1);
    assert_eq!(fixture.store.forget_inference(fixture.leader, later, 9).await.unwrap(), 0, "open ones stay");
    assert_eq!(fixture.store.inference_of(one.id, Page::first(9)).await.unwrap(), newest[..1]);
}

//! `OrderService`: capacity that is bought.

use std::sync::Arc;
use std::time::Duration;

use sluice_lifecycle::model::{Job, JobSpec, Order, Project};
use sluice_lifecycle::{Caller, Command, KeptHome, Refusal, UserCommand};
use sluice_proto::convert;
use sluice_proto::error::{refuse_field, status};
use sluice_proto::v1;
use sluice_proto::v1::order_service_server::OrderService;
use sluice_types::{Credits, JobId, Name, OrderId, Reason, SiteId};
use tonic::{Request, Response, Status};

use super::{Api, Mutation, digest, not_found, page, refused, store_status};
use crate::principal::Principal;

/// How long an order waits for the decision on it; after it the order is answered as it is.
const DECISION: Duration = Duration::from_secs(10);

impl Api {
    /// The jobs that legs become, checked as far as they can be without the writer.
    fn legs(&self, legs: Vec<v1::Leg>) -> Result<Arc<JobSpec>, Status> {
        let [leg] = <[v1::Leg; 1]>::try_from(legs)
            .map_err(|_| refuse_field("legs", "an order has one leg, and it begins now"))?;
        let spec = convert::leg_spec(leg, &*self.directory.read()).map_err(refused)?;
        sluice_lifecycle::validate::spec(&spec).map_err(leg_refused)?;
        Ok(Arc::new(spec))
    }

    async fn quote(&self, who: &Principal, project: &Project, spec: Arc<JobSpec>) -> Result<v1::Quote, Status> {
        // The writer says what the scheduler would be asked, with the budgets that it has now.
        let caller = Caller::of(who.key.id);
        let check = UserCommand::Validate(project.id, spec);
        let answer = self.writer.submit(Command::User(caller, check)).await.map_err(leg_refused)?;
        let Some(wanted) = answer.wanted else { return Err(not_found("project")) };
        Ok(match self.planner.offer(*wanted).await.map_err(refused)? {
            Ok(offered) => {
                let site = self.directory.read().sites.get(&offered.site).map(|row| format!("sites/{}", row.name));
                let ceiling_credits = offered.hold.units();
                v1::Quote {
                    legs: vec![v1::LegQuote {
                        site: site.unwrap_or_default(),
                        hourly_credits: offered.hourly.units(),
                        ceiling_credits,
                    }],
                    ceiling_credits,
                    price_version: offered.price.to_string(),
                    ..v1::Quote::default()
                }
            }
            Err((reason, message)) => v1::Quote { reason: reason.to_string(), message, ..v1::Quote::default() },
        })
    }

    async fn buy(&self, who: &Principal, message: v1::CreateOrderRequest) -> Result<v1::Order, Status> {
        let caller = who.caller(&message.request_id, digest("sluice.v1.OrderService/CreateOrder", &message))?;
        let project = self.project(who, "parent", &message.parent)?;
        let name: Option<Name> = match message.display_name.as_str() {
            "" => None,
            text => Some(Self::fresh_name("display_name", text)?),
        };
        let limit = match message.max_credits {
            0 => None,
            1.. => Some(Credits::new(message.max_credits)),
            _ => return Err(refuse_field("max_credits", "not below zero")),
        };
        let home = self.kept_home(who, &project, &message.legs).await?;
        let begins_at = self.begins_at(&message.legs)?;
        let legs = vec![self.legs(message.legs)?];
        let command = UserCommand::CreateOrder { project: project.id, name, legs, limit, home, begins_at };
        let (answer, decided) =
            self.writer.submit_and_decide(Command::User(caller, command)).await.map_err(leg_refused)?;
        if !answer.replayed {
            // Late, or lost with the process that knew it: the rows say what became of it.
            let _late = tokio::time::timeout(DECISION, decided).await;
        }
        let id: OrderId = answer.object.parse().map_err(|_| not_found("order"))?;
        let order = self.store.get_order(id).await.map_err(store_status)?.ok_or_else(|| not_found("order"))?;
        let shown = self.show_order(&order).await?;
        if shown.state() == v1::OrderState::Refused {
            let reason = shown.reason.parse().unwrap_or(Reason::Internal);
            return Err(status(&Refusal { field: Some("legs".to_owned()), ..Refusal::new(reason, shown.message) }));
        }
        Ok(shown)
    }

    /// The site where a leg begins.
    fn begins_at(&self, legs: &[v1::Leg]) -> Result<Option<SiteId>, Status> {
        let wanted = legs.first().map_or("", |leg| leg.begin_at.as_str());
        if wanted.is_empty() {
            return Ok(None);
        }
        let name = wanted.strip_prefix("sites/").unwrap_or(wanted);
        let known = convert::SiteNames::id(&*self.directory.read(), name);
        known.map(Some).ok_or_else(|| refuse_field("legs.begin_at", "there is no such site"))
    }

    /// The order with whose home folders a leg begins.
    async fn kept_home(
        &self,
        who: &Principal,
        project: &Project,
        legs: &[v1::Leg],
    ) -> Result<Option<Box<KeptHome>>, Status> {
        let [leg] = legs else { return Ok(None) };
        if leg.home.is_empty() {
            return Ok(None);
        }
        let order = self.order(who, "legs.home", &leg.home).await?;
        let mut of_leg = order.legs.iter();
        let (Some(job), None, true) = (of_leg.next().copied(), of_leg.next(), order.project == project.id) else {
            // Of another project, even one that the caller may see: what is kept stays where it may be.
            return Err(not_found("order"));
        };
        let row = self.store.get_job(job).await.map_err(store_status)?.ok_or_else(|| not_found("job"))?;
        let stored = match row.checkpoint {
            None => None,
            Some(id) => self.store.get_checkpoint(id).await.map_err(store_status)?,
        };
        Ok(Some(Box::new(KeptHome { order: order.id, job, stored })))
    }

    /// "tenants/{tenant}/projects/{project}/orders/{order}".
    async fn order(&self, who: &Principal, field: &str, text: &str) -> Result<Order, Status> {
        let wrong = || refuse_field(field, "a name of the form tenants/{tenant}/projects/{project}/orders/{order}");
        let (parent, id) = text.rsplit_once("/orders/").ok_or_else(wrong)?;
        let id: OrderId = id.parse().map_err(|_| wrong())?;
        let project = self.project(who, field, parent)?;
        let order = self.store.get_order(id).await.map_err(store_status)?;
        order.filter(|order| order.project == project.id).ok_or_else(|| not_found("order"))
    }

    async fn show_order(&self, order: &Order) -> Result<v1::Order, Status> {
        let mut legs = Vec::with_capacity(order.legs.len());
        for leg in &order.legs {
            let job = self.store.get_job(*leg).await.map_err(store_status)?.ok_or_else(|| not_found("job"))?;
            let shown = self.show_job(&job).await?;
            legs.push((job, shown));
        }
        let directory = self.directory.read();
        Ok(convert::order(order, &directory.project_path(order.project), &legs, &*directory))
    }

    /// Orders of a list, from few queries: without what is held and what an hour costs.
    async fn show_orders(&self, orders: &[Order]) -> Result<Vec<v1::Order>, Status> {
        let ids: Vec<JobId> = orders.iter().flat_map(|order| order.legs.iter().copied()).collect();
        let jobs = self.store.jobs_by_ids(&ids).await.map_err(store_status)?;
        let shown = self.show_placed(&jobs).await?;
        let known: std::collections::HashMap<JobId, (Job, v1::Job)> =
            jobs.into_iter().zip(shown).map(|(job, shown)| (job.id, (job, shown))).collect();
        let directory = self.directory.read();
        let show = |order: &Order| {
            let legs: Vec<_> = order.legs.iter().filter_map(|leg| known.get(leg).cloned()).collect();
            convert::order(order, &directory.project_path(order.project), &legs, &*directory)
        };
        Ok(orders.iter().map(show).collect())
    }
}

fn leg_refused(refusal: Refusal) -> Status {
    refused(convert::of_leg(refusal))
}

#[tonic::async_trait]
impl OrderService for Api {
    async fn quote_order(&self, request: Request<v1::QuoteOrderRequest>) -> Result<Response<v1::Quote>, Status> {
        let who = self.who(&request, "sluice.v1.OrderService/QuoteOrder")?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let spec = self.legs(message.legs)?;
        Ok(Response::new(self.quote(&who, &project, spec).await?))
    }

    async fn create_order(&self, request: Request<v1::CreateOrderRequest>) -> Result<Response<v1::Order>, Status> {
        let who = self.who(&request, "sluice.v1.OrderService/CreateOrder")?;
        Ok(Response::new(self.buy(&who, request.into_inner()).await?))
    }

    async fn get_order(&self, request: Request<v1::GetOrderRequest>) -> Result<Response<v1::Order>, Status> {
        let who = self.who(&request, "sluice.v1.OrderService/GetOrder")?;
        let order = self.order(&who, "name", &request.into_inner().name).await?;
        Ok(Response::new(self.show_order(&order).await?))
    }

    async fn list_orders(
        &self,
        request: Request<v1::ListOrdersRequest>,
    ) -> Result<Response<v1::ListOrdersResponse>, Status> {
        let who = self.who(&request, "sluice.v1.OrderService/ListOrders")?;
        let message = request.into_inner();
        let project = self.project(&who, "parent", &message.parent)?;
        let page = self.page::<OrderId>("orders", message.page_size, &message.page_token)?;
        let rows = self.store.list_orders(project.id, page).await.map_err(store_status)?;
        let next_page_token = self.next_token("orders", page::last(&rows, page.limit, |row| row.id));
        let orders = self.show_orders(&rows).await?;
        Ok(Response::new(v1::ListOrdersResponse { orders, next_page_token }))
    }

    async fn release_order(&self, request: Request<v1::ReleaseOrderRequest>) -> Result<Response<v1::Order>, Status> {
        let method = "sluice.v1.OrderService/ReleaseOrder";
        let who = self.who(&request, method)?;
        let message = request.into_inner();
        let order = self.order(&who, "name", &message.name).await?;
        let mutation = Mutation { who: &who, method, request_id: &message.request_id, message: &message };
        self.change(mutation, UserCommand::ReleaseOrder(order.id, order.legs.clone())).await?;
        Ok(Response::new(self.show_order(&order).await?))
    }
}

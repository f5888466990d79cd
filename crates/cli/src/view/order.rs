//! Rentals.

use serde::Serialize;
use sluice_proto::v1;

use super::{Money, age, filled, milli, short_site, time, word};
use crate::duration;
use crate::output::{Column, View};
use crate::reference::leaf;

/// An order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrderView {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) display_name: String,
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
    pub(crate) legs: Vec<LegView>,
    pub(crate) ceiling: Money,
    pub(crate) spent: Money,
    pub(crate) hourly: Money,
    pub(crate) per_second: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_time: Option<String>,
}

/// One leg.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LegView {
    pub(crate) job: String,
    pub(crate) count: u32,
    pub(crate) class: String,
    pub(crate) share: String,
    pub(crate) memory: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) home: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capture_every: Option<String>,
    pub(crate) used: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
}

impl From<&v1::OrderLeg> for LegView {
    fn from(leg: &v1::OrderLeg) -> Self {
        let asked = leg.leg.clone().unwrap_or_default();
        let resources = asked.resources.clone().unwrap_or_default();
        Self {
            job: leg.job.clone(),
            count: asked.count,
            class: resources.device_class,
            share: milli(resources.milli),
            memory: sluice_types::Bytes::new(resources.memory_bytes).to_string(),
            duration: asked.duration.as_ref().map(duration::from_proto).map(duration::print_duration),
            home: filled(&asked.home),
            capture_every: asked.capture_every.as_ref().map(duration::from_proto).map(duration::print_duration),
            used: duration::print_roughly(leg.used.as_ref().map(duration::from_proto).unwrap_or_default()),
            site: filled(&leg.site),
        }
    }
}

impl From<&v1::Order> for OrderView {
    fn from(order: &v1::Order) -> Self {
        Self {
            name: order.name.clone(),
            id: leaf(&order.name).to_owned(),
            display_name: order.display_name.clone(),
            state: word(order.state().as_str_name(), "ORDER_STATE_"),
            reason: filled(&order.reason),
            message: filled(&order.message),
            site: order.legs.iter().find_map(|leg| filled(&leg.site)),
            legs: order.legs.iter().map(LegView::from).collect(),
            ceiling: Money::new(order.ceiling_credits),
            spent: Money::new(order.spent_credits),
            hourly: Money::new(order.hourly_credits),
            per_second: Money::new(order.hourly_credits).per_second(),
            create_time: time(order.create_time.as_ref()),
            end_time: time(order.end_time.as_ref()),
        }
    }
}

impl View for OrderView {
    const KIND: &'static str = "Order";
    const PLURAL: &'static str = "rentals";
    const COLUMNS: &'static [Column] = &[
        Column::new("ID"),
        Column::new("NAME"),
        Column::new("STATE"),
        Column::new("SHARE").right(),
        Column::new("SITE"),
        Column::new("USED").right(),
        Column::new("FOR").right(),
        Column::new("SPENT").right(),
        Column::new("AGE").right(),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, now: jiff::Timestamp) -> Vec<String> {
        let leg = self.legs.first();
        let share =
            leg.map(|leg| if leg.count > 1 { format!("{}x{}", leg.count, leg.share) } else { leg.share.clone() });
        vec![
            self.id.clone(),
            self.display_name.clone(),
            self.state.clone(),
            share.unwrap_or_default(),
            self.site.as_deref().map(short_site).unwrap_or_default(),
            leg.map(|leg| leg.used.clone()).unwrap_or_default(),
            leg.and_then(|leg| leg.duration.clone()).unwrap_or_default(),
            self.spent.cell(),
            age(self.create_time.as_deref(), now),
        ]
    }
}

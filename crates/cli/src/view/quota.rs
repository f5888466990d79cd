//! Quotas.

use serde::Serialize;
use sluice_proto::v1;

use super::{filled, milli, time};
use crate::output::{Column, View};
use crate::reference::leaf;

/// A tenant's entitlement to a device class.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct QuotaView {
    pub(crate) name: String,
    pub(crate) tenant: String,
    /// Absent = over all sites together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) site: Option<String>,
    pub(crate) device_class: String,
    pub(crate) nominal_milli: i64,
    pub(crate) borrow_milli: i64,
    pub(crate) lend_milli: i64,
    pub(crate) policy: String,
    pub(crate) used_milli: i64,
    pub(crate) borrowed_milli: i64,
    pub(crate) lent_milli: i64,
    pub(crate) firm_milli: i64,
    pub(crate) stopping_milli: i64,
    pub(crate) available_milli: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) manager: Option<String>,
    pub(crate) etag: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) update_time: Option<String>,
}

impl From<&v1::Quota> for QuotaView {
    fn from(quota: &v1::Quota) -> Self {
        let policy = match quota.policy() {
            v1::QuotaPolicy::Unspecified | v1::QuotaPolicy::Refuse => "refuse",
            v1::QuotaPolicy::Drain => "drain",
        };
        Self {
            name: quota.name.clone(),
            tenant: quota.tenant.clone(),
            site: filled(&quota.site),
            device_class: quota.device_class.clone(),
            nominal_milli: quota.nominal_milli,
            borrow_milli: quota.borrow_milli,
            lend_milli: quota.lend_milli,
            policy: policy.to_owned(),
            used_milli: quota.used_milli,
            borrowed_milli: quota.borrowed_milli,
            lent_milli: quota.lent_milli,
            firm_milli: quota.firm_milli,
            stopping_milli: quota.stopping_milli,
            available_milli: quota.available_milli,
            manager: filled(&quota.manager),
            etag: quota.etag.clone(),
            update_time: time(quota.update_time.as_ref()),
        }
    }
}

impl View for QuotaView {
    const KIND: &'static str = "Quota";
    const PLURAL: &'static str = "quotas";
    const COLUMNS: &'static [Column] = &[
        Column::new("TENANT"),
        Column::new("SITE"),
        Column::new("CLASS"),
        Column::new("USED").right(),
        Column::new("QUOTA").right(),
        Column::new("BORROWED").right(),
        Column::new("MAY BORROW").right(),
        Column::new("LENT").right(),
        Column::new("MAY LEND").right(),
        Column::wide("FIRM").right(),
        Column::wide("STOPPING").right(),
        Column::wide("AVAILABLE").right(),
        Column::wide("POLICY"),
        Column::wide("MANAGER"),
    ];

    fn name(&self) -> String {
        self.name.clone()
    }

    fn cells(&self, _now: jiff::Timestamp) -> Vec<String> {
        vec![
            leaf(&self.tenant).to_owned(),
            self.site.as_deref().map_or("-", leaf).to_owned(),
            self.device_class.clone(),
            milli(self.used_milli),
            milli(self.nominal_milli),
            milli(self.borrowed_milli),
            milli(self.borrow_milli),
            milli(self.lent_milli),
            milli(self.lend_milli),
            milli(self.firm_milli),
            milli(self.stopping_milli),
            milli(self.available_milli),
            self.policy.clone(),
            self.manager.clone().unwrap_or_default(),
        ]
    }
}

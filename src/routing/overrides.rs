//! What is in force otherwise than the file declares, as [`Snapshot::take_over`] applies it. Who decided so, and when, is
//! kept elsewhere.
//!
//! [`Snapshot::take_over`]: super::snapshot::Snapshot::take_over

use std::collections::HashMap;

use http::Method;

use crate::config::Percent;

/// Overrides of everything that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Safe mode of everything, by command.
    pub safe_mode: bool,
    /// By service; one that is missing has none.
    pub services: HashMap<String, ServiceOverrides>,
}

/// Overrides of one service; `None` is as the file declares it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOverrides {
    /// The share of new.
    pub percentage: Option<Percent>,
    /// `migration.enabled`.
    pub enabled: Option<bool>,
    /// `migration.methods`.
    pub methods: Option<Vec<Method>>,
    /// Safe mode, by command.
    pub safe_mode: bool,
}

impl Overrides {
    /// Those of a service.
    pub fn of(&self, service: &str) -> &ServiceOverrides {
        static NONE: ServiceOverrides =
            ServiceOverrides { percentage: None, enabled: None, methods: None, safe_mode: false };
        self.services.get(service).unwrap_or(&NONE)
    }
}

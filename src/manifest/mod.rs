//! Kubernetes manifests of a configuration, and configurations of Kubernetes manifests.

pub mod generate;
pub mod import;

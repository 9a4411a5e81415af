//! Replicas of the product in this process: files with the same text, behind one name, on one port of several addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::cli::free_port;
use super::dns::{Dns, Reply};
use super::setup::{Clusters, Setup};

/// What replicas have in common.
pub struct Replicas {
    /// The clusters of their one service, `a`.
    pub clusters: Clusters,
    /// The port of every admin address.
    pub port: u16,
    dns: Dns,
}

impl Replicas {
    /// So many behind the name.
    pub fn new(count: u8) -> Self {
        let replicas = Self { clusters: Clusters::new(), dns: Dns::new(), port: free_port() };
        replicas.answer(count);
        replicas
    }

    /// So many are behind the name from now on.
    pub fn answer(&self, count: u8) {
        let addresses: Vec<IpAddr> = (1..=count).map(|number| self.place(number).ip()).collect();
        self.dns.on("peers.test", Reply::Addresses(addresses, 1));
    }

    /// The admin address of one of them, counted from 1.
    pub fn place(&self, number: u8) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(127, 0, 0, number), self.port))
    }

    /// The configuration of one of them.
    pub fn setup(&self, number: u8, percentage: u64) -> Setup {
        Setup::new([self.clusters.service("a").percentage(percentage)])
            .alike()
            .admin(self.place(number))
            .names_from(self.dns.sources())
            .environment([("HOSTNAME".to_owned(), format!("pod-{number}"))])
            .top(&format!("fleet: {{peers: \"dns:peers.test:{}\"}}", self.port))
    }
}

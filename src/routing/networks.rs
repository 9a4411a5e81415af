//! Which of many networks an address lies in, the longest prefix first. The networks are cut into ranges that do not
//! overlap when they are compiled, so a look-up is one binary search however many there are, and memory is at most
//! two ranges a network.

use std::net::IpAddr;

use ipnet::IpNet;

/// Networks, each known by its number in the list that they were made from. IPv4-mapped addresses and networks count
/// as IPv4.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    count: usize,
}

impl Networks {
    /// Compiles a list. Of equal networks the first counts.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6, mut count) = (Vec::new(), Vec::new(), 0);
        for (network, number) in networks.into_iter().zip(0..) {
            match network {
                IpNet::V4(network) => {
                    v4.push(Span::new(network.network().to_bits(), network.broadcast().to_bits(), number));
                }
                IpNet::V6(network) => {
                    match (network.network().to_ipv4_mapped(), network.broadcast().to_ipv4_mapped()) {
                        (Some(first), Some(last)) => v4.push(Span::new(first.to_bits(), last.to_bits(), number)),
                        _ => v6.push(Span::new(network.network().to_bits(), network.broadcast().to_bits(), number)),
                    }
                }
            }
            count += 1;
        }
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6), count }
    }

    /// The number of the most specific network with this address.
    pub fn find(&self, address: IpAddr) -> Option<u32> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.find(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        }
    }

    /// Whether any network has this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    /// How many networks there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// One network: its first and last address, and its number.
#[derive(Clone, Copy, Debug)]
struct Span<A> {
    first: A,
    last: A,
    number: u32,
}

impl<A> Span<A> {
    fn new(first: A, last: A, number: u32) -> Self {
        Self { first, last, number }
    }
}

/// Where each range starts, in order, and which network owns it; a range ends where the next one starts.
#[derive(Clone, Debug, Default)]
struct Ranges<A> {
    starts: Box<[A]>,
    owners: Box<[Option<u32>]>,
}

impl<A: Address> Ranges<A> {
    fn new(mut spans: Vec<Span<A>>) -> Self {
        // Networks nest or are apart: sorted like this, each one comes right after those that contain it.
        spans.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)).then(a.number.cmp(&b.number)));
        spans.dedup_by(|later, earlier| later.first == earlier.first && later.last == earlier.last);

        let mut ranges: Vec<(A, Option<u32>)> = Vec::with_capacity(spans.len() * 2);
        let mut around: Vec<Span<A>> = Vec::new();
        for span in spans {
            close_before(Some(span.first), &mut around, &mut ranges);
            start(&mut ranges, span.first, Some(span.number));
            around.push(span);
        }
        close_before(None, &mut around, &mut ranges);

        let (starts, owners): (Vec<A>, Vec<Option<u32>>) = ranges.into_iter().unzip();
        Self { starts: starts.into(), owners: owners.into() }
    }

    fn find(&self, address: A) -> Option<u32> {
        let behind = self.starts.partition_point(|start| *start <= address);
        self.owners[behind.checked_sub(1)?]
    }
}

/// Ends the networks that do not reach up to `address` (`None`: all of them), the innermost first.
fn close_before<A: Address>(address: Option<A>, around: &mut Vec<Span<A>>, ranges: &mut Vec<(A, Option<u32>)>) {
    while let Some(innermost) = around.pop_if(|span| address.is_none_or(|address| span.last < address)) {
        if let Some(next) = innermost.last.next() {
            start(ranges, next, around.last().map(|outer| outer.number));
        }
    }
}

/// Starts a range; one that starts at the same address was empty and is replaced.
fn start<A: Address>(ranges: &mut Vec<(A, Option<u32>)>, at: A, owner: Option<u32>) {
    match ranges.last_mut() {
        Some(last) if last.0 == at => last.1 = owner,
        _ => ranges.push((at, owner)),
    }
}

/// The bits of an address.
trait Address: Copy + Ord {
    /// The address after this one.
    fn next(self) -> Option<Self>;
}

impl Address for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Address for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        Networks::new(list.iter().map(|text| text.parse::<IpNet>().expect("a network")))
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        let list = ["127.9.0.0/16", "127.9.1.0/24", "127.9.1.7/32", "2001:db8:1::/48", "2001:db8::/32", "0.0.0.0/0"];
        let found = networks(&list);
        let reversed = networks(&list.iter().rev().copied().collect::<Vec<_>>());

        for (address, expected) in [
            ("127.9.2.1", Some(0)),
            ("127.9.1.1", Some(1)),
            ("127.9.1.7", Some(2)),
            ("127.9.1.8", Some(1)),
            ("127.9.0.255", Some(0)),
            ("127.8.255.255", Some(5)),
            ("255.255.255.255", Some(5)),
            ("2001:db8:2::1", Some(4)),
            ("2001:db8:1:ffff::1", Some(3)),
            ("2001:db9::1", None),
            ("::ffff:127.9.1.7", Some(2)),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(found.find(address), expected, "{address}");
            assert_eq!(reversed.find(address), expected.map(|number| 5 - number), "{address}");
        }
    }

    #[test]
    fn mapped_networks_are_ipv4_and_wide_ipv6_networks_are_not() {
        let found = networks(&["::ffff:10.0.0.0/104", "::/0"]);

        assert_eq!(found.find("10.1.2.3".parse().expect("an address")), Some(0));
        assert_eq!(found.find("11.1.2.3".parse().expect("an address")), None);
        assert_eq!(found.find("fe80::1".parse().expect("an address")), Some(1));
    }

    #[test]
    fn of_equal_networks_the_first_counts_and_none_match_nothing() {
        assert_eq!(networks(&["10.0.0.0/8", "10.1.0.0/8"]).find("10.2.3.4".parse().expect("an address")), Some(0));
        assert!(!networks(&[]).contains("10.2.3.4".parse().expect("an address")));
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_walk_over_all_networks(
            list in prop::collection::vec((0_u32..4096, 20_u8..=32), 0..60),
            addresses in prop::collection::vec(0_u32..4200, 50),
        ) {
            let list: Vec<ipnet::Ipv4Net> = list
                .into_iter()
                .map(|(bits, length)| ipnet::Ipv4Net::new(bits.into(), length).expect("a length of at most 32"))
                .collect();
            let found = Networks::new(list.iter().copied().map(IpNet::V4));

            for bits in addresses {
                let address = std::net::Ipv4Addr::from(bits);
                let expected = list
                    .iter()
                    .enumerate()
                    .filter(|(_, network)| network.contains(&address))
                    .max_by_key(|(number, network)| (network.prefix_len(), std::cmp::Reverse(*number)))
                    .map(|(number, _)| number as u32);
                prop_assert_eq!(found.find(address.into()), expected);
            }
        }
    }
}

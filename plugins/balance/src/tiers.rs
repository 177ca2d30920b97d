//! The endpoints that may be chosen, in levels, and the share of the requests that each level gets. A level is a tier,
//! or a part of it: a preferred zone splits each tier in two.

use std::collections::BTreeMap;

use plugway_sdk::{Endpoint, EndpointState};

use crate::config::Overflow;
use crate::hash::hash;

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// The index of the endpoint in the host's list.
    pub index: u32,
    /// The weight of the endpoint, never 0.
    pub weight: u32,
    /// The hash of the address, so that hash tables don't depend on the order of the list.
    pub address_hash: u64,
}

/// A group of endpoints with the same preference.
#[derive(Debug, PartialEq)]
pub struct Level {
    /// The tier that the endpoints are in.
    pub tier: u32,
    /// The endpoints that are up: at least one.
    pub members: Vec<Member>,
    /// The share of all requests that this level gets, from 0 to 1.
    pub share: f64,
}

/// Groups the endpoints that are up into levels, in order of preference.
pub fn levels(endpoints: &[Endpoint], zone: Option<&str>, overflow: Overflow) -> Vec<Level> {
    let mut groups = groups(endpoints, zone);
    groups.retain(|_, group| !group.members.is_empty());
    let shares = shares(groups.values().map(|group| group.health() * overflow.factor()).collect());
    let level =
        |(((tier, _), group), share): (((u32, bool), Group), f64)| Level { tier, members: group.members, share };
    groups.into_iter().zip(shares).map(level).collect()
}

/// A level under construction.
#[derive(Default)]
struct Group {
    members: Vec<Member>,
    /// The total weight, including endpoints that are down.
    total_weight: u64,
}

/// Groups endpoints by tier, and by whether they are outside the preferred zone.
fn groups(endpoints: &[Endpoint], zone: Option<&str>) -> BTreeMap<(u32, bool), Group> {
    let mut groups = BTreeMap::<(u32, bool), Group>::new();
    for (endpoint, index) in endpoints.iter().zip(0..) {
        if endpoint.state == EndpointState::Draining {
            continue;
        }
        let is_elsewhere = zone.is_some_and(|zone| zone != endpoint.zone);
        let group = groups.entry((endpoint.tier, is_elsewhere)).or_default();
        let weight = endpoint.weight.max(1);
        group.total_weight += u64::from(weight);
        if endpoint.state == EndpointState::Up {
            let address_hash = hash(endpoint.address.as_bytes());
            group.members.push(Member { index, weight, address_hash });
        }
    }
    groups
}

impl Group {
    /// Returns the part of the weight that is up, from 0 to 1.
    fn health(&self) -> f64 {
        weight(&self.members) as f64 / self.total_weight as f64
    }
}

/// Returns the total weight of the members.
pub fn weight(members: &[Member]) -> u64 {
    members.iter().map(|member| u64::from(member.weight)).sum()
}

/// Converts the capacity of each level to its share. A level gets the requests that earlier levels can't take, up to
/// its capacity. If all levels together can't take all requests, the shares grow in proportion.
fn shares(mut capacities: Vec<f64>) -> Vec<f64> {
    let missing = capacities.iter().sum::<f64>().min(1.0);
    let mut left = 1.0;
    for capacity in &mut capacities {
        *capacity = (*capacity / missing).min(left);
        left -= *capacity;
    }
    capacities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OverflowRule;
    use EndpointState::{Down, Draining, Up};

    fn endpoint(tier: u32, zone: &str, state: EndpointState) -> Endpoint {
        Endpoint { address: format!("{tier}{zone}"), weight: 1, state, tier, zone: zone.into() }
    }

    /// Returns tiers of 100 endpoints each, with the given numbers of endpoints that are up.
    fn tiers(up: &[usize]) -> Vec<Endpoint> {
        let state = |place, up| if place < up { Up } else { Down };
        let tier = |(tier, up): (u32, &usize)| {
            let up = *up;
            (0..100).map(move |place| endpoint(tier, "", state(place, up)))
        };
        (0..).zip(up).flat_map(tier).collect()
    }

    fn percentages(levels: &[Level]) -> Vec<f64> {
        levels.iter().map(|level| (level.share * 1000.0).round() / 10.0).collect()
    }

    /// The values are from the tables in Envoy's documentation ("Priority levels"), which rounds to whole percents.
    #[test]
    fn load_beyond_a_tier_overflows_to_the_next() {
        let table: [(&[usize], &[f64]); 13] = [
            (&[100, 100], &[100.0, 0.0]),
            (&[80, 100], &[100.0, 0.0]),
            (&[72, 100], &[100.0, 0.0]),
            (&[71, 100], &[99.4, 0.6]),
            (&[50, 100], &[70.0, 30.0]),
            (&[25, 100], &[35.0, 65.0]),
            (&[0, 100], &[100.0]),
            (&[25, 25], &[50.0, 50.0]),
            (&[25, 50], &[35.0, 65.0]),
            (&[25, 20], &[55.6, 44.4]),
            (&[5, 0, 65], &[7.1, 92.9]),
            (&[20, 20, 10], &[40.0, 40.0, 20.0]),
            (&[0, 0], &[]),
        ];
        for (up, expected) in table {
            let shares = percentages(&levels(&tiers(up), None, Overflow::Percent(140)));
            assert_eq!(shares, expected, "{up:?} of 100 are up");
        }
    }

    #[test]
    fn overflow_says_how_much_a_tier_can_bear() {
        for (overflow, expected) in [(100, [80.0, 20.0]), (110, [88.0, 12.0]), (125, [100.0, 0.0])] {
            assert_eq!(percentages(&levels(&tiers(&[80, 100]), None, Overflow::Percent(overflow))), expected);
        }
    }

    #[test]
    fn the_next_tier_may_wait_until_no_endpoint_is_up() {
        let rule = Overflow::Rule(OverflowRule::WhenAllDown);
        let table: [(&[usize], &[f64]); 4] = [
            (&[1, 100], &[100.0, 0.0]),
            (&[1, 1, 100], &[100.0, 0.0, 0.0]),
            (&[0, 100], &[100.0]),
            (&[0, 1, 100], &[100.0, 0.0]),
        ];
        for (up, expected) in table {
            assert_eq!(percentages(&levels(&tiers(up), None, rule)), expected, "{up:?} of 100 are up");
        }
    }

    #[test]
    fn health_goes_by_weight() {
        let mut endpoints = tiers(&[1, 100]);
        endpoints.iter_mut().take(1).for_each(|heavy| heavy.weight = 99);
        assert_eq!(percentages(&levels(&endpoints, None, Overflow::Percent(100))), [50.0, 50.0]);
    }

    #[test]
    fn the_preferred_zone_comes_first_in_each_tier() {
        let zones = [(1, "b"), (0, "b"), (1, "a"), (0, "a"), (0, ""), (0, "a")];
        let mut endpoints: Vec<Endpoint> = zones.map(|(tier, zone)| endpoint(tier, zone, Up)).into();
        let indices = |levels: &[Level]| -> Vec<Vec<u32>> {
            levels.iter().map(|level| level.members.iter().map(|member| member.index).collect()).collect()
        };
        let preferring = levels(&endpoints, Some("a"), Overflow::Percent(140));
        assert_eq!(indices(&preferring), [vec![3, 5], vec![1, 4], vec![2], vec![0]]);
        assert_eq!(percentages(&preferring), [100.0, 0.0, 0.0, 0.0]);

        endpoints[3].state = Down;
        let ailing = levels(&endpoints, Some("a"), Overflow::Percent(140));
        assert_eq!(indices(&ailing), [vec![5], vec![1, 4], vec![2], vec![0]]);
        assert_eq!(percentages(&ailing), [70.0, 30.0, 0.0, 0.0]);

        assert_eq!(indices(&levels(&endpoints, Some("nowhere"), Overflow::Percent(140))), [vec![1, 4, 5], vec![0, 2]]);
        assert_eq!(indices(&levels(&endpoints, None, Overflow::Percent(140))), [vec![1, 4, 5], vec![0, 2]]);
    }

    #[test]
    fn the_draining_count_for_nothing_and_the_down_for_the_total() {
        let endpoints = [Up, Draining, Draining, Draining].map(|state| endpoint(0, "", state));
        let backup = [endpoint(1, "", Up)];
        assert_eq!(
            percentages(&levels(&[&endpoints[..], &backup].concat(), None, Overflow::Percent(140))),
            [100.0, 0.0]
        );
        let endpoints = [Up, Down, Down, Down].map(|state| endpoint(0, "", state));
        assert_eq!(
            percentages(&levels(&[&endpoints[..], &backup].concat(), None, Overflow::Percent(140))),
            [35.0, 65.0]
        );
    }
}

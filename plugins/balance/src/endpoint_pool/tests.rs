//! Native tests of pools: tiers, zones, tried endpoints, and the distribution of each policy.

use std::collections::HashMap;

use plugway_sdk::EndpointState::{self, Down, Draining, Up};

use super::*;
use crate::hash::hash;

const POLICIES: [PolicyName; 6] = [
    PolicyName::RoundRobin,
    PolicyName::LeastConnections,
    PolicyName::RandomTwoChoices,
    PolicyName::PeakEwma,
    PolicyName::SourceHash,
    PolicyName::ConsistentHash,
];

fn endpoint(place: usize, weight: u32, state: EndpointState, tier: u32) -> Endpoint {
    Endpoint { address: format!("10.0.0.{place}:80"), weight, state, tier, zone: String::new() }
}

fn up(weights: &[u32]) -> Vec<Endpoint> {
    weights.iter().enumerate().map(|(place, weight)| endpoint(place, *weight, Up, 0)).collect()
}

fn pool_of(config: Config, endpoints: &[Endpoint]) -> EndpointPool {
    let mut pool = EndpointPool::new(&config, Random::seeded(1));
    pool.endpoints_changed(endpoints);
    pool
}

fn pool(policy: PolicyName, endpoints: &[Endpoint]) -> EndpointPool {
    pool_of(Config { policy, ..Config::default() }, endpoints)
}

/// Returns how often each endpoint is chosen in a number of picks with different keys.
fn counts(pool: &mut EndpointPool, live: &Endpoints, endpoints: usize, picks: usize) -> Vec<usize> {
    let mut counts = vec![0; endpoints];
    for pick in 0..picks {
        let key = format!("key {pick}");
        counts[pool.pick(Some(hash(key.as_bytes())), &[], live).unwrap() as usize] += 1;
    }
    counts
}

/// Checks that draws follow the weights. Their chi-square is then about the degrees of freedom; more than four standard
/// deviations above that occurs once in ten thousand seeds.
fn assert_drawn_by(weights: &[u32], counts: &[usize]) {
    let (total, picks) = (f64::from(weights.iter().sum::<u32>()), counts.iter().sum::<usize>() as f64);
    let deviation = |(count, weight): (&usize, &u32)| {
        let expected = picks * f64::from(*weight) / total;
        (*count as f64 - expected).powi(2) / expected
    };
    let (sum, freedom) = (counts.iter().zip(weights).map(deviation).sum::<f64>(), weights.len() as f64 - 1.0);
    assert!(sum < freedom + 4.0 * (2.0 * freedom).sqrt(), "chi-square {sum} of {counts:?}");
}

/// Checks shares of all picks, within a number of percentage points.
fn assert_shares(counts: &[usize], expected: &[f64], within: f64) {
    let picks: usize = counts.iter().sum();
    for (count, expected) in counts.iter().zip(expected) {
        let share = *count as f64 * 100.0 / picks as f64;
        assert!((share - expected).abs() <= within, "{counts:?}, expected {expected} %");
    }
}

// === Distribution ===

#[test]
fn round_robin_is_exact() {
    for weights in [vec![1, 1, 1], vec![5, 1, 1], vec![100, 50, 7, 7]] {
        let total: u32 = weights.iter().sum();
        let mut pool = pool(PolicyName::RoundRobin, &up(&weights));
        let expected: Vec<usize> = weights.iter().map(|weight| *weight as usize * 100).collect();
        assert_eq!(counts(&mut pool, &Endpoints::default(), weights.len(), total as usize * 100), expected);
    }
}

#[test]
fn the_least_loaded_for_its_weight_is_chosen() {
    let table: [(&[u32], &[u32], &[usize]); 4] = [
        (&[1, 1, 1], &[3, 1, 2], &[0, 90, 0]),
        (&[4, 1], &[2, 1], &[90, 0]),
        (&[4, 1], &[8, 1], &[0, 90]),
        (&[1; 6], &[9, 9, 9, 9, 0, 9], &[0, 0, 0, 0, 90, 0]),
    ];
    for (weights, loads, expected) in table {
        let mut pool = pool(PolicyName::LeastConnections, &up(weights));
        assert_eq!(counts(&mut pool, &Endpoints::for_test(loads.into()), weights.len(), 90), expected);
    }
}

#[test]
fn equals_take_turns() {
    let table: [(&[u32], &[usize]); 4] = [
        (&[0; 3], &[30, 30, 30]),
        (&[7; 6], &[15; 6]),
        (&[0, 5, 0, 5, 5, 0], &[30, 0, 30, 0, 0, 30]),
        (&[1; 30], &[3; 30]),
    ];
    for (loads, expected) in table {
        let mut pool = pool(PolicyName::LeastConnections, &up(&vec![1; loads.len()]));
        assert_eq!(counts(&mut pool, &Endpoints::for_test(loads.into()), loads.len(), 90), expected);
    }
    let mut many = pool(PolicyName::LeastConnections, &up(&[1; 500]));
    assert_drawn_by(&[1; 500], &counts(&mut many, &Endpoints::default(), 500, 100_000));
}

#[test]
fn the_least_of_many_is_found_nearly() {
    let least_of = |count: u32| {
        let loads: Vec<u32> = (0..count).map(|index| index * 7919 % count).collect();
        let endpoints = up(&vec![1; count as usize]);
        let mut pool = pool(PolicyName::LeastConnections, &endpoints);
        let live = Endpoints::for_test(loads.clone());
        let rank = |pick: u32| {
            // A new order now and then, because each order has windows of its own.
            if pick.is_multiple_of(100) {
                pool.endpoints_changed(&endpoints);
            }
            loads[pool.pick(None, &[], &live).unwrap() as usize]
        };
        (0..20_000).map(rank).collect::<Vec<u32>>()
    };
    assert!(least_of(32).iter().all(|rank| *rank == 0));

    let ranks = least_of(1000);
    let better = f64::from(ranks.iter().sum::<u32>()) / ranks.len() as f64 / 1000.0;
    let in_best_tenth = ranks.iter().filter(|rank| **rank < 100).count() as f64 / ranks.len() as f64;
    println!("{:.2} % of 1000 are better; in the best tenth: {:.2} %", better * 100.0, in_best_tenth * 100.0);
    assert!(better < 0.035 && in_best_tenth > 0.95, "{better} {in_best_tenth}");
}

#[test]
fn two_choices_are_drawn_by_weight() {
    for weights in [vec![1; 10], vec![1, 2, 3, 4], vec![100, 1, 1]] {
        // With the same load per unit of weight, the first drawn member is chosen.
        let loads: Vec<u32> = weights.iter().map(|weight| weight * 10 - 1).collect();
        for policy in [PolicyName::RandomTwoChoices, PolicyName::PeakEwma] {
            let live = Endpoints::for_test(loads.clone()).with_latencies_us(vec![500; weights.len()]);
            assert_drawn_by(&weights, &counts(&mut pool(policy, &up(&weights)), &live, weights.len(), 100_000));
        }
    }
}

#[test]
fn the_second_choice_is_another_drawn_by_weight() {
    // The first member is much worse than the others, so it never wins, and a member drawn together with it always
    // wins.
    let live = Endpoints::for_test(vec![999_999, 9, 29]);
    let counts = counts(&mut pool(PolicyName::RandomTwoChoices, &up(&[6, 1, 3])), &live, 3, 100_000);
    let (one_wins, three_wins) = (0.6 * 0.25 + 0.1 * 6.0 / 9.0, 0.6 * 0.75 + 0.3 * 6.0 / 7.0);
    let ties = [0.1 * 3.0 / 9.0, 0.3 * 1.0 / 7.0];
    assert_shares(&counts, &[0.0, (one_wins + ties[0]) * 100.0, (three_wins + ties[1]) * 100.0], 0.5);
}

#[test]
fn of_two_choices_the_better_is_taken() {
    let thirds = [200.0 / 3.0, 100.0 / 3.0, 0.0];
    let table = [
        (PolicyName::RandomTwoChoices, [0, 5, 9], [0; 3], thirds),
        (PolicyName::RandomTwoChoices, [0, 5, 9], [900, 50, 1], thirds),
        (PolicyName::PeakEwma, [0; 3], [1000, 2000, 4000], thirds),
        (PolicyName::PeakEwma, [0, 0, 9], [1000, 2000, 400], thirds),
        (PolicyName::PeakEwma, [0, 1, 1], [0, 999_000, 0], thirds),
    ];
    for (policy, loads, latencies, shares) in table {
        let live = Endpoints::for_test(loads.to_vec()).with_latencies_us(latencies.to_vec());
        assert_shares(&counts(&mut pool(policy, &up(&[1; 3])), &live, 3, 30_000), &shares, 1.0);
    }
}

#[test]
fn an_unknown_endpoint_gets_one_probe_and_not_a_flood() {
    let mut pool = pool(PolicyName::PeakEwma, &up(&[1; 4]));
    let mut loads = vec![0; 4];
    for _ in 0..400 {
        let live = Endpoints::for_test(loads.clone()).with_latencies_us(vec![1000, 1000, 0, 1000]);
        loads[pool.pick(None, &[], &live).unwrap() as usize] += 1;
    }
    assert_eq!(loads[2], 1, "{loads:?}");
}

#[test]
fn keys_spread_by_weight() {
    for policy in [PolicyName::SourceHash, PolicyName::ConsistentHash] {
        for (weights, shares) in [(vec![1; 10], [10.0; 10].to_vec()), (vec![1, 2, 5], vec![12.5, 25.0, 62.5])] {
            let counts = counts(&mut pool(policy, &up(&weights)), &Endpoints::default(), weights.len(), 200_000);
            assert_shares(&counts, &shares, 0.4);
        }
    }
}

// === Keys ===

#[test]
fn a_key_stays_where_it_is_whatever_the_order_and_the_worker() {
    let endpoints: Vec<Endpoint> = (0..30).map(|place| endpoint(place, 1, Up, (place / 10) as u32)).collect();
    // Half of each tier is down, so that keys are spread over both tiers.
    let half = |endpoint: &Endpoint, place: usize| Endpoint {
        state: if place.is_multiple_of(2) { Up } else { Down },
        ..endpoint.clone()
    };
    let endpoints: Vec<Endpoint> = endpoints.iter().zip(0..).map(|(endpoint, place)| half(endpoint, place)).collect();
    let chosen = |seed: u64, endpoints: &[Endpoint]| -> Vec<String> {
        let config = Config { policy: PolicyName::ConsistentHash, ..Config::default() };
        let mut pool = EndpointPool::new(&config, Random::seeded(seed));
        pool.endpoints_changed(endpoints);
        let mut pick = |key: u32| pool.pick(Some(hash(&key.to_le_bytes())), &[], &Endpoints::default()).unwrap();
        (0..5000).map(|key| endpoints[pick(key) as usize].address.clone()).collect()
    };
    let mut shuffled = endpoints.clone();
    Random::seeded(5).shuffle(&mut shuffled);
    assert_eq!(chosen(1, &endpoints), chosen(2, &shuffled));
}

#[test]
fn without_the_value_any_endpoint_will_do() {
    let mut pool = pool(PolicyName::ConsistentHash, &up(&[1; 8]));
    let mut counts = vec![0; 8];
    (0..80_000).for_each(|_| counts[pool.pick(None, &[], &Endpoints::default()).unwrap() as usize] += 1);
    assert_drawn_by(&[1; 8], &counts);
}

#[test]
fn no_endpoint_gets_more_than_the_bound() {
    let some_weights: Vec<u32> = (0..12).map(|place| place % 3 + 1).collect();
    for (percent, weights) in [(125, vec![1; 10]), (101, vec![1; 200]), (150, some_weights), (1000, vec![1; 20])] {
        let bounded_load = Some(percent);
        let config = Config { policy: PolicyName::ConsistentHash, bounded_load, ..Config::default() };
        let mut pool = pool_of(config, &up(&weights));
        let mut loads = vec![0u32; weights.len()];
        let whole: u32 = weights.iter().sum();
        for total in 1..=2000 {
            // All requests have the same key.
            let index = pool.pick(Some(hash(b"popular")), &[], &Endpoints::for_test(loads.clone())).unwrap() as usize;
            loads[index] += 1;
            let bound = (percent * total * weights[index]).div_ceil(100 * whole);
            assert!(loads[index] <= bound, "{percent} %: {} of {total} at {index}, allowed {bound}", loads[index]);
        }
    }
}

#[test]
fn a_key_keeps_its_endpoint_while_that_has_room() {
    let config = |bounded_load| Config { policy: PolicyName::SourceHash, bounded_load, ..Config::default() };
    let (mut free, mut bounded) = (pool_of(config(None), &up(&[1; 10])), pool_of(config(Some(150)), &up(&[1; 10])));
    let even = Endpoints::for_test(vec![10; 10]);
    for key in 0..1000u32 {
        let key = key.to_le_bytes();
        let own = free.pick(Some(hash(&key)), &[], &even);
        assert_eq!(bounded.pick(Some(hash(&key)), &[], &even), own);
        // The average is 13.6 with this request, so the bound is 20.
        let mut loads = vec![10; 10];
        loads[own.unwrap() as usize] = 20 + 15;
        assert_ne!(bounded.pick(Some(hash(&key)), &[], &Endpoints::for_test(loads)), own);
    }
}

#[test]
fn key_decides_if_all_endpoints_are_full() {
    // The other tier has all the load from which the bound is computed, except for the load that fills this tier.
    let endpoints: Vec<Endpoint> = [(Up, 0), (Down, 0), (Up, 1), (Up, 1)]
        .iter()
        .zip(0..)
        .map(|((state, tier), place)| endpoint(place, 1, *state, *tier))
        .collect();
    let config = Config { policy: PolicyName::SourceHash, bounded_load: Some(101), ..Config::default() };
    let mut pool = pool_of(config, &endpoints);
    let live = Endpoints::for_test(vec![0, 0, 500, 500]);
    let mut chosen = HashMap::new();
    for key in 0..1000u32 {
        *chosen.entry(pool.pick(Some(hash(&key.to_le_bytes())), &[], &live).unwrap()).or_insert(0) += 1;
    }
    assert_eq!(chosen.len(), 3);
    assert!(chosen[&0] > 600 && chosen[&2] > 100 && chosen[&3] > 100, "{chosen:?}");
}

// === Levels ===

/// Returns two tiers of ten endpoints: `up` endpoints of the first tier are up, and all of the second.
fn two_tiers(up: usize) -> Vec<Endpoint> {
    let state = |place| if (up..10).contains(&place) { Down } else { Up };
    (0..20).map(|place| endpoint(place, 1, state(place), u32::from(place >= 10))).collect()
}

#[test]
fn each_tier_gets_its_share_by_every_policy() {
    for policy in POLICIES {
        for (up, first) in [(10, 100.0), (8, 100.0), (5, 70.0), (1, 14.0), (0, 0.0)] {
            let counts = counts(&mut pool(policy, &two_tiers(up)), &Endpoints::default(), 20, 40_000);
            let tier = |from, to| -> usize { counts[from..to].iter().sum() };
            assert_shares(&[tier(0, 10), tier(10, 20)], &[first, 100.0 - first], 1.0);
            assert_eq!(tier(up, 10), 0, "nobody goes to those that are down");
        }
    }
}

#[test]
fn the_preferred_zone_gets_everything_it_can_bear() {
    for policy in POLICIES {
        for (up, ours) in [(4, 100.0), (3, 100.0), (2, 70.0), (0, 0.0)] {
            let zoned = |place: usize| {
                let state = if (up..4).contains(&place) { Down } else { Up };
                Endpoint { zone: if place < 4 { "ours" } else { "other" }.into(), ..endpoint(place, 1, state, 0) }
            };
            let config = Config { policy, zone: Some("ours".into()), ..Config::default() };
            let mut pool = pool_of(config, &(0..10).map(zoned).collect::<Vec<_>>());
            let counts = counts(&mut pool, &Endpoints::default(), 10, 40_000);
            let share = |from, to| -> usize { counts[from..to].iter().sum() };
            assert_shares(&[share(0, 4), share(4, 10)], &[ours, 100.0 - ours], 1.0);
        }
    }
}

#[test]
fn nothing_is_drawn_where_one_level_takes_all() {
    let mut pool = pool(PolicyName::RoundRobin, &two_tiers(8));
    let before = format!("{:?}", pool.random);
    pool.pick(None, &[], &Endpoints::default()).unwrap();
    assert_eq!(format!("{:?}", pool.random), before);
}

// === States ===

#[test]
fn tried_endpoint_is_avoided_while_any_level_has_another() {
    for (policy, bounded_load) in POLICIES.map(|policy| (policy, policy.hashes().then_some(125))) {
        let config = Config { policy, bounded_load, ..Config::default() };
        let endpoints: Vec<Endpoint> = (0..50).map(|place| endpoint(place, 1, Up, u32::from(place >= 40))).collect();
        let mut pool = pool_of(config, &endpoints);
        // The tried endpoints have no requests in flight, so that they would be preferred.
        let live = Endpoints::for_test((0..50).map(|index| index % 40).collect());
        let mut tried: Vec<u32> = Vec::new();
        for attempt in 0..50 {
            let index = pool.pick(Some(hash(b"key")), &tried, &live).unwrap();
            assert!(!tried.contains(&index), "{policy:?} gave {index} again");
            assert_eq!(index >= 40, attempt >= 40, "{policy:?} leaves the tier when all of it was tried");
            tried.push(index);
        }
        assert!(pool.pick(Some(hash(b"key")), &tried, &live).unwrap() < 40, "{policy:?} begins again");
    }
}

#[test]
fn the_draining_and_the_down_are_never_chosen() {
    for policy in POLICIES {
        let states = [Draining, Up, Down, Up, Draining];
        let endpoints: Vec<Endpoint> =
            states.iter().zip(0..).map(|(state, place)| endpoint(place, 1, *state, 0)).collect();
        let mut pool = pool(policy, &endpoints);
        let counts = counts(&mut pool, &Endpoints::for_test(vec![0, 9, 0, 9, 0]), 5, 1000);
        assert_eq!(counts[1] + counts[3], 1000, "{policy:?}: {counts:?}");
        assert!([1, 3].contains(&pool.pick(None, &[1, 3], &Endpoints::default()).unwrap()));
    }
}

#[test]
fn no_endpoint_is_chosen_if_none_is_up() {
    for policy in POLICIES {
        for states in [&[][..], &[Draining], &[Down, Draining, Down]] {
            let endpoints: Vec<Endpoint> = states.iter().map(|state| endpoint(0, 1, *state, 0)).collect();
            let mut pool = pool(policy, &endpoints);
            assert_eq!(pool.pick(Some(hash(b"key")), &[], &Endpoints::default()), None);
            assert_eq!(pool.pick(None, &[0], &Endpoints::default()), None);
        }
    }
}

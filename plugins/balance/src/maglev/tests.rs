//! Native tests of the Maglev table: weights, and the entries that move.

use super::*;
use crate::hash::hash;

fn members(weights: &[u32]) -> Vec<Member> {
    let member = |(weight, index): (&u32, u32)| {
        let address = format!("10.{}.{}.7:8080", index / 250, index % 250);
        Member { index, weight: *weight, address_hash: hash(address.as_bytes()) }
    };
    weights.iter().zip(0..).map(member).collect()
}

/// Returns the owner of each entry, by index.
fn owners(members: &[Member]) -> Vec<u32> {
    Maglev::new(members).entries.iter().map(|place| members[*place as usize].index).collect()
}

fn entries(owners: &[u32], count: usize) -> Vec<usize> {
    let mut entries = vec![0; count];
    owners.iter().for_each(|owner| entries[*owner as usize] += 1);
    entries
}

/// Returns how many entries changed their owner although the owner stayed, in percent: the mean and the maximum over
/// several departures.
fn moved(count: usize, leavers: &[u32]) -> (f64, f64) {
    let all = members(&vec![1; count]);
    let before = owners(&all);
    let share = |leaver: &u32| {
        let left: Vec<Member> = all.iter().filter(|member| member.index != *leaver).copied().collect();
        let pairs = before.iter().zip(owners(&left));
        let (mut stayed, mut moved) = (0, 0);
        for (before, after) in pairs.filter(|(before, _)| *before != leaver) {
            stayed += 1;
            moved += usize::from(*before != after);
        }
        moved as f64 * 100.0 / stayed as f64
    };
    let shares: Vec<f64> = leavers.iter().map(share).collect();
    (shares.iter().sum::<f64>() / shares.len() as f64, shares.iter().copied().fold(0.0, f64::max))
}

#[test]
fn equals_have_the_same_number_of_entries_but_one() {
    for count in [1, 2, 3, 10, 100, 1000, 10_000] {
        let entries = entries(&owners(&members(&vec![1; count])), count);
        let (least, most) = (entries.iter().min().unwrap(), entries.iter().max().unwrap());
        println!("{count} members: {least} to {most} entries");
        assert!(*least == SIZE / count && *most <= SIZE / count + 1);
    }
}

#[test]
fn entries_go_by_weight() {
    for weights in [vec![1, 2, 3], vec![1000, 10, 1], vec![100; 50].into_iter().chain([10]).collect()] {
        let total: u32 = weights.iter().sum();
        for (entries, weight) in entries(&owners(&members(&weights)), weights.len()).iter().zip(&weights) {
            let fair = SIZE as f64 * f64::from(*weight) / f64::from(total);
            assert!((*entries as f64 - fair).abs() < 2.0, "{weights:?}: {entries} entries, not {fair}");
        }
    }
}

/// Joining is the reverse of leaving, so the test covers both.
#[test]
fn few_move_when_one_of_ten_comes_or_goes() {
    let (mean, worst) = moved(10, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    println!("of 10: {mean:.2} % of the others' entries move, at most {worst:.2} %");
    assert!(mean < 0.3 && worst < 0.4, "{mean} {worst}");
}

#[test]
fn few_move_when_one_of_a_thousand_comes_or_goes() {
    let (mean, worst) = moved(1000, &[0, 111, 222, 333, 444, 555, 666, 777, 888, 999]);
    println!("of 1000: {mean:.2} % of the others' entries move, at most {worst:.2} %");
    assert!(mean < 0.7 && worst < 0.8, "{mean} {worst}");
}

#[test]
fn few_move_when_a_weight_changes() {
    let (before, after) = (owners(&members(&[100; 10])), owners(&members(&[&[50][..], &[100; 9]].concat())));
    let moved = before.iter().zip(&after).filter(|(before, after)| **before != 0 && before != after).count();
    let moved = moved as f64 * 100.0 / SIZE as f64;
    println!("of 10, one with half its weight: {moved:.2} % of the others' entries move");
    assert!(moved < 0.3);
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let mut members = members(&(0..200).map(|place| place % 7 + 1).collect::<Vec<_>>());
    let before = owners(&members);
    crate::random::Random::seeded(3).shuffle(&mut members);
    assert_eq!(owners(&members), before);
}

#[test]
fn a_walk_begins_at_the_key_and_comes_by_everyone() {
    let members = members(&[1, 1, 1]);
    let table = Maglev::new(&members);
    let places: Vec<usize> = table.walk(SIZE as u64 * 5 + 3).collect();
    assert_eq!(places.len(), SIZE);
    assert_eq!(places[..2], [3, 4].map(|entry| table.entries[entry] as usize));
    assert_eq!(places[SIZE - 1], table.entries[2] as usize);
}

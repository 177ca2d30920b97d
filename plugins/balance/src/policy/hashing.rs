//! Consistent hashing: the same member for the same key, as long as the members stay. Optionally with a bound on the
//! load (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads).

use crate::maglev::Maglev;
use crate::policy::Attempt;
use crate::tiers::{Level, Member, weight};

/// A hash table of members.
pub struct Hashing {
    members: Vec<Member>,
    table: Maglev,
    /// The bound on a member's requests in flight, as a factor of its weight and of the requests in flight at the
    /// upstream.
    bound: Option<f64>,
}

/// The number of steps in the table for which loads are fetched one by one. After that, the loads of all members are
/// fetched at once.
const STEPS: usize = 16;

impl Hashing {
    /// Builds the table. `bounded_load` is in percent.
    pub fn new(level: &Level, bounded_load: Option<u32>) -> Self {
        let average = level.share / weight(&level.members) as f64;
        // Reduced a little, so that a rounding error doesn't raise a bound that is a whole number.
        let bound = bounded_load.map(|percent| f64::from(percent) / 100.0 * average * (1.0 - 1e-9));
        Hashing { members: level.members.clone(), table: Maglev::new(&level.members), bound }
    }

    /// Returns the first member, from the entry of the key on, that hasn't been tried and is below its bound.
    pub fn pick(&self, attempt: &Attempt<'_>) -> Option<u32> {
        // The pool passes a key to each policy that hashes.
        let key = attempt.key?;
        match self.bound {
            Some(bound) => self.pick_bounded(key, attempt, bound),
            None => self.walk(key, attempt).next().map(|(_, member)| member.index),
        }
    }

    fn pick_bounded(&self, key: u64, attempt: &Attempt<'_>, bound: f64) -> Option<u32> {
        let in_flight = f64::from(attempt.endpoints.total_in_flight()) + 1.0;
        let has_room = |member: &Member, load: u32| f64::from(load) < bound * in_flight * f64::from(member.weight);
        let mut near = self.walk(key, attempt).take(STEPS);
        if let Some((_, member)) = near.find(|(_, member)| has_room(member, attempt.endpoints.in_flight(member.index)))
        {
            return Some(member.index);
        }
        let indices: Vec<u32> = self.members.iter().map(|member| member.index).collect();
        let loads = attempt.endpoints.in_flight_counts(&indices);
        let has_room = |place: usize| loads.get(place).is_some_and(|load| has_room(&self.members[place], *load));
        let roomy = (0..indices.len()).any(|place| has_room(place) && attempt.may_go_to(indices[place]));
        // If all members are at their bounds, because requests of other levels moved here, the key alone decides.
        let (_, member) = self.walk(key, attempt).find(|(place, _)| !roomy || has_room(*place))?;
        Some(member.index)
    }

    /// Iterates over the untried members with their positions, from the entry of the key on.
    fn walk(&self, key: u64, attempt: &Attempt<'_>) -> impl Iterator<Item = (usize, &Member)> {
        let members = self.table.walk(key).map(|place| (place, &self.members[place]));
        members.filter(|(_, member)| attempt.may_go_to(member.index))
    }
}

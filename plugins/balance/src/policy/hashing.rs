//! The same member for the same key, as long as the members stay; with a bound on the load if so configured
//! (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads).

use crate::levels::{Level, Member, weight};
use crate::maglev::Maglev;
use crate::policy::Attempt;

/// A table of members.
pub struct Hashing {
    members: Vec<Member>,
    table: Maglev,
    /// Of each request in flight at the upstream, how much a member may have per unit of its weight.
    bound: Option<f64>,
}

/// Up to so many steps of the table are looked at one by one, before the loads of all members are fetched at once.
const STEPS: usize = 16;

impl Hashing {
    /// Builds the table. `bounded_load` is in percent.
    pub fn new(level: &Level, bounded_load: Option<u32>) -> Self {
        let average = level.share / weight(&level.members) as f64;
        // Taken down a little, so that a bound that is a whole number isn't passed for want of digits.
        let bound = bounded_load.map(|percent| f64::from(percent) / 100.0 * average * (1.0 - 1e-9));
        Hashing { members: level.members.clone(), table: Maglev::new(&level.members), bound }
    }

    /// The first member from the key's entry on that hasn't been tried and has room.
    pub fn pick(&self, attempt: &Attempt<'_>) -> Option<u32> {
        // The pool gives a key to each policy that hashes.
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
        let loads = attempt.endpoints.loads(&indices);
        let has_room = |place: usize| loads.get(place).is_some_and(|load| has_room(&self.members[place], *load));
        let roomy = (0..indices.len()).any(|place| has_room(place) && attempt.may_go_to(indices[place]));
        // If none has room, because the load of other levels moved here, the key decides alone.
        let (_, member) = self.walk(key, attempt).find(|(place, _)| !roomy || has_room(*place))?;
        Some(member.index)
    }

    /// The untried members with their places, from the key's entry on.
    fn walk(&self, key: u64, attempt: &Attempt<'_>) -> impl Iterator<Item = (usize, &Member)> {
        let members = self.table.walk(key).map(|place| (place, &self.members[place]));
        members.filter(|(_, member)| attempt.may_go_to(member.index))
    }
}

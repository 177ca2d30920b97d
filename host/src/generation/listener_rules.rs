//! The rules of a listener that open connections began with, and whether they are still in force: a reload compares each
//! with the new ones.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::tls::server::ClientScope;

/// The rules of a listener in a generation, as far as a connection notices that they are replaced.
#[derive(Debug)]
pub struct ListenerRules {
    /// The number of the rules: others nearly always have another one. Certificates and authorities are no part of it.
    number: u64,
    /// The requirements for clients' certificates; `None` if clients are asked for none.
    client_scope: Option<ClientScope>,
    state: AtomicU8,
}

/// The rules that the connections of a listener began with.
#[derive(Debug, Default)]
pub struct KnownRules(Mutex<Vec<Weak<ListenerRules>>>);

/// The state of rules that are in force, or not in service yet.
const IN_FORCE: u8 = 0;
/// The state of rules in whose place the generation in service has others, or none.
const SUPERSEDED: u8 = 1;
/// The state of superseded rules by which clients were not verified as they have to be now.
const UNVERIFIED: u8 = 2;

impl ListenerRules {
    pub fn new(rules: impl Hash, client_scope: Option<ClientScope>) -> Arc<Self> {
        let mut hasher = DefaultHasher::new();
        rules.hash(&mut hasher);
        client_scope.as_ref().map(ClientScope::mode).hash(&mut hasher);
        Arc::new(ListenerRules { number: hasher.finish(), client_scope, state: AtomicU8::new(IN_FORCE) })
    }

    /// Whether each client that was verified by these rules is verified as other rules require.
    pub fn verify_as(&self, now: &ListenerRules) -> bool {
        let covers = |now: &ClientScope| self.client_scope.as_ref().is_some_and(|scope| now.covers(scope));
        now.client_scope.as_ref().is_none_or(covers)
    }

    /// Whether the generation in service has other rules for the listener, or doesn't have it.
    pub fn is_superseded(&self) -> bool {
        self.state.load(Ordering::Relaxed) != IN_FORCE
    }

    /// Whether clients were not verified as the generation in service requires.
    pub fn is_unverified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UNVERIFIED
    }

    /// Returns the state of these rules beside those in service.
    fn beside(&self, now: Option<&ListenerRules>) -> u8 {
        match now {
            Some(now) if !self.verify_as(now) => UNVERIFIED,
            Some(now) if self.number == now.number => IN_FORCE,
            _ => SUPERSEDED,
        }
    }
}

impl KnownRules {
    /// Puts rules into force, or none once the listener is gone. Returns whether there may be connections whose clients were
    /// not verified as they have to be from now on.
    pub fn replace(&self, now: Option<&Arc<ListenerRules>>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut has_unverified = false;
        known.retain(|rules| {
            let Some(rules) = rules.upgrade() else { return false };
            let state = rules.beside(now.map(|now| &**now));
            has_unverified |= rules.state.swap(state, Ordering::Relaxed) != state && state == UNVERIFIED;
            !now.is_some_and(|now| Arc::ptr_eq(now, &rules))
        });
        if let Some(now) = now {
            now.state.store(IN_FORCE, Ordering::Relaxed);
            known.push(Arc::downgrade(now));
        }
        has_unverified
    }
}

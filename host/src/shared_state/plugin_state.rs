//! The state that a plugin has: that of this process, or that of a fleet in place of it.

use std::sync::Arc;

use super::fleet::FleetState;
use super::{SharedError, SharedState, now};

/// The state that the instances of one plugin share.
#[derive(Clone, Default)]
pub struct PluginState {
    /// The state of this process.
    pub local: Arc<SharedState>,
    /// The state of the fleet, which is asked in place of the other; `None` without a server.
    pub fleet: Option<Arc<FleetState>>,
}

impl PluginState {
    /// Whether two plugins have one state.
    pub fn is_same(&self, other: &PluginState) -> bool {
        let fleet = |state: &PluginState| state.fleet.as_ref().map(Arc::as_ptr);
        Arc::ptr_eq(&self.local, &other.local) && fleet(self) == fleet(other)
    }

    /// Returns the result of a call that may not wait: an error if a server would have to be asked, unless the state of this
    /// process answers in its place.
    pub fn at_once<T>(
        &self,
        local: impl FnOnce(&SharedState, u64) -> Result<T, SharedError>,
    ) -> Result<T, SharedError> {
        match &self.fleet {
            Some(fleet) if !fleet.falls_back() => Err(SharedError::Unavailable),
            _ => local(&self.local, now()),
        }
    }

    /// Returns the result of a call that may wait. `asked` is the fleet's answer, if the fleet is asked.
    pub async fn wait<T>(
        &self,
        asked: Option<impl Future<Output = Result<T, SharedError>>>,
        local: impl FnOnce(&SharedState, u64) -> Result<T, SharedError>,
    ) -> Result<T, SharedError> {
        let (Some(asked), Some(fleet)) = (asked, &self.fleet) else { return self.at_once(local) };
        match asked.await {
            Err(SharedError::Unavailable) if fleet.falls_back() => {
                fleet.count_fallback();
                local(&self.local, now())
            }
            result => result,
        }
    }
}

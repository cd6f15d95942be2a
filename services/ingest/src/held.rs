//! Requests of tenants that may have no more jobs waiting. They go back to the broker, each for a while of its own: so that
//! they come again in the order in which they came, take nobody else's time, and cost little while nothing changes.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use baton_contract::Name;
use tokio::time::Instant;

/// How long a request stays away at least.
const AWAY: Duration = Duration::from_millis(250);
/// How far apart two requests come back.
const APART: Duration = Duration::from_millis(2);

/// When the last held request of each tenant and lane comes back.
#[derive(Default)]
pub(crate) struct Held(Mutex<HashMap<(Name, Name), Instant>>);

impl Held {
    /// How long a request stays away.
    pub(crate) fn hold(&self, tenant: &Name, lane: &Name, now: Instant) -> Duration {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, back| *back > now);
        let next = last.get(&(tenant.clone(), lane.clone())).map_or(now, |back| *back + APART).max(now + AWAY);
        last.insert((tenant.clone(), lane.clone()), next);
        next - now
    }

    /// Whether requests are away that came before.
    pub(crate) fn has(&self, tenant: &Name, lane: &Name, now: Instant) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(&(tenant.clone(), lane.clone())).is_some_and(|back| *back > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_requests_come_back_one_after_the_other_and_hold_nobody_else() {
        let (held, now) = (Held::default(), Instant::now());
        let [acme, zeta, lane] = ["acme", "zeta", "batch"].map(|name| Name::new(name).unwrap());
        let away: Vec<_> = (0..3).map(|_| held.hold(&acme, &lane, now)).collect();
        assert_eq!(away, [AWAY, AWAY + APART, AWAY + 2 * APART]);
        assert!(held.has(&acme, &lane, now) && !held.has(&zeta, &lane, now) && !held.has(&acme, &zeta, now));
        assert_eq!(held.hold(&zeta, &lane, now), AWAY);
        let later = now + AWAY + 2 * APART;
        assert!(!held.has(&acme, &lane, later), "they are back");
        assert_eq!(held.hold(&acme, &lane, later), AWAY);
    }
}

//! Whose turn it is among the tenants whose jobs wait: they go round in the order of their names, and each has as many jobs in
//! a turn as its weight says. A turn that finds no more room goes on with the next. Jobs count alike, so deficit round-robin
//! needs no more memory than whose turn it is and what is left of it. Pure: no broker, no clock.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use baton_contract::Name;

/// The tenants of one model and lane.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Whose turn it was last, and how many more jobs it has in it.
    turn: Option<(Name, u64)>,
}

impl Rounds {
    /// How many jobs of whom come next, in this order: as many as there is `room` for, and of each tenant at most those that
    /// are `waiting`. Who has none waiting gives the rest of its turn up.
    pub(super) fn next(
        &mut self,
        mut waiting: BTreeMap<Name, u64>,
        weight: impl Fn(&Name) -> u64,
        mut room: u64,
    ) -> Vec<(Name, u64)> {
        waiting.retain(|_, jobs| *jobs > 0);
        let mut order = Vec::new();
        while room > 0
            && let Some((tenant, left)) = self.turn_among(&waiting, &weight)
        {
            let jobs = waiting.get(&tenant).copied().unwrap_or_default();
            let taken = left.min(jobs).min(room);
            room -= taken;
            if taken == jobs {
                waiting.remove(&tenant);
                self.turn = Some((tenant.clone(), 0));
            } else {
                waiting.insert(tenant.clone(), jobs - taken);
                self.turn = Some((tenant.clone(), left - taken));
            }
            order.push((tenant, taken));
        }
        order
    }

    /// Whose turn it is, and what is left of it; nobody's if nobody waits.
    fn turn_among(&self, waiting: &BTreeMap<Name, u64>, weight: impl Fn(&Name) -> u64) -> Option<(Name, u64)> {
        let next = match &self.turn {
            Some((tenant, left)) if *left > 0 && waiting.contains_key(tenant) => {
                return Some((tenant.clone(), *left));
            }
            Some((last, _)) => waiting.keys().find(|tenant| *tenant > last).or(waiting.keys().next()),
            None => waiting.keys().next(),
        };
        next.map(|tenant| (tenant.clone(), weight(tenant).max(1)))
    }
}

//! A worker that computes: prefill or decode, one at a time. One that may be both changes when it is asked to; it drains as for
//! its end, and goes on with the same models in memory.

use std::io;

use baton_bus::{
    Bus,
    duty::{
        roles::{Answer, Call, Calls},
        stats,
    },
};
use baton_contract::Role;
use baton_topology::{Compute, Plan};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, memory,
    models::{Lent, Models},
    options,
};

/// Tells the worker's parent that the worker takes jobs.
pub type Ready<'a> = &'a dyn Fn() -> io::Result<()>;

fn compute(role: Role, plan: &Plan) -> &Compute {
    match role {
        Role::Prefill => &plan.stages.prefill.compute,
        Role::Decode => &plan.stages.decode.compute,
    }
}

/// A computing worker.
pub struct Flexible<'a> {
    pub plan: &'a Plan,
    pub worker: &'a str,
    /// What it may be, at least one.
    pub roles: Vec<Role>,
    /// Called once the models are loaded.
    pub ready: Ready<'a>,
    pub shutdown: CancellationToken,
}

impl Flexible<'_> {
    /// Loads the models, then serves one role after another, `role` first, until it is shut down.
    pub async fn serve(&self, bus: &Bus, mut role: Role) -> Result<(), Error> {
        if self.roles.len() > 1 {
            self.plan.stages.interchangeable().map_err(Error::NotInterchangeable)?;
        }
        let settings = compute(role, self.plan);
        baton_model::threads::use_threads(settings.threads)?;
        let kv_bytes = self.roles.iter().map(|&role| memory::for_kv_caches(compute(role, self.plan)));
        let kv_bytes = kv_bytes.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
        let mut models = Models::load(self.plan, settings, kv_bytes).await?;
        let mut calls = match self.roles[..] {
            [_] => None,
            _ => Some(bus.role_calls(self.worker).await?),
        };
        let mut caller: Option<(Call, Role)> = None;
        (self.ready)()?;
        loop {
            let (kept, lent) = models.lend().await?;
            models = kept;
            if let Some((call, from)) = caller.take() {
                tracing::info!(worker = self.worker, ?from, to = ?role, "the worker changed its role");
                call.answer(&Answer::Switched { from: from.stage(), to: role.stage() }).await;
            }
            let stop = self.shutdown.child_token();
            // In its new role it has done nothing yet.
            let counting = bus.counting_anew();
            let serving = self.serve_role(&counting, role, lent, stop.clone());
            let Some((call, next)) = self.listen(serving, role, &mut calls, &stop).await? else { break };
            if self.shutdown.is_cancelled() {
                call.refuse("the worker stops").await;
                break;
            }
            caller = Some((call, role));
            role = next;
        }
        if let Some(calls) = calls {
            calls.close().await;
        }
        Ok(())
    }

    /// Serves a role until it ends, and answers calls meanwhile. Returns the call that ended it, if one did.
    async fn listen(
        &self,
        serving: impl Future<Output = Result<(), Error>>,
        role: Role,
        calls: &mut Option<Calls>,
        stop: &CancellationToken,
    ) -> Result<Option<(Call, Role)>, Error> {
        tokio::pin!(serving);
        let mut accepted = None;
        loop {
            let call = tokio::select! {
                ended = &mut serving => {
                    ended?;
                    return Ok(accepted);
                }
                call = next(calls) => call,
            };
            let wanted = self.roles.iter().copied().find(|role| role.stage() == call.role);
            match wanted {
                _ if self.shutdown.is_cancelled() => call.refuse("the worker stops").await,
                _ if accepted.is_some() => call.refuse("the worker is changing its role already").await,
                Some(wanted) if wanted == role => call.answer(&Answer::Serves { role: role.stage() }).await,
                Some(wanted) => {
                    tracing::info!(worker = self.worker, from = ?role, to = ?wanted, "the worker drains to change its role");
                    accepted = Some((call, wanted));
                    stop.cancel();
                }
                None => {
                    let may: Vec<_> = self.roles.iter().map(|role| role.stage().as_str()).collect();
                    let reason = format!("the worker may be {}, not {}", may.join(" or "), call.role);
                    call.refuse(reason).await;
                }
            }
        }
    }

    async fn serve_role(&self, bus: &Bus, role: Role, lent: Vec<Lent>, stop: CancellationToken) -> Result<(), Error> {
        let Self { plan, worker, .. } = self;
        let settings = compute(role, plan);
        if lent.is_empty() {
            return Err(Error::NoModel);
        }
        let pull = options::pull(plan, role.stage(), &settings.stage, &settings.models);
        let worker = (*worker).to_owned();
        let identity = stats::Identity {
            worker: worker.clone(),
            stage: role.stage(),
            roles: self.roles.iter().map(|role| role.stage()).collect(),
            models: settings.models.clone(),
            slots: pull.slots,
            upstreams: stats::Upstreams::default(),
        };
        match role {
            Role::Prefill => {
                let served = lent.into_iter().map(|Lent { name, model, generator, store }| baton_prefill::Served {
                    name,
                    model,
                    generator,
                    store,
                });
                let options = options::prefill(plan, pull, worker);
                let running = baton_prefill::run(bus.clone(), options, served.collect(), stop.clone());
                Ok(bus.telling(identity, &stop, running).await?)
            }
            Role::Decode => {
                let served = lent.into_iter().map(|Lent { name, model, generator, store }| baton_decode::Served {
                    name,
                    model,
                    generator,
                    store,
                });
                let options = options::decode(plan, pull, worker);
                let running = baton_decode::run(bus.clone(), options, served.collect(), stop.clone());
                Ok(bus.telling(identity, &stop, running).await?)
            }
        }
    }
}

/// The next call; none ever if nobody may call.
async fn next(calls: &mut Option<Calls>) -> Call {
    match calls {
        Some(calls) => calls.next().await,
        None => std::future::pending().await,
    }
}

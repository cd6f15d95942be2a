//! A worker that computes: prefill or decode, one at a time. One that may be both changes when it is asked to; it drains as for
//! its end, and goes on with the same models in memory.

use std::io;

use baton_bus::{
    Bus,
    duty::{
        roles::{Answer, Call, Calls},
        stats,
    },
    stage::pull,
};
use baton_contract::{Name, Role};
use baton_topology::Plan;
use baton_upstream::Upstream;
use futures::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, memory,
    models::{Lent, Models},
    options::{self, compute},
    upstreams::Upstreams,
};

/// Tells the worker's parent that the worker takes jobs.
pub type Ready<'a> = &'a dyn Fn() -> io::Result<()>;

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
        let upstreams = Upstreams::open(self.plan, &self.roles, &self.shutdown)?;
        let mut models = self.load(role).await?;
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
            let serving = self.serve_role(&counting, role, lent, &upstreams, stop.clone());
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

    /// Loads the models that the worker computes itself, if there are any.
    async fn load(&self, role: Role) -> Result<Models, Error> {
        let (plan, settings, names) = (self.plan, compute(role, self.plan), options::own(self.plan, role));
        if names.is_empty() {
            return Models::load(plan, settings, &names, 0).await;
        }
        baton_model::threads::use_threads(settings.threads)?;
        let kv_bytes = self.roles.iter().map(|&role| memory::for_kv_caches(compute(role, plan)));
        let kv_bytes = kv_bytes.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
        Models::load(plan, settings, &names, kv_bytes).await
    }

    /// Serves a role: its own models in one loop, each foreign one in a loop of its own.
    async fn serve_role(
        &self,
        bus: &Bus,
        role: Role,
        lent: Vec<Lent>,
        upstreams: &Upstreams,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let Self { plan, worker, .. } = self;
        let (settings, foreign) = (compute(role, plan), upstreams.of(plan, role));
        let own: Vec<Name> = lent.iter().map(|lent| lent.name.clone()).collect();
        let pull = options::pull(plan, role.stage(), &settings.stage, &own);
        let mut models: Vec<Name> = own.iter().chain(foreign.iter().map(|(name, _)| name)).cloned().collect();
        models.sort();
        if models.is_empty() {
            tracing::info!("the worker has nothing to do: foreign engines prefill the prompts of its models");
        }
        let identity = stats::Identity {
            worker: (*worker).to_owned(),
            stage: role.stage(),
            roles: self.roles.iter().map(|role| role.stage()).collect(),
            models,
            slots: if own.is_empty() { 0 } else { pull.slots },
            upstreams: upstreams.stats(),
        };
        let loops = FuturesUnordered::new();
        for (name, upstream) in foreign {
            let room = match role {
                Role::Prefill => upstream.prefill_slots(),
                Role::Decode => upstream.slots(),
            };
            let pull = options::pull_foreign(plan, role, &name, room);
            loops.push(self.serve_foreign(bus.clone(), role, pull, upstream, stop.clone()).boxed_local());
        }
        if !lent.is_empty() {
            loops.push(self.serve_own(bus.clone(), role, pull, lent, stop.clone()).boxed_local());
        }
        bus.telling(identity, &stop, together(loops, &stop)).await
    }

    async fn serve_own(
        &self,
        bus: Bus,
        role: Role,
        pull: pull::Options,
        lent: Vec<Lent>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let Self { plan, worker, .. } = self;
        let worker = (*worker).to_owned();
        match role {
            Role::Prefill => {
                let served = lent.into_iter().map(|Lent { name, model, generator, store }| baton_prefill::Served {
                    name,
                    model,
                    generator,
                    store,
                });
                let options = options::prefill(plan, pull, worker);
                Ok(baton_prefill::run(bus, options, served.collect(), stop).await?)
            }
            Role::Decode => {
                let served = lent.into_iter().map(|Lent { name, model, generator, store }| baton_decode::Served {
                    name,
                    model,
                    generator,
                    store,
                });
                let options = options::decode(plan, pull, worker);
                let fallbacks = options::fallbacks(plan, &options.pull.models);
                Ok(baton_decode::run(bus, options, served.collect(), fallbacks, stop).await?)
            }
        }
    }

    async fn serve_foreign(
        &self,
        bus: Bus,
        role: Role,
        pull: pull::Options,
        upstream: Upstream,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let worker = self.worker.to_owned();
        match role {
            Role::Prefill => Ok(baton_prefill::foreign::run(bus, pull, worker, upstream, stop).await?),
            Role::Decode => {
                let options = options::decode(self.plan, pull, worker);
                Ok(baton_decode::foreign::run(bus, options, upstream, stop).await?)
            }
        }
    }
}

/// Runs loops until `stop`. If one ends before that, so do the others: the worker would only take some jobs away from those that
/// can do all.
async fn together(
    mut loops: FuturesUnordered<LocalBoxFuture<'_, Result<(), Error>>>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let mut result = Ok(());
    if loops.is_empty() {
        stop.cancelled().await;
    }
    while let Some(ended) = loops.next().await {
        stop.cancel();
        result = result.and(ended);
    }
    result
}

/// The next call; none ever if nobody may call.
async fn next(calls: &mut Option<Calls>) -> Call {
    match calls {
        Some(calls) => calls.next().await,
        None => std::future::pending().await,
    }
}

//! Does to a pipeline what the schedule says, and undoes it.

use std::{sync::Arc, time::Duration};

use baton_contract::subject::Stage;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::sleep,
};

use super::{
    Error,
    broker::Broker,
    crew::Crew,
    kind::Role,
    processes::{Program, Worker},
    proxy::Proxy,
    schedule::{Fault, Reach, Target},
    store::Directory,
};

/// How often workers are looked after.
const ROUND: Duration = Duration::from_millis(200);

/// A worker and its way to the broker.
pub struct Place {
    pub worker: Mutex<Worker>,
    pub link: Proxy,
}

/// Everything that faults hit. A fault waits until what it hits is free of others.
pub struct Pipeline {
    /// Runs an operator's commands.
    pub program: Program,
    /// The library that makes clocks wrong, if there is one.
    pub faketime: Option<String>,
    /// By role, then by number.
    pub places: Vec<Vec<Place>>,
    pub broker: Mutex<Broker>,
    /// The submitter's way to the broker.
    pub submitter: Proxy,
    /// The way of who watches, which nothing but the broker's own absence disturbs.
    pub watcher: Proxy,
    /// None if the store is somewhere else.
    pub store: Option<Mutex<Directory>>,
    /// The way to a store elsewhere.
    pub store_link: Option<Proxy>,
}

impl Pipeline {
    fn place(&self, Target { role, number }: Target) -> &Place {
        &self.places[role.index()][number]
    }

    fn links(&self, reach: Reach) -> Vec<&Proxy> {
        match reach {
            Reach::One(target) => vec![&self.place(target).link],
            Reach::All => {
                let workers = self.places.iter().flatten().map(|place| &place.link);
                workers.chain([&self.submitter]).chain(&self.store_link).collect()
            }
        }
    }

    /// Starts the broker, and tells everybody where it is.
    pub async fn start_broker(&self, broker: &mut Broker) -> Result<(), Error> {
        broker.start().await?;
        let workers = self.places.iter().flatten().map(|place| &place.link);
        workers.chain([&self.submitter, &self.watcher]).for_each(|link| link.lead_to(broker.addresses()));
        Ok(())
    }

    /// One fault from its beginning to its end; whether it found what it was meant for.
    pub async fn inflict(&self, fault: Fault, crew: &Crew) -> Result<bool, Error> {
        match fault {
            Fault::Kill { target, down } => {
                let mut worker = self.place(target).worker.lock().await;
                worker.kill().await;
                sleep(down).await;
                worker.start().await?;
            }
            Fault::KillAll { stage, down } => self.kill_all(stage, down, crew).await?,
            Fault::Pause { target, lasts } => {
                let worker = self.place(target).worker.lock().await;
                worker.stop();
                sleep(lasts).await;
                worker.resume();
            }
            Fault::Drain { target, down } => {
                let mut worker = self.place(target).worker.lock().await;
                worker.drain().await?;
                sleep(down).await;
                worker.start().await?;
            }
            Fault::Clock { target, by } => {
                let mut worker = self.place(target).worker.lock().await;
                worker.drain().await?;
                worker.set_clock(self.faketime.clone().map(|library| (library, by)));
                worker.start().await?;
                // Whoever starts it the next time has set its clock.
                worker.set_clock(None);
            }
            Fault::BrokerStop { node, down } => {
                let mut broker = self.broker.lock().await;
                broker.stop_node(node).await;
                sleep(down).await;
                self.start_broker(&mut broker).await?;
            }
            Fault::BrokerKill { node, down } => {
                let mut broker = self.broker.lock().await;
                broker.kill_node(node).await;
                sleep(down).await;
                self.start_broker(&mut broker).await?;
            }
            Fault::BrokerPause { lasts } => {
                let broker = self.broker.lock().await;
                broker.pause();
                sleep(lasts).await;
                broker.resume();
            }
            Fault::Freeze { follower, lasts } => {
                let broker = self.broker.lock().await;
                let frozen = broker.freeze(follower).await;
                sleep(lasts).await;
                broker.resume();
                return Ok(frozen.is_some());
            }
            Fault::Delay { reach, by, lasts } => {
                self.links(reach).iter().for_each(|link| link.delay(by));
                sleep(lasts).await;
                self.links(reach).iter().for_each(|link| link.delay(Duration::ZERO));
            }
            Fault::Cut { reach, lasts } => {
                for link in self.links(reach) {
                    link.refuse(true);
                    link.cut();
                }
                sleep(lasts).await;
                self.links(reach).iter().for_each(|link| link.refuse(false));
            }
            Fault::HalfOpen { reach } => self.links(reach).iter().for_each(|link| link.silence()),
            Fault::Damage { chunks, seed } => return self.store(|store| Ok(store.damage(chunks, seed)? > 0)).await,
            Fault::Loss { chunks, seed } => return self.store(|store| Ok(store.lose(chunks, seed)? > 0)).await,
            Fault::StoreError { lasts } => return self.fail_store(lasts).await,
            Fault::Consumers { stage } => return self.delete_consumers(stage).await,
            Fault::Caches { cache } => return self.delete_cache(cache).await,
            Fault::Purge { queue, stream } => return self.purge(queue, stream).await,
            Fault::Requests => return self.purge_requests(crew).await,
            Fault::Records => return self.delete_records(crew).await,
            Fault::Wipe => self.wipe(crew).await?,
            Fault::Headers { hostile } => self.publish_hostile(hostile).await?,
        }
        Ok(true)
    }

    async fn kill_all(&self, stage: Stage, down: Duration, crew: &Crew) -> Result<(), Error> {
        let mut workers = Vec::new();
        for place in &self.places[Role::Stage(stage).index()] {
            workers.push(place.worker.lock().await);
        }
        for worker in &mut workers {
            worker.kill().await;
        }
        sleep(down / 2).await;
        crew.insist().await;
        sleep(down / 2).await;
        for worker in &mut workers {
            worker.start().await?;
        }
        Ok(())
    }

    async fn store(&self, act: impl FnOnce(&Directory) -> std::io::Result<bool>) -> Result<bool, Error> {
        let Some(store) = &self.store else { return Ok(false) };
        act(&*store.lock().await).map_err(Error::Store)
    }

    async fn fail_store(&self, lasts: Duration) -> Result<bool, Error> {
        if let Some(link) = &self.store_link {
            link.refuse(true);
            link.cut();
            sleep(lasts).await;
            link.refuse(false);
        } else if let Some(store) = &self.store {
            let store = store.lock().await;
            store.fail().map_err(Error::Store)?;
            sleep(lasts).await;
            store.recover().map_err(Error::Store)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends all weather. Faults must have ended.
    pub async fn calm(&self) -> Result<(), Error> {
        self.links(Reach::All).iter().for_each(|link| link.calm());
        self.revive().await
    }

    async fn revive(&self) -> Result<(), Error> {
        for place in self.places.iter().flatten() {
            // Whoever holds it brings it back.
            if let Ok(mut worker) = place.worker.try_lock() {
                worker.revive().await?;
            }
        }
        Ok(())
    }

    /// Starts workers again that end by themselves, without end.
    pub async fn look_after(self: Arc<Self>) -> Result<(), Error> {
        loop {
            self.revive().await?;
            sleep(ROUND).await;
        }
    }

    /// Starts every worker.
    pub async fn start_workers(&self) -> Result<(), Error> {
        for place in self.places.iter().flatten() {
            place.worker.lock().await.start().await?;
        }
        Ok(())
    }

    /// Drains every worker; returns how often they had ended by themselves.
    pub async fn stop_workers(&self) -> Result<u64, Error> {
        let mut crashes = 0;
        for place in self.places.iter().flatten() {
            let mut worker: MutexGuard<'_, Worker> = place.worker.lock().await;
            crashes += worker.crashes;
            worker.drain().await?;
        }
        Ok(crashes)
    }
}

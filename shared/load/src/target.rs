//! Who gets the load: a pipeline's bus, or a server that speaks OpenAI's protocol. Each turns what it hears into the same
//! events, with the time at which it heard it.

mod bus;
mod event;
mod openai;

use baton_bus::Bus;

pub(crate) use event::{Event, What};
pub use openai::{Api, Key, Server, http};

use crate::{
    Error, Options,
    workload::{Maker, Planned},
};

/// A target that can be reached, or was expected to be.
#[derive(Clone, Debug)]
pub enum Target {
    /// A pipeline's subjects.
    Bus(Box<Bus>),
    /// Streaming chat or text completions over HTTP.
    OpenAi(Server),
}

impl From<Bus> for Target {
    fn from(bus: Bus) -> Self {
        Self::Bus(Box::new(bus))
    }
}

impl Target {
    /// A word for tables.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bus(_) => "bus",
            Self::OpenAi(_) => "openai",
        }
    }

    /// Begins to listen, before the first request goes out.
    pub(crate) async fn open(&self, options: &Options) -> Result<Session, Error> {
        Ok(match self {
            Self::Bus(bus) => Session::Bus(Box::new(bus::Session::open(bus, options).await?)),
            Self::OpenAi(server) => Session::OpenAi(openai::Session::open(server)?),
        })
    }
}

/// A target during one run.
pub(crate) enum Session {
    Bus(Box<bus::Session>),
    OpenAi(openai::Session),
}

impl Session {
    /// Sends a request; nobody waits until the target has it.
    pub(crate) fn send(&mut self, index: usize, planned: Planned, maker: &Maker) {
        match self {
            Self::Bus(session) => session.send(index, planned, maker),
            Self::OpenAi(session) => session.send(index, planned, maker),
        }
    }

    /// The next event; never comes while nothing is under way. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Event {
        match self {
            Self::Bus(session) => session.next().await,
            Self::OpenAi(session) => session.next().await,
        }
    }

    /// What was not yet heard once all requests have ended: their send times, where the broker was slow to acknowledge.
    pub(crate) async fn rest(&mut self) -> Option<Event> {
        match self {
            Self::Bus(session) => session.rest().await,
            Self::OpenAi(session) => session.rest(),
        }
    }

    /// Nobody waits for this request any more.
    pub(crate) fn forget(&mut self, index: usize) {
        match self {
            Self::Bus(session) => session.forget(index),
            Self::OpenAi(session) => session.forget(index),
        }
    }
}

//! A NATS micro-service endpoint that is opened again when its connection dies.

use std::time::Duration;

use async_nats::service::{Request, Service, ServiceExt, endpoint::Endpoint};
use baton_contract::causes;
use futures::StreamExt;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, connection::Ears};

/// The pause after an endpoint that could not be opened again.
const PAUSE: Duration = Duration::from_millis(500);

/// What an endpoint is called, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Sign {
    pub(crate) service: String,
    pub(crate) description: &'static str,
    pub(crate) endpoint: &'static str,
    pub(crate) subject: String,
}

/// An endpoint that is open.
struct Opened {
    requests: Endpoint,
    service: Service,
}

/// An endpoint.
pub(crate) struct Served {
    ears: Ears,
    sign: Sign,
    opened: Option<Opened>,
    again: Option<AbortOnDropHandle<Opened>>,
}

impl Sign {
    async fn open(&self, ears: &Ears) -> Result<Opened, Error> {
        let connection = ears.connection().await?;
        let failed = |error: async_nats::Error| Error::Provision {
            what: format!("the endpoint {}", self.subject),
            message: causes(error.as_ref()),
        };
        let service = connection.client.service_builder().description(self.description);
        let service = service.start(&self.service, env!("CARGO_PKG_VERSION")).await.map_err(failed)?;
        let requests =
            service.endpoint_builder().name(self.endpoint).add(self.subject.clone()).await.map_err(failed)?;
        Ok(Opened { requests, service })
    }

    async fn open_again(self, ears: Ears) -> Opened {
        loop {
            match self.open(&ears).await {
                Ok(opened) => return opened,
                Err(error) => {
                    tracing::debug!(error = %causes(&error), "an endpoint can't be opened again; trying again")
                }
            }
            sleep(PAUSE).await;
        }
    }
}

impl Served {
    pub(crate) async fn open(ears: &Ears, sign: Sign) -> Result<Self, Error> {
        let opened = sign.open(ears).await?;
        Ok(Self { ears: ears.clone(), sign, opened: Some(opened), again: None })
    }

    /// The next request. May be given up and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Request {
        loop {
            if let Some(opened) = &mut self.opened {
                if let Some(request) = opened.requests.next().await {
                    return request;
                }
                self.opened = None;
            }
            let open = || AbortOnDropHandle::new(tokio::spawn(self.sign.clone().open_again(self.ears.clone())));
            if let Ok(opened) = self.again.get_or_insert_with(open).await {
                self.opened = Some(opened);
            }
            self.again = None;
        }
    }

    /// Closes the endpoint.
    pub(crate) async fn close(self) {
        let Some(opened) = self.opened else { return };
        if let Err(error) = opened.service.stop().await {
            tracing::debug!(error = %causes(error.as_ref()), "the endpoint was not closed");
        }
    }
}

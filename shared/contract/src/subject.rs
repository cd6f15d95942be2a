//! Where everything lies on the bus: subjects, streams, consumers and the job bucket, all under one root.

pub mod broker;
mod stage;

pub use self::stage::Stage;
use crate::{JobId, Name};

/// The subjects, stream names and keys of the pipeline under one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: Name,
}

impl Layout {
    /// The names of the pipeline under a root.
    pub fn new(root: Name) -> Self {
        Self { root }
    }

    /// The root that all names begin with.
    pub fn root(&self) -> &Name {
        &self.root
    }

    /// Where a tenant publishes requests.
    pub fn request(&self, tenant: &Name, lane: &Name) -> String {
        format!("{}.req.{tenant}.{lane}", self.root)
    }

    /// A filter for all requests of a tenant.
    pub fn requests(&self, tenant: &Name) -> String {
        format!("{}.req.{tenant}.*", self.root)
    }

    /// Tenant and lane of a request's subject.
    pub fn parse_request(&self, subject: &str) -> Option<(Name, Name)> {
        let rest = subject.strip_prefix(self.root.as_str())?.strip_prefix(".req.")?;
        let (tenant, lane) = rest.split_once('.')?;
        Some((Name::new(tenant).ok()?, Name::new(lane).ok()?))
    }

    /// Where a tenant's jobs lie for prefill.
    pub fn prefill(&self, model: &Name, lane: &Name, tenant: &Name) -> String {
        format!("{}.prefill.{model}.{lane}.{tenant}", self.root)
    }

    /// Where a tenant's jobs lie for decode.
    pub fn decode(&self, model: &Name, lane: &Name, tenant: &Name) -> String {
        format!("{}.decode.{model}.{lane}.{tenant}", self.root)
    }

    /// Where a tenant's admitted jobs wait for their turn.
    pub fn waiting(&self, model: &Name, lane: &Name, tenant: &Name) -> String {
        format!("{}.waiting.{model}.{lane}.{tenant}", self.root)
    }

    /// The model, the lane and the tenant that a subject ends with.
    pub fn parse_place(subject: &str) -> Option<(Name, Name, Name)> {
        let mut tokens = subject.rsplit('.').map(|token| Name::new(token).ok());
        let (tenant, lane, model) = (tokens.next()??, tokens.next()??, tokens.next()??);
        Some((model, lane, tenant))
    }

    /// The stream of admitted jobs that wait for their turn.
    pub fn waiting_stream(&self) -> String {
        format!("{}_waiting", self.root)
    }

    /// The subjects that this stream collects.
    pub fn waiting_subjects(&self) -> String {
        format!("{}.waiting.*.*.*", self.root)
    }

    /// Where it is told, without durability, that a job began to wait.
    pub fn wake(&self) -> String {
        format!("{}.wake", self.root)
    }

    /// Where the tokens of a running job appear, one message each, without durability.
    pub fn tokens(&self, tenant: &Name, job: &JobId) -> String {
        format!("{}.tok.{tenant}.{job}", self.root)
    }

    /// The tokens of all running jobs of a tenant.
    pub fn all_tokens(&self, tenant: &Name) -> String {
        format!("{}.tok.{tenant}.*", self.root)
    }

    /// Where the one result of a job lies.
    pub fn result(&self, tenant: &Name, job: &JobId) -> String {
        format!("{}.res.{tenant}.{job}", self.root)
    }

    /// All results of a tenant.
    pub fn results(&self, tenant: &Name) -> String {
        format!("{}.res.{tenant}.*", self.root)
    }

    /// All results.
    pub fn all_results(&self) -> String {
        format!("{}.res.*.*", self.root)
    }

    /// Where it lies that a request was refused because its id belongs to another one.
    pub fn refusal(&self, tenant: &Name, job: &JobId, request_digest: &str) -> String {
        format!("{}.rej.{tenant}.{job}.{request_digest}", self.root)
    }

    /// All such refusals of a tenant.
    pub fn refusals(&self, tenant: &Name) -> String {
        format!("{}.rej.{tenant}.*.*", self.root)
    }

    /// Whether a subject is one of those, and not a result's.
    pub fn is_refusal(subject: &str) -> bool {
        subject.split('.').nth(1) == Some("rej")
    }

    /// Who is asked to cancel a job.
    pub fn cancel(&self, tenant: &Name, job: &JobId) -> String {
        format!("{}.api.cancel.{tenant}.{job}", self.root)
    }

    /// All such calls.
    pub fn cancels(&self) -> String {
        format!("{}.api.cancel.*.*", self.root)
    }

    /// Where the workers are told, without durability, that a job was cancelled.
    pub fn cancelled(&self, tenant: &Name, job: &JobId) -> String {
        format!("{}.cancel.{tenant}.{job}", self.root)
    }

    /// The same of all jobs.
    pub fn all_cancelled(&self) -> String {
        format!("{}.cancel.*.*", self.root)
    }

    /// The tenant and the job that a subject ends with.
    pub fn parse_job(subject: &str) -> Option<(Name, JobId)> {
        let mut tokens = subject.rsplit('.');
        let (job, tenant) = (tokens.next()?, tokens.next()?);
        Some((Name::new(tenant).ok()?, JobId::new(job).ok()?))
    }

    /// Who is asked to have a worker change its role. The worker's name is free text: what a subject can't hold becomes `_`.
    pub fn role(&self, worker: &str) -> String {
        format!("{}.api.role.{}", self.root, token(worker))
    }

    /// Where a worker tells every second how it is doing, without durability; its name as in [`Layout::role`].
    pub fn stats(&self, stage: Stage, worker: &str) -> String {
        format!("{}.stats.{stage}.{}", self.root, token(worker))
    }

    /// Where the planner tells every second what it thinks.
    pub fn planning(&self) -> String {
        format!("{}.stats.planner", self.root)
    }

    /// The same of all workers.
    pub fn all_stats(&self) -> String {
        format!("{}.stats.*.*", self.root)
    }

    /// The model (none for ingest) and the lane of the queue that a stage's subject belongs to, whether it is a message's
    /// or a consumer's; nothing if the subject is of another kind.
    pub fn parse_queue(&self, stage: Stage, subject: &str) -> Option<(Option<Name>, Name)> {
        let mut tokens = subject.strip_prefix(self.root.as_str())?.strip_prefix('.')?.split('.');
        let kind = match stage {
            Stage::Ingest => "req",
            Stage::Prefill | Stage::Decode => stage.as_str(),
        };
        let (found, owner, lane) = (tokens.next()?, tokens.next()?, tokens.next()?);
        // A job's subject says whose it is: a request's before the lane, the others' after it.
        let tenant = if stage == Stage::Ingest { Some(owner) } else { tokens.next() };
        if found != kind || tenant.is_none() || tokens.next().is_some() {
            return None;
        }
        let model = match stage {
            Stage::Ingest => None,
            Stage::Prefill | Stage::Decode => Some(Name::new(owner).ok()?),
        };
        Some((model, Name::new(lane).ok()?))
    }

    /// What the consumer of a queue takes: the messages of a model (ingest has none) and a lane, of all tenants.
    pub fn queue(&self, stage: Stage, model: Option<&Name>, lane: &Name) -> String {
        let model = model.map_or("*", Name::as_str);
        match stage {
            Stage::Ingest => format!("{}.req.*.{lane}", self.root),
            Stage::Prefill | Stage::Decode => format!("{}.{stage}.{model}.{lane}.*", self.root),
        }
    }

    /// The name of that consumer in its stage's stream.
    pub fn queue_consumer(model: Option<&Name>, lane: &Name) -> String {
        match model {
            Some(model) => format!("{model}-{lane}"),
            None => lane.to_string(),
        }
    }

    /// Where a dead letter lies. Its id is made of names and begins with the stage that gave up.
    pub fn dead_letter(&self, id: &str) -> String {
        format!("{}.dead.{id}", self.root)
    }

    /// Where the message that a job was admitted with is kept, in case the job loses its own.
    pub fn admitted(&self, tenant: &Name, job: &JobId) -> String {
        format!("{}.admitted.{tenant}.{job}", self.root)
    }

    /// The work-queue stream that feeds a stage.
    pub fn stage_stream(&self, stage: Stage) -> String {
        match stage {
            Stage::Ingest => format!("{}_req", self.root),
            Stage::Prefill | Stage::Decode => format!("{}_{stage}", self.root),
        }
    }

    /// What the request stream collects: the requests of every tenant in the lanes that there are. It takes nothing for a lane
    /// that nobody serves, where it would lie for ever in a queue that all share.
    pub fn request_subjects(&self, lanes: &[Name]) -> Vec<String> {
        lanes.iter().map(|lane| format!("{}.req.*.{lane}", self.root)).collect()
    }

    /// The lanes whose requests a stream collects, by its subjects; nothing if it takes any lane's.
    pub fn parse_request_subjects<'a>(&self, subjects: impl IntoIterator<Item = &'a str>) -> Option<Vec<Name>> {
        let prefix = format!("{}.req.*.", self.root);
        subjects.into_iter().map(|subject| Name::new(subject.strip_prefix(&prefix)?).ok()).collect()
    }

    /// A filter for all that a stage's stream collects.
    pub fn stage_subjects(&self, stage: Stage) -> String {
        match stage {
            Stage::Ingest => format!("{}.req.*.*", self.root),
            Stage::Prefill | Stage::Decode => format!("{}.{stage}.*.*.*", self.root),
        }
    }

    /// The stream of results and refusals.
    pub fn result_stream(&self) -> String {
        format!("{}_res", self.root)
    }

    /// What that stream collects: results, and refusals of requests that became no job.
    pub fn result_subjects(&self) -> Vec<String> {
        vec![format!("{}.res.*.*", self.root), format!("{}.rej.*.*.*", self.root)]
    }

    /// The stream of dead letters.
    pub fn dead_stream(&self) -> String {
        format!("{}_dead", self.root)
    }

    /// What that stream collects.
    pub fn dead_subjects(&self) -> String {
        format!("{}.dead.>", self.root)
    }

    /// The stream of the messages that jobs were admitted with.
    pub fn admitted_stream(&self) -> String {
        format!("{}_admitted", self.root)
    }

    /// What that stream collects.
    pub fn admitted_subjects(&self) -> String {
        format!("{}.admitted.*.*", self.root)
    }

    /// The key-value bucket of job records.
    pub fn job_bucket(&self) -> String {
        format!("{}_jobs", self.root)
    }

    /// The key-value bucket of what running answers have come to, under the keys of their jobs.
    pub fn checkpoint_bucket(&self) -> String {
        format!("{}_checkpoints", self.root)
    }

    /// The key-value bucket of what all processes of the pipeline agree on.
    pub fn settings_bucket(&self) -> String {
        format!("{}_settings", self.root)
    }

    /// The object store's bucket of results that are too large for a message.
    pub fn large_bucket(&self) -> String {
        format!("{}_results", self.root)
    }

    /// The stream that this bucket is, by the rules of JetStream's object store.
    pub fn large_stream(&self) -> String {
        format!("OBJ_{}", self.large_bucket())
    }

    /// What that stream collects.
    pub fn large_subjects(&self) -> Vec<String> {
        vec![format!("$O.{}.C.>", self.large_bucket()), format!("$O.{}.M.>", self.large_bucket())]
    }

    /// The key-value bucket of claims on prefixes.
    pub fn prefix_bucket(&self) -> String {
        format!("{}_prefixes", self.root)
    }

    /// The key-value bucket of what is known about users' files.
    pub fn file_bucket(&self) -> String {
        format!("{}_files", self.root)
    }

    /// The key-value bucket of users' batches of requests.
    pub fn batch_bucket(&self) -> String {
        format!("{}_batches", self.root)
    }

    /// Where a gateway puts what gateways have to do for a tenant: `batch` or `webhook`.
    pub fn errand(&self, kind: &str, tenant: &Name) -> String {
        format!("{}.{kind}.{tenant}", self.root)
    }

    /// All such subjects of a kind.
    pub fn errands(&self, kind: &str) -> String {
        format!("{}.{kind}.*", self.root)
    }

    /// The work-queue stream of the batches that gateways drive.
    pub fn batch_task_stream(&self) -> String {
        format!("{}_batchwork", self.root)
    }

    /// The work-queue stream of the webhooks that gateways call.
    pub fn webhook_task_stream(&self) -> String {
        format!("{}_webhooks", self.root)
    }

    /// The NATS micro-service that ingest's workers are.
    pub fn service(&self) -> String {
        format!("baton-{}", self.root)
    }

    /// The NATS micro-service that workers with several roles are.
    pub fn worker_service(&self) -> String {
        format!("baton-{}-worker", self.root)
    }

    /// The key of a job in the buckets of records and checkpoints, and of a file or a batch in theirs.
    pub fn job_key(&self, tenant: &Name, job: &JobId) -> String {
        format!("{tenant}.{job}")
    }
}

/// A free text as one token of a subject.
fn token(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let token: String = text.chars().take(64).map(safe).collect();
    if token.is_empty() { "_".to_owned() } else { token }
}

#[cfg(test)]
mod tests;

//! Where everything lies on the bus: subjects, streams, consumers and the job bucket, all under one root.

use crate::{JobId, Name};

/// A stage of the pipeline, in the order a job passes them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    bincode::Encode,
    bincode::Decode,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Ingest,
    Prefill,
    Decode,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Prefill, Self::Decode];

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The subjects, stream names and keys of the pipeline under one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: Name,
}

impl Layout {
    pub fn new(root: Name) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Name {
        &self.root
    }

    /// Where a tenant publishes requests.
    pub fn request(&self, tenant: &Name, lane: &Name) -> String {
        format!("{}.req.{tenant}.{lane}", self.root)
    }

    /// Tenant and lane of a request's subject.
    pub fn parse_request(&self, subject: &str) -> Option<(Name, Name)> {
        let rest = subject.strip_prefix(self.root.as_str())?.strip_prefix(".req.")?;
        let (tenant, lane) = rest.split_once('.')?;
        Some((Name::new(tenant).ok()?, Name::new(lane).ok()?))
    }

    pub fn prefill(&self, model: &Name, lane: &Name) -> String {
        format!("{}.prefill.{model}.{lane}", self.root)
    }

    pub fn decode(&self, model: &Name, lane: &Name) -> String {
        format!("{}.decode.{model}.{lane}", self.root)
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

    /// The subjects that a stage's stream collects.
    pub fn stage_subjects(&self, stage: Stage) -> String {
        match stage {
            Stage::Ingest => format!("{}.req.*.*", self.root),
            Stage::Prefill | Stage::Decode => format!("{}.{stage}.*.*", self.root),
        }
    }

    pub fn result_stream(&self) -> String {
        format!("{}_res", self.root)
    }

    /// What that stream collects: results, and refusals of requests that became no job.
    pub fn result_subjects(&self) -> Vec<String> {
        vec![format!("{}.res.*.*", self.root), format!("{}.rej.*.*.*", self.root)]
    }

    pub fn dead_stream(&self) -> String {
        format!("{}_dead", self.root)
    }

    pub fn dead_subjects(&self) -> String {
        format!("{}.dead.>", self.root)
    }

    pub fn admitted_stream(&self) -> String {
        format!("{}_admitted", self.root)
    }

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

    /// The key-value bucket of claims on prefixes.
    pub fn prefix_bucket(&self) -> String {
        format!("{}_prefixes", self.root)
    }

    pub fn job_key(&self, tenant: &Name, job: &JobId) -> String {
        format!("{tenant}.{job}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_subjects_are_read_back_and_others_are_not() {
        let layout = Layout::new(Name::new("baton").unwrap());
        let (tenant, lane) = (Name::new("acme").unwrap(), Name::new("batch").unwrap());
        assert_eq!(layout.parse_request(&layout.request(&tenant, &lane)), Some((tenant, lane)));
        for bad in
            ["baton.req.acme", "baton.req.acme.batch.x", "other.req.acme.batch", "batonx.req.a.b", "baton.req.A.b"]
        {
            assert_eq!(layout.parse_request(bad), None, "{bad}");
        }
    }
}

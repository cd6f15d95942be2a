//! The ids that messages are published under (`Nats-Msg-Id`). The broker stores one message an id within a stream's dedupe
//! window, so an id says what must not be repeated. A job's ids begin with its tenant, so that no tenant meets another's.

use crate::{JobId, JobKey, Name, record::Source, subject::Stage};

/// A job's message to its first stage, which a request brought. A job whose record was lost may be admitted by another request,
/// perhaps before the broker has forgotten the first one's message; that is no repetition.
pub fn admitted(tenant: &Name, job: &JobId, by: Source) -> String {
    format!("{tenant}/{job}/{}/{}-{}", Stage::Ingest, by.sequence, by.stored_ms)
}

/// A job's message to its next stage from the one that worked on the message of this `sequence`. A job that lost its message
/// passes a stage again with another one; that is no repetition.
pub fn successor(tenant: &Name, job: &JobId, stage: Stage, sequence: u64) -> String {
    format!("{tenant}/{job}/{stage}/{sequence}")
}

/// The message of a job that begins again, whose record had this revision.
pub fn again(tenant: &Name, job: &JobId, revision: u64) -> String {
    format!("{tenant}/{job}/again/{revision}")
}

/// A dead letter of a message that belongs to no known job.
pub fn dead_letter(id: &str) -> String {
    format!("dead/{id}")
}

/// The message of a dead letter that goes back to its queue, by the letter's sequence.
pub fn retried(sequence: u64) -> String {
    format!("retry/{sequence}")
}

/// A gateway's task for a tenant, by an `id` among the tasks of that tenant.
pub fn task(tenant: &Name, id: &str) -> String {
    format!("{tenant}/{id}")
}

/// The id among its tenant's tasks of a batch whose task was lost, after the batch's last run.
pub fn batch_again(batch: &JobId, run: Option<&str>) -> String {
    format!("{batch}/after/{}", run.unwrap_or("none"))
}

/// The job of a message in a stage's queue; nothing for an id of another kind.
pub fn parse_job(id: &str) -> Option<JobKey> {
    let mut parts = id.splitn(3, '/');
    let key = JobKey { tenant: Name::new(parts.next()?).ok()?, job: JobId::new(parts.next()?).ok()? };
    parts.next().map(|_| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_spelled_so() {
        let (tenant, job) = (Name::new("acme").unwrap(), JobId::new("report-7").unwrap());
        let source = Source { sequence: 3, stored_ms: 1_700_000_000_000 };
        assert_eq!(admitted(&tenant, &job, source), "acme/report-7/ingest/3-1700000000000");
        assert_eq!(successor(&tenant, &job, Stage::Prefill, 12), "acme/report-7/prefill/12");
        assert_eq!(again(&tenant, &job, 9), "acme/report-7/again/9");
        assert_eq!(dead_letter("prefill.1234"), "dead/prefill.1234");
        assert_eq!(retried(12), "retry/12");
        assert_eq!(task(&tenant, "evt_report-7"), "acme/evt_report-7");
        assert_eq!(batch_again(&job, None), "report-7/after/none");
        assert_eq!(batch_again(&job, Some("r1")), "report-7/after/r1");
    }

    #[test]
    fn the_job_of_an_id_is_read_back() {
        let job = |id: &str| parse_job(id).map(|key| key.to_string());
        assert_eq!(job("acme/report-7/prefill/12").as_deref(), Some("acme/report-7"));
        assert_eq!(job("acme/report-7/ingest/3-1700000000000").as_deref(), Some("acme/report-7"));
        for other in ["acme/report-7", "report-7", "retry/12", "acme/a.b/ingest"] {
            assert_eq!(job(other), None, "{other}");
        }
    }
}

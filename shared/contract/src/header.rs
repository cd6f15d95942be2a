//! The headers of Baton's messages. Requests may have any others, which go no further.

/// Which job a request is, for bodies that may be unreadable; which job a message in the backlog is of.
pub const JOB_ID: &str = "Baton-Job-Id";
/// The job's record for the next stage: its revision, a space, and the record as JSON.
pub const RECORD: &str = "Baton-Record";
/// The stage whose queue a message in the backlog goes to.
pub const STAGE: &str = "Baton-Stage";
/// When a job in the backlog expires, in milliseconds since 1970; left out for one that does not.
pub const DEADLINE: &str = "Baton-Deadline";
/// The subject that a kept message or a dead letter's message belongs to.
pub const SUBJECT: &str = "Baton-Subject";

/// A dead letter's error code.
pub const CODE: &str = "Baton-Code";
/// A dead letter's error message.
pub const ERROR: &str = "Baton-Error";
/// How often a dead letter's message was worked on.
pub const ATTEMPTS: &str = "Baton-Attempts";
/// The worker that gave a dead letter's message up.
pub const WORKER: &str = "Baton-Worker";
/// When the broker stored a dead letter's message, in milliseconds since 1970.
pub const QUEUED: &str = "Baton-Queued-Ms";
/// The size of a message that was too large for its dead letter.
pub const LEFT_OUT: &str = "Baton-Left-Out-Bytes";

/// W3C trace context: which trace and span a message continues.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace context: what vendors add.
pub const TRACESTATE: &str = "tracestate";

/// The id of a message (see [`crate::message_id`]), by which the broker recognizes a repetition.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// What the last message of a subject must be, by its sequence, for this one to be stored.
pub const EXPECTED_LAST: &str = "Nats-Expected-Last-Subject-Sequence";
/// The size of a message whose body the broker leaves out.
pub const MESSAGE_SIZE: &str = "Nats-Msg-Size";
/// What went wrong, in the answer of a NATS micro-service endpoint.
pub const SERVICE_ERROR: &str = "Nats-Service-Error";
/// Set on what is no value in a key-value bucket: a removal or a purge.
pub const KEY_OPERATION: &str = "KV-Operation";
/// The beginning of all headers that the broker gives a meaning.
pub const OF_BROKER: &str = "Nats-";

#[cfg(test)]
mod tests {
    use super::*;

    /// Releases and clients in other languages rely on each of them.
    #[test]
    fn headers_are_spelled_so() {
        let of_a_job = [JOB_ID, RECORD, STAGE, DEADLINE, SUBJECT];
        assert_eq!(of_a_job, ["Baton-Job-Id", "Baton-Record", "Baton-Stage", "Baton-Deadline", "Baton-Subject"]);
        assert_eq!([CODE, ERROR, ATTEMPTS], ["Baton-Code", "Baton-Error", "Baton-Attempts"]);
        assert_eq!([WORKER, QUEUED, LEFT_OUT], ["Baton-Worker", "Baton-Queued-Ms", "Baton-Left-Out-Bytes"]);
        assert_eq!([TRACEPARENT, TRACESTATE], ["traceparent", "tracestate"]);
        assert_eq!([MESSAGE_ID, EXPECTED_LAST], ["Nats-Msg-Id", "Nats-Expected-Last-Subject-Sequence"]);
        assert_eq!([MESSAGE_SIZE, SERVICE_ERROR], ["Nats-Msg-Size", "Nats-Service-Error"]);
        assert_eq!([KEY_OPERATION, OF_BROKER], ["KV-Operation", "Nats-"]);
    }
}

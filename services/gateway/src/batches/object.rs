//! A batch as OpenAI's clients read it.

use baton_contract::{batch::Batch, batch::Status};
use serde_json::{Value, json};

pub(super) fn of(batch: &Batch) -> Value {
    let order = &batch.order;
    let errors = match batch.problems.is_empty() {
        true => Value::Null,
        false => json!({ "object": "list", "data": batch.problems }),
    };
    let usage = batch.usage;
    json!({
        "id": order.id,
        "object": "batch",
        "endpoint": order.endpoint,
        "errors": errors,
        "input_file_id": order.input_file_id,
        "completion_window": order.completion_window,
        "status": batch.status.as_str(),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.since(Status::InProgress),
        "expires_at": batch.expires_at,
        "finalizing_at": batch.since(Status::Finalizing),
        "completed_at": batch.since(Status::Completed),
        "failed_at": batch.since(Status::Failed),
        "expired_at": batch.since(Status::Expired),
        "cancelling_at": batch.since(Status::Cancelling),
        "cancelled_at": batch.since(Status::Cancelled),
        "request_counts": batch.counts,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": { "cached_tokens": usage.cached_tokens },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "metadata": order.metadata,
    })
}

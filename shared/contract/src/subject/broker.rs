//! Subjects and streams of the broker's own: JetStream's API, its key-value buckets, micro-services.

/// The stream below a key-value bucket.
pub fn bucket_stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// What the subjects of a bucket's keys begin with.
pub fn bucket_prefix(bucket: &str) -> String {
    format!("$KV.{bucket}.")
}

/// All keys of a bucket.
pub fn bucket_subjects(bucket: &str) -> String {
    format!("$KV.{bucket}.>")
}

/// Asks about a stream; below the API's prefix.
pub fn stream_info(stream: &str) -> String {
    format!("STREAM.INFO.{stream}")
}

/// Asks about a consumer; below the API's prefix.
pub fn consumer_info(stream: &str, consumer: &str) -> String {
    format!("CONSUMER.INFO.{stream}.{consumer}")
}

/// Asks for a message; below the API's prefix.
pub fn message_get(stream: &str) -> String {
    format!("STREAM.MSG.GET.{stream}")
}

/// Removes a message; below the API's prefix.
pub fn message_delete(stream: &str) -> String {
    format!("STREAM.MSG.DELETE.{stream}")
}

/// Asks a consumer for its next messages.
pub fn next_message(stream: &str, consumer: &str) -> String {
    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}")
}

/// Asks any of a stream's servers for messages.
pub fn direct_get(stream: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// Asks whether a micro-service runs anywhere.
pub fn ping(service: &str) -> String {
    format!("$SRV.PING.{service}")
}

//! The probe against a real server that ignores create-only puts. (Those that honour them pass it in `conformance.rs`.)

use baton_storage::store;

use crate::rclone;

/// rclone's S3 server takes a second create-only put as it takes the first.
#[tokio::test]
async fn rclones_server_fails_the_probe() {
    let server = rclone::Rclone::start().await;
    let error = server.open().probe_conditional_put().await.unwrap_err();
    assert!(matches!(error, store::Error::Overwrites { .. }), "{error:?}");
}

//! `/openapi.json`: what there is, for programs.

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

pub(crate) const TEXT: &str = include_str!("../assets/openapi.json");

pub(crate) async fn serve() -> Response {
    ([(CONTENT_TYPE, "application/json")], TEXT).into_response()
}

//! Errors as clients get them: `application/problem+json` (RFC 9457).

use std::borrow::Cow;

use axum::{
    extract::rejection::{JsonRejection, PathRejection, QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// An error response with a status, a title and, if given, a detail.
///
/// Handlers return it as the error of a `Result`; the rejections of axum's `Json`, `Path` and `Query` turn into it by `?`.
///
/// ```
/// use stoa::{Problem, axum::extract::{Query, rejection::QueryRejection}};
///
/// #[derive(serde::Deserialize)]
/// struct Page { limit: u32 }
///
/// async fn list(page: Result<Query<Page>, QueryRejection>) -> Result<String, Problem> {
///     let Query(page) = page?;
///     if page.limit > 100 {
///         return Err(Problem::bad_request("`limit` is at most 100"));
///     }
///     Ok(format!("{} entries", page.limit))
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    title: Cow<'static, str>,
    detail: Option<Cow<'static, str>>,
}

impl Problem {
    /// A problem titled with the standard words for its status.
    pub fn new(status: StatusCode) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status, title: title.into(), detail: None }
    }

    /// Says what is wrong with this very request, for a person to read.
    pub fn detail(self, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Names the kind of problem, in words that do not change from one request to the next.
    pub fn title(self, title: impl Into<Cow<'static, str>>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// 400: the request makes no sense as it is.
    pub fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST).detail(detail)
    }

    /// 404: there is no such thing.
    pub fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND).detail(detail)
    }

    /// 500: a fault of this service. The error goes to standard error, the client learns nothing of it.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        eprintln!("internal error: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Document<'a> {
            status: u16,
            title: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a str>,
        }
        let document =
            Document { status: self.status.as_u16(), title: &self.title, detail: self.detail.as_deref() };
        // Numbers and strings only: this cannot fail.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let content_type = HeaderValue::from_static("application/problem+json");
        (self.status, [(header::CONTENT_TYPE, content_type)], body).into_response()
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status.as_u16(), self.title)?;
        self.detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
    }
}

impl std::error::Error for Problem {}

macro_rules! from_rejections {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Problem {
            fn from(rejection: $rejection) -> Self {
                Self::new(rejection.status()).detail(rejection.body_text())
            }
        }
    )*};
}

from_rejections!(JsonRejection, PathRejection, QueryRejection);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body_util::BodyExt;

    use super::*;

    fn check(problem: Problem, status: u16, body: &str) {
        let response = problem.into_response();
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let collected = response.into_body().collect().now_or_never().unwrap().unwrap();
        assert_eq!(collected.to_bytes(), body);
    }

    #[test]
    fn a_problem_says_status_title_and_detail() {
        check(
            Problem::not_found("no product `x`"),
            404,
            r#"{"status":404,"title":"Not Found","detail":"no product `x`"}"#,
        );
    }

    #[test]
    fn an_internal_error_is_not_shown_to_the_client() {
        check(
            Problem::internal("password is hunter2"),
            500,
            r#"{"status":500,"title":"Internal Server Error"}"#,
        );
    }
}

//! Why requests fail, and the messages about it.

use std::error::Error as _;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use crate::error::Error;

/// Why a request failed.
pub(super) enum Failure {
    Store(object_store::Error),
    Changed,
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        Failure::Store(error)
    }
}

impl Failure {
    /// `action` is a verb, such as `read`; `timeout` is that of the request.
    pub(super) fn into_error(self, action: &'static str, url: &str, timeout: Duration) -> Error {
        let url = hide_password(url);
        let access = if matches!(action, "write" | "remove") { "write to" } else { "read" };
        let credentials = match url.split(':').next() {
            Some("s3") => format!(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may {access} it \
                 (AWS_SKIP_SIGNATURE=true where no account is needed)"
            ),
            Some("gs") => {
                format!(
                    "set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may {access} it"
                )
            }
            _ => "the server must give it to anyone who asks".to_owned(),
        };
        use object_store::Error as E;
        let what = match &self {
            Failure::Changed => "it has changed since it was opened; start again".to_owned(),
            Failure::Store(E::NotFound { .. }) => "not found; check the URL".to_owned(),
            Failure::Store(E::PermissionDenied { .. } | E::Unauthenticated { .. }) => {
                format!("access denied; {credentials}")
            }
            Failure::Store(E::NotSupported { .. }) => {
                "the server doesn't answer requests for parts of a file; serve it by one that does".to_owned()
            }
            Failure::Store(error) => {
                let text = error.to_string();
                let status = text.split_once("status code: ").and_then(|(_, rest)| rest.split(':').next());
                let kind = find_http_error(error).map(HttpError::kind);
                if text.contains("169.254.169.254") || text.contains("metadata.google.internal") {
                    format!("no credentials; {credentials}")
                } else if status.is_some_and(|status| status.starts_with("401") || status.starts_with("403"))
                {
                    format!("access denied; {credentials}")
                } else if let Some(status) = status {
                    format!("the server answers {status}; check the URL, or try again later")
                } else if kind == Some(HttpErrorKind::Connect) {
                    "no connection; check the host, the port and the network".to_owned()
                } else if kind.is_some() || text.contains("no answer from") {
                    format!("no whole answer in {:?}; check the network, or allow more time", timeout)
                } else {
                    text.lines().next().unwrap_or_default().chars().take(200).collect()
                }
            }
        };
        Error::Store { action, url, what }
    }
}

/// The transport error in the chain of causes, if there is one.
fn find_http_error(error: &object_store::Error) -> Option<&HttpError> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Whether an answer began and broke off.
pub(super) fn is_truncated(error: &object_store::Error) -> bool {
    use HttpErrorKind::{Decode, Interrupted, Timeout, Unknown};
    find_http_error(error)
        .is_some_and(|error| matches!(error.kind(), Decode | Interrupted | Timeout | Unknown))
}

/// The URL without its password, for messages.
pub(super) fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}/{path}"),
        None => url.to_owned(),
    }
}

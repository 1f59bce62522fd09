//! Clients of stores, from the variables of the environment.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

/// A client of the bucket or web server `host`. It sends a request that fails again until half of `timeout` has passed.
pub(super) fn connect(
    scheme: &str,
    host: &str,
    timeout: Duration,
) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: timeout / 8, ..BackoffConfig::default() },
        max_retries: 10,
        retry_timeout: timeout / 2, // so that the message has the last failure, not the time limit
    };
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
    let client = [
        (ClientConfigKey::Timeout, milliseconds(timeout)),
        (ClientConfigKey::ReadTimeout, milliseconds(timeout / 4)),
    ];
    let url = format!("{scheme}://{host}");
    match scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env().with_bucket_name(host).with_retry(retry);
            for (key, value) in client {
                builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
                .iter()
                .find_map(|key| builder.get_config_value(key));
            if endpoint.is_some_and(|endpoint| is_loopback_http(&endpoint)) {
                builder = builder.with_allow_http(true);
            }
            builder.build().map(|store| Arc::new(store) as _)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(host).with_retry(retry);
            for (key, value) in client {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
            if endpoint.is_some_and(|endpoint| is_loopback_http(&endpoint)) {
                builder = builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
            }
            builder.build().map(|store| Arc::new(store) as _)
        }
        _ => {
            let plain = (scheme == "http").to_string();
            // Plain HTTP needs no certificates; a small machine may have none.
            let client = client.into_iter().chain([
                (ClientConfigKey::AllowHttp, plain.clone()),
                (ClientConfigKey::NoSystemCertificates, plain),
            ]);
            let builder = HttpBuilder::new().with_url(&url).with_retry(retry);
            let builder = client.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            builder.build().map(|store| Arc::new(store) as _)
        }
    }
}

/// Whether an endpoint is plain HTTP on this machine, which nobody else can read.
fn is_loopback_http(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host == "[::1]"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_read_without_tls() {
        for loopback in ["http://127.0.0.1:9000", "http://localhost/x", "http://[::1]:80", "http://127.1.2.3"]
        {
            assert!(is_loopback_http(loopback), "{loopback}");
        }
        for other in
            ["https://127.0.0.1", "http://10.0.0.1:9000", "http://localhost.evil.org", "http://[::2]:80"]
        {
            assert!(!is_loopback_http(other), "{other}");
        }
    }
}

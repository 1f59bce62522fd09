//! Servers on loopback for the tests of stores: files over HTTP, and S3's protocol, by the libraries that serve
//! them elsewhere. They can be told to misbehave as servers do.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part")]

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::{HttpService, Service, service_fn};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tower_http::services::ServeDir;

/// A server; it is gone when this is dropped.
pub struct Server {
    pub address: String,
    pub behaviour: Arc<Behaviour>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Faults of a server (S3's has only `delay`), and the requests that it has received.
#[derive(Default)]
pub struct Behaviour {
    /// Next requests that are answered by 503.
    pub busy: AtomicUsize,
    /// Next answers that break off half way.
    pub torn: AtomicUsize,
    /// Milliseconds before each answer.
    pub delay: AtomicU64,
    /// Whether it takes no notice of ranges, as simple servers don't.
    pub whole_files: bool,
    /// Method, path and range of each request.
    pub requests: Mutex<Vec<String>>,
}

impl Behaviour {
    /// Requests so far whose description contains `part`.
    pub fn asked(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn serve<S, B>(behaviour: Behaviour, service: impl FnOnce(Arc<Behaviour>) -> S) -> Server
where
    S: HttpService<Incoming, ResBody = B> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    B::Data: Send,
{
    let behaviour = Arc::new(behaviour);
    let service = service(behaviour.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection);
        }
    });
    Server { address, behaviour, runtime: Some(runtime) }
}

/// Serves the files in `folder`, in answer to ranges too.
pub fn files(folder: &Path, behaviour: Behaviour) -> Server {
    let folder = folder.to_owned();
    serve(behaviour, move |behaviour| {
        service_fn(move |request| answer(ServeDir::new(&folder), behaviour.clone(), request))
    })
}

/// Serves the folders in `root` as S3 buckets, to whoever signs with these keys.
pub fn s3(root: &Path, key: &str, secret: &str) -> Server {
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single(key, secret));
    let service = builder.build();
    serve(Behaviour::default(), |behaviour| {
        service_fn(move |request: Request<Incoming>| {
            let delay = Duration::from_millis(behaviour.delay.load(Ordering::Relaxed));
            let answer = Service::call(&service, request);
            async move {
                tokio::time::sleep(delay).await;
                answer.await
            }
        })
    })
}

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

async fn answer(
    mut files: ServeDir,
    behaviour: Arc<Behaviour>,
    mut request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let range = request.headers().get(header::RANGE).map_or("", |range| range.to_str().unwrap_or_default());
    let asked = format!("{} {} {range}", request.method(), request.uri().path());
    behaviour.requests.lock().unwrap().push(asked);
    tokio::time::sleep(Duration::from_millis(behaviour.delay.load(Ordering::Relaxed))).await;
    if take_one(&behaviour.busy) {
        let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
        let mut busy = Response::new(body);
        *busy.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(busy);
    }
    if behaviour.whole_files {
        request.headers_mut().remove(header::RANGE);
    }
    let get = request.method() == Method::GET;
    let mut response = files.try_call(request).await.unwrap().map(BodyExt::boxed_unsync);
    // Google's client asks for an ETag; the time of the last change will do.
    if let Some(modified) = response.headers().get(header::LAST_MODIFIED).cloned() {
        response.headers_mut().insert(header::ETAG, modified);
    }
    if !(get && response.status().is_success() && take_one(&behaviour.torn)) {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let whole = body.collect().await.unwrap().to_bytes();
    Ok(Response::from_parts(parts, Torn(Some(whole.slice(..whole.len() / 2))).boxed_unsync()))
}

/// Whether the counter wasn't at zero yet.
fn take_one(counter: &AtomicUsize) -> bool {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// A body that ends in an error after its first part.
struct Torn(Option<Bytes>);

impl Body for Torn {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let part = self.0.take().map(Frame::data);
        Poll::Ready(Some(part.ok_or_else(|| io::Error::other("torn"))))
    }
}

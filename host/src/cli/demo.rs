//! The command `plugway demo`: the stock plugins in front of an origin that shows the requests it receives.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::config::load;
use crate::config::references::Environment;
use crate::exchange::response_body::ResponseBody;
use crate::server::{self, Control};
use crate::telemetry::output;

/// Serves the demo at an address.
pub fn run(control: Control, listen: &str, cache: Option<&Path>) -> anyhow::Result<()> {
    let origins = (0..3).map(|_| origin()).collect::<io::Result<Vec<_>>>()?;
    let text = format!(
        r#"[[listener]]
address = {listen:?}

[upstream.app]                  # shared out by the stock plugin `balance`
endpoints = {origins:?}

[[route]]
upstream = "app"
plugins = ["forwarded"]

[[route]]
name = "cached"
path = "/cached"
upstream = "app"
plugins = ["cache", "forwarded"]    # the stock plugin `cache`

[plugin.forwarded]              # the stock plugin `headers`
use = "headers"
[plugin.forwarded.config.request.set]
Host              = "{{host}}"
X-Real-IP         = "{{client.ip}}"
X-Forwarded-For   = "{{forwarded-for}}"
X-Forwarded-Proto = "{{scheme}}"
[plugin.forwarded.config.response.set]
X-Served-By       = "{{endpoint}}"
"#
    );
    output::print(&format!(
        "{text}\n# Try, in another terminal:\n\
         #   curl -i http://{listen}/hello    # headers: what the origin got, and X-Served-By\n\
         #   curl -s http://{listen}/         # balance: three origins take turns\n\
         #   curl -i http://{listen}/cached   # cache: Age and Cache-Status of the second time, fresh for 10 s\n\n"
    ))?;
    server::run(control, move || load::parse("demo manifest", text.clone(), &Environment::default()), cache)
}

/// Starts an origin on a free port and returns its address.
fn origin() -> io::Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.to_string();
    let name = address.clone();
    std::thread::Builder::new().name("demo-origin".into()).spawn(move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let name = name.clone();
                let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(echo(&name, &request))));
                tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        })
    })?;
    Ok(address)
}

fn echo(name: &str, request: &Request<Incoming>) -> Response<ResponseBody> {
    let mut text = format!("origin {name} got\n\n{} {}\n", request.method(), request.uri());
    for (field, value) in request.headers() {
        let _ = writeln!(text, "{field}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    let mut response = Response::new(ResponseBody::Full(text.into()));
    let fresh = HeaderValue::from_static("max-age=10, stale-while-revalidate=60");
    response.headers_mut().insert(header::CACHE_CONTROL, fresh);
    response
}

//! Requests that are made and never sent, by the interfaces of WASI: the host keeps what is in them.

/// Makes sixty requests with much in them and drops none of them; returns how many the host has accepted.
#[cfg(target_family = "wasm")]
pub fn hoard(what: &str) -> usize {
    let made = match what {
        "authority" => authority,
        "method" => method,
        "content" => content,
        "bodies" => bodies,
        "fields" => fields,
        "early" => early,
        _ => target,
    };
    (0..60).filter(|_| made().is_some()).count()
}

/// Begins a request to a path of the upstream `auth`, which the plugin leaves to later calls.
#[cfg(target_family = "wasm")]
pub fn begin(path: &str) {
    wasm::begin(path);
}

#[cfg(not(target_family = "wasm"))]
pub fn begin(_: &str) {}

/// Makes nothing: only components have an interface to the host.
#[cfg(not(target_family = "wasm"))]
pub fn hoard(_: &str) -> usize {
    0
}

#[cfg(target_family = "wasm")]
use wasm::{authority, bodies, content, early, fields, method, target};

#[cfg(target_family = "wasm")]
mod wasm {
    use std::cell::RefCell;

    use wasip2::http::outgoing_handler::handle;
    use wasip2::http::types::{Fields, FutureIncomingResponse, Method, OutgoingRequest, Scheme};

    const MUCH: usize = 1 << 20;

    thread_local! {
        static BEGUN: RefCell<Option<FutureIncomingResponse>> = const { RefCell::new(None) };
    }

    fn request(path: &str) -> Option<OutgoingRequest> {
        let request = OutgoingRequest::new(Fields::new());
        request.set_scheme(Some(&Scheme::Http)).ok()?;
        request.set_authority(Some("auth")).ok()?;
        request.set_path_with_query(Some(path)).ok()?;
        Some(request)
    }

    pub fn begin(path: &str) {
        BEGUN.set(request(path).and_then(|request| handle(request, None).ok()));
    }

    /// Waits for the response to the request that was begun early.
    pub fn early() -> Option<()> {
        BEGUN.with_borrow(|begun| {
            let begun = begun.as_ref()?;
            begun.subscribe().block();
            begun.get()?.ok()?.ok().map(drop)
        })
    }

    fn forget<T>(kept: T) {
        std::mem::forget(kept);
    }

    pub fn authority() -> Option<()> {
        let request = OutgoingRequest::new(Fields::new());
        let set = request.set_authority(Some(&"a".repeat(MUCH)));
        forget(request);
        set.ok()
    }

    pub fn method() -> Option<()> {
        let request = OutgoingRequest::new(Fields::new());
        let set = request.set_method(&Method::Other("A".repeat(MUCH)));
        forget(request);
        set.ok()
    }

    pub fn target() -> Option<()> {
        let request = OutgoingRequest::new(Fields::new());
        let set = request.set_path_with_query(Some(&format!("/{}", "a".repeat(60_000))));
        forget(request);
        set.ok()
    }

    /// Writes content of a request that is not sent.
    pub fn bodies() -> Option<()> {
        let request = OutgoingRequest::new(Fields::new());
        let body = request.body().ok()?;
        let stream = body.write().ok()?;
        let written = (0..60).take_while(|_| stream.check_write().is_ok_and(|room| room > 0));
        let written = written.filter(|_| stream.write(&[b'x'; 4096]).is_ok()).count();
        forget((request, body, stream));
        (written > 0).then_some(())
    }

    /// Makes four heads with many fields.
    pub fn fields() -> Option<()> {
        let values: Vec<(String, Vec<u8>)> = (0..1500).map(|_| ("x".into(), Vec::new())).collect();
        for _ in 0..4 {
            forget(Fields::from_list(&values).ok()?);
        }
        Some(())
    }

    /// Writes content without its end, which the host receives meanwhile.
    pub fn content() -> Option<()> {
        let request = request("/")?;
        let body = request.body().ok()?;
        let stream = body.write().ok()?;
        forget(handle(request, None).ok()?);
        let written = (0..60).all(|_| stream.blocking_write_and_flush(&[b'x'; 4096]).is_ok());
        forget(stream);
        forget(body);
        written.then_some(())
    }
}

//! The interfaces of `wasi:http` that plugins whose hooks may wait can import.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler;
use wasmtime_wasi_http::p2::bindings::http::types::{HostOutgoingRequest as _, Method};
use wasmtime_wasi_http::p2::types::HostOutgoingRequest;
use wasmtime_wasi_http::{RequestOptions, WasiHttpCtxView, WasiHttpView};

use super::host::HostState;
use super::wasi::waits;
use crate::context::bounds;

impl WasiHttpView for HostState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.http.view(&mut self.table)
    }
}

/// Adds the interfaces for outgoing requests. A call that may not wait traps when it sends one. The texts of a request have
/// bounds, because the host keeps those of requests that are never sent.
pub(super) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    let mut handler = linker.instance("wasi:http/outgoing-handler@0.2.12")?;
    handler.func_wrap(
        "handle",
        |mut store: StoreContextMut<'_, HostState>, (request, options): HandleParameters| {
            let state = store.data_mut();
            if !state.cpu.has_turns() {
                state.has_asked = true;
                return Err(waits());
            }
            let handled = outgoing_handler::Host::handle(&mut state.http(), request, options);
            match handled {
                Ok(response) => Ok((Ok(response),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        },
    )?;
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(
        "[method]outgoing-request.set-authority",
        |mut store: StoreContextMut<'_, HostState>,
         (request, authority): (Resource<HostOutgoingRequest>, Option<String>)| {
            if authority.as_ref().is_some_and(|authority| authority.len() > bounds::NAME) {
                return Ok((Err(()),));
            }
            Ok((store.data_mut().http().set_authority(request, authority)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, HostState>, (request, method): (Resource<HostOutgoingRequest>, Method)| {
            if matches!(&method, Method::Other(name) if name.len() > bounds::NAME) {
                return Ok((Err(()),));
            }
            Ok((store.data_mut().http().set_method(request, method)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |mut store: StoreContextMut<'_, HostState>,
         (request, target): (Resource<HostOutgoingRequest>, Option<String>)| {
            if target.as_ref().is_some_and(|target| target.len() > bounds::CALLOUT_TARGET) {
                return Ok((Err(()),));
            }
            Ok((store.data_mut().http().set_path_with_query(request, target)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The parameters of `handle`.
type HandleParameters = (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>);

//! The interfaces of `wasi:http` that plugins whose hooks may wait can import.

use std::any::Any;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, LinkerInstance, Resource};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler;
use wasmtime_wasi_http::p2::bindings::http::types::{Host, HostFields, HostOutgoingRequest as _, Method};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, RequestOptions, WasiHttpCtxView, WasiHttpView};

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
    bound_heads(&mut types)?;
    bound_bodies(&mut types)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Bounds how many heads an instance holds: each may have 64 KiB of fields, which the host keeps in twice as many bytes.
fn bound_heads(types: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    types.func_wrap("[constructor]fields", |mut store: StoreContextMut<'_, HostState>, ()| {
        let state = with_room_for_a_head(&mut store)?;
        Ok((HostFields::new(&mut state.http())?,))
    })?;
    types.func_wrap(
        "[static]fields.from-list",
        |mut store: StoreContextMut<'_, HostState>, (entries,): (Vec<(String, Vec<u8>)>,)| {
            let state = with_room_for_a_head(&mut store)?;
            match HostFields::from_list(&mut state.http(), entries) {
                Ok(fields) => Ok((Ok(fields),)),
                Err(error) => Ok((Err(state.http().convert_header_error(error)?),)),
            }
        },
    )?;
    types.func_wrap(
        "[method]fields.clone",
        |mut store: StoreContextMut<'_, HostState>, (fields,): (Resource<FieldMap>,)| {
            let state = with_room_for_a_head(&mut store)?;
            Ok((HostFields::clone(&mut state.http(), fields)?,))
        },
    )
}

/// Bounds how many bodies an instance begins: the host keeps 128 KiB of each until its request is sent. No request comes to
/// a plugin by `wasi:http`, so that its responses have no bodies.
fn bound_bodies(types: &mut LinkerInstance<'_, HostState>) -> wasmtime::Result<()> {
    types.func_wrap(
        "[method]outgoing-request.body",
        |mut store: StoreContextMut<'_, HostState>, (request,): (Resource<HostOutgoingRequest>,)| {
            let state = store.data_mut();
            let has_body =
                |held: &dyn Any| held.downcast_ref().is_some_and(|held: &HostOutgoingRequest| held.body.is_some());
            let begun = state.table.iter_mut().filter(|held| has_body(&**held)).count();
            if begun >= MAX_BEGUN_BODIES {
                return Ok((Err(()),));
            }
            Ok((state.http().body(request)?,))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-response.body",
        |_: StoreContextMut<'_, HostState>, (_,): (Resource<HostOutgoingResponse>,)| {
            Ok((Err::<Resource<HostOutgoingBody>, ()>(()),))
        },
    )
}

/// Returns the state of an instance that may hold one more head; an error if it holds too many.
fn with_room_for_a_head<'a>(store: &'a mut StoreContextMut<'_, HostState>) -> wasmtime::Result<&'a mut HostState> {
    let state = store.data_mut();
    let is_head = |held: &dyn Any| {
        held.is::<FieldMap>()
            || held.is::<HostOutgoingRequest>()
            || held.is::<HostOutgoingResponse>()
            || held.is::<HostIncomingResponse>()
    };
    let heads = state.table.iter_mut().filter(|held| is_head(&**held)).count();
    if heads >= MAX_HEADS {
        return Err(wasmtime::format_err!(
            "it holds {heads} fields, requests and responses of HTTP; at most {MAX_HEADS} are allowed"
        ));
    }
    Ok(state)
}

/// Fields, requests and responses that an instance may hold: eight for each request that a call may have under way or waiting.
const MAX_HEADS: usize = 64;

/// Requests with content that an instance may hold before it sends them: two for each that a call may have under way or
/// waiting.
const MAX_BEGUN_BODIES: usize = 16;

/// The parameters of `handle`.
type HandleParameters = (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>);

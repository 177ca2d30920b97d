//! WASI, as far as a sandbox without rights may have it: clocks, random numbers, an output that goes to the log. Nothing
//! here waits, unless the hooks of the plugin may, and every call is bounded in size: the clock that ends calls stands
//! still in the host.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTable, ResourceType};
use wasmtime_wasi::p2::bindings::io::{poll, streams};
use wasmtime_wasi::p2::bindings::sync::io::streams::StreamError;
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::host::{HostState, MAX_RESOURCES};
use super::outgoing_http::MAX_WAITING_WRITE;
use crate::context::bounds;

type Written = wasmtime::Result<(Result<(), StreamError>,)>;
type Counted = wasmtime::Result<(Result<u64, StreamError>,)>;
type Read = wasmtime::Result<(Result<Vec<u8>, StreamError>,)>;

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Adds WASI, but replaces what could wait: a plugin that waits would hold up its worker.
pub fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    add_interfaces(linker)?;
    linker.allow_shadowing(true);
    replace_polls(linker)?;
    replace_streams(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Adds WASI for plugins whose calls may wait, and bounds what a call asks for at a time.
pub fn add_waiting_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    use wasmtime_wasi::filesystem::WasiFilesystemView as _;
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(linker)?;
    add_more_interfaces(linker)?;
    filesystem::types::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(linker, HostState::filesystem)?;
    linker.allow_shadowing(true);
    bound_polls(linker)?;
    bound_writes(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Bounds how many things a call waits for at a time, to no more than an instance has. A call that may not wait traps: its
/// thread may have no timers.
fn bound_polls(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut polls = linker.instance("wasi:io/poll@0.2.12")?;
    polls.func_wrap_async("[method]pollable.block", |store, parameters| Box::new(block(store, parameters)))?;
    polls.func_wrap_async("[method]pollable.ready", |store, parameters| Box::new(ready(store, parameters)))?;
    polls.func_wrap_async("poll", |store, parameters| Box::new(poll_list(store, parameters)))
}

async fn block(
    mut store: StoreContextMut<'_, HostState>,
    (pollable,): (Resource<DynPollable>,),
) -> wasmtime::Result<()> {
    poll::HostPollable::block(waiting_table(&mut store)?, pollable).await
}

async fn ready(
    mut store: StoreContextMut<'_, HostState>,
    (pollable,): (Resource<DynPollable>,),
) -> wasmtime::Result<(bool,)> {
    Ok((poll::HostPollable::ready(waiting_table(&mut store)?, pollable).await?,))
}

async fn poll_list(
    mut store: StoreContextMut<'_, HostState>,
    (list,): (Vec<Resource<DynPollable>>,),
) -> wasmtime::Result<(Vec<u32>,)> {
    if list.len() > MAX_RESOURCES {
        let count = list.len();
        return Err(wasmtime::format_err!(
            "it waits for {count} things at a time; at most {MAX_RESOURCES} are allowed"
        ));
    }
    Ok((poll::Host::poll(waiting_table(&mut store)?, list).await?,))
}

/// Returns the resources of a call that may wait; an error if the call may not.
fn waiting_table<'a>(store: &'a mut StoreContextMut<'_, HostState>) -> wasmtime::Result<&'a mut ResourceTable> {
    let state = store.data_mut();
    if state.cpu.has_turns() { Ok(&mut state.table) } else { Err(waits()) }
}

/// Bounds the bytes of a write, whatever the stream would take.
fn bound_writes(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut streams = linker.instance("wasi:io/streams@0.2.12")?;
    streams.func_wrap(
        "[method]output-stream.write",
        |store: StoreContextMut<'_, HostState>, (stream, bytes): WriteParameters| {
            bounded(bytes.len() as u64, MAX_WAITING_WRITE)?;
            write(store, stream, bytes)
        },
    )?;
    streams.func_wrap(
        "[method]output-stream.write-zeroes",
        |store: StoreContextMut<'_, HostState>, (stream, length): (Resource<DynOutputStream>, u64)| {
            bounded(length, MAX_WAITING_WRITE)?;
            write(store, stream, vec![0; length as usize])
        },
    )
}

fn write(
    mut store: StoreContextMut<'_, HostState>,
    stream: Resource<DynOutputStream>,
    bytes: Vec<u8>,
) -> wasmtime::Result<(Result<(), streams::StreamError>,)> {
    let table = &mut store.data_mut().table;
    match streams::HostOutputStream::write(table, stream, bytes) {
        Ok(()) => Ok((Ok(()),)),
        Err(error) => Ok((Err(streams::Host::convert_stream_error(table, error)?),)),
    }
}

fn add_interfaces(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    use wasmtime_wasi::filesystem::WasiFilesystemView as _;
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_sync(linker)?;
    add_more_interfaces(linker)?;
    wasmtime_wasi::p2::bindings::sync::filesystem::types::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(
        linker,
        HostState::filesystem,
    )
}

/// Adds interfaces that never wait.
fn add_more_interfaces(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::WasiCliView as _;
    use wasmtime_wasi::filesystem::WasiFilesystemView as _;
    random::insecure::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    random::insecure_seed::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    cli::exit::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::environment::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_input::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_output::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    filesystem::preopens::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(linker, HostState::filesystem)
}

/// The error of a call that waits and may not.
pub(super) fn waits() -> wasmtime::Error {
    wasmtime::format_err!("it waits, which this call may not")
}

fn replace_polls(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut poll = linker.instance("wasi:io/poll@0.2.12")?;
    poll.func_wrap("[method]pollable.block", |_, (_,): (Resource<DynPollable>,)| -> wasmtime::Result<()> {
        Err(waits())
    })?;
    poll.func_wrap("poll", |_, (_,): (Vec<Resource<DynPollable>>,)| -> wasmtime::Result<(Vec<u32>,)> { Err(waits()) })?;
    poll.func_wrap("[method]pollable.ready", |_, (_,): (Resource<DynPollable>,)| -> wasmtime::Result<(bool,)> {
        Ok((true,))
    })
}

fn replace_streams(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut streams = linker.instance("wasi:io/streams@0.2.12")?;
    // WASI's own destructors enter a runtime, which a thread that has one already can't.
    streams.resource("output-stream", ResourceType::host::<DynOutputStream>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<DynOutputStream>::new_own(rep))?;
        Ok(())
    })?;
    streams.resource("input-stream", ResourceType::host::<DynInputStream>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<DynInputStream>::new_own(rep))?;
        Ok(())
    })?;
    // There is nothing to write to but the log, which takes everything at once.
    streams.func_wrap("[method]output-stream.write", print)?;
    streams.func_wrap("[method]output-stream.blocking-write-and-flush", print)?;
    streams.func_wrap(
        "[method]output-stream.write-zeroes",
        |store: StoreContextMut<'_, HostState>, (stream, length): (Resource<DynOutputStream>, u64)| -> Written {
            writable(length)?;
            print(store, (stream, vec![0; length as usize]))
        },
    )?;
    streams.func_wrap("[method]output-stream.blocking-flush", |_, (_,): (Resource<DynOutputStream>,)| -> Written {
        Ok((Ok(()),))
    })?;
    streams.func_wrap(
        "[method]output-stream.blocking-write-zeroes-and-flush",
        |_, (_, _): (Resource<DynOutputStream>, u64)| -> Written { Err(waits()) },
    )?;
    streams.func_wrap(
        "[method]output-stream.blocking-splice",
        |_, (_, _, _): (Resource<DynOutputStream>, Resource<DynInputStream>, u64)| -> Counted { Err(waits()) },
    )?;
    streams.func_wrap("[method]input-stream.blocking-read", |_, (_, _): (Resource<DynInputStream>, u64)| -> Read {
        Err(waits())
    })?;
    streams.func_wrap("[method]input-stream.blocking-skip", |_, (_, _): (Resource<DynInputStream>, u64)| -> Counted {
        Err(waits())
    })
}

/// The parameters of the interface's functions that write.
type WriteParameters = (Resource<DynOutputStream>, Vec<u8>);

/// Writes to the log. More than WASI allows at a time ends the call.
fn print(mut store: StoreContextMut<'_, HostState>, parameters: WriteParameters) -> Written {
    let (stream, text) = parameters;
    writable(text.len() as u64)?;
    Ok((store.data_mut().table.get_mut(&stream)?.write(text.into()).map_err(|_| StreamError::Closed),))
}

fn writable(length: u64) -> wasmtime::Result<()> {
    bounded(length, bounds::WRITE as u64)
}

fn bounded(length: u64, max: u64) -> wasmtime::Result<()> {
    if length > max {
        return Err(wasmtime::format_err!("it wrote {length} bytes at a time; at most {max} are allowed"));
    }
    Ok(())
}

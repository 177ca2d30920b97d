//! WASI, as far as a sandbox without rights may have it: clocks, random numbers, an output that goes to the log. Nothing
//! here waits, and every call is bounded in size: the clock that ends calls stands still in the host.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sync::io::streams::StreamError;
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::host::HostState;
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

fn add_interfaces(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    use wasmtime_wasi::cli::WasiCliView as _;
    use wasmtime_wasi::filesystem::WasiFilesystemView as _;
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_sync(linker)?;
    random::insecure::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    random::insecure_seed::add_to_linker::<_, wasmtime_wasi::random::WasiRandom>(linker, |state| state.wasi.random())?;
    cli::exit::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::environment::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_input::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_output::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, wasmtime_wasi::cli::WasiCli>(linker, HostState::cli)?;
    filesystem::preopens::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(linker, HostState::filesystem)?;
    wasmtime_wasi::p2::bindings::sync::filesystem::types::add_to_linker::<_, wasmtime_wasi::filesystem::WasiFilesystem>(
        linker,
        HostState::filesystem,
    )
}

fn waits() -> wasmtime::Error {
    wasmtime::format_err!("a plugin of this kind may not wait")
}

fn replace_polls(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut poll = linker.instance("wasi:io/poll@0.2.12")?;
    poll.func_wrap(
        "[method]pollable.block",
        |_, (_,): (Resource<wasmtime_wasi::p2::DynPollable>,)| -> wasmtime::Result<()> { Err(waits()) },
    )?;
    poll.func_wrap(
        "poll",
        |_, (_,): (Vec<Resource<wasmtime_wasi::p2::DynPollable>>,)| -> wasmtime::Result<(Vec<u32>,)> { Err(waits()) },
    )?;
    poll.func_wrap(
        "[method]pollable.ready",
        |_, (_,): (Resource<wasmtime_wasi::p2::DynPollable>,)| -> wasmtime::Result<(bool,)> { Ok((true,)) },
    )
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
type PrintParameters = (Resource<DynOutputStream>, Vec<u8>);

/// Writes to the log. More than WASI allows at a time ends the call.
fn print(mut store: StoreContextMut<'_, HostState>, parameters: PrintParameters) -> Written {
    let (stream, text) = parameters;
    writable(text.len() as u64)?;
    Ok((store.data_mut().table.get_mut(&stream)?.write(text.into()).map_err(|_| StreamError::Closed),))
}

fn writable(length: u64) -> wasmtime::Result<()> {
    let max = bounds::WRITE as u64;
    if length > max {
        return Err(wasmtime::format_err!("it wrote {length} bytes at a time; at most {max} are allowed"));
    }
    Ok(())
}

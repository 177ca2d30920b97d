//! The limits that a child sets for itself before it reads anything.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::messages::Setup;

/// Address space besides the memory: each of the engine's places reserves 4 GiB for a linear memory, and guards around it,
/// which cost nothing until they are used.
const RESERVED: u64 = 32 << 30;

/// The descriptors of a child: three pipes, and those that the allocator, the engine and its memory images open.
const DESCRIPTORS: u64 = 64;

/// The priority of a child: it gets a third of a core if serving workers need all cores, and whole cores otherwise.
const NICENESS: i32 = 5;

/// Limits this process, and makes it end with its parent.
pub fn confine(setup: &Setup) -> io::Result<()> {
    end_with(setup.parent)?;
    limit(Resource::Core, 0)?;
    limit_time(setup.cpu_seconds)?;
    // Private memory that can be written to: what is only reserved isn't counted.
    limit(Resource::Data, setup.memory)?;
    limit(Resource::As, setup.memory.saturating_add(RESERVED))?;
    // Images of memories are files without names.
    limit(Resource::Fsize, setup.memory)?;
    limit(Resource::Nofile, DESCRIPTORS)?;
    rustix::process::nice(NICENESS)?;
    Ok(())
}

/// Lowers a limit. A limit that is lower already is not changed.
fn limit(resource: Resource, max: u64) -> io::Result<()> {
    let known = getrlimit(resource);
    let lower = |known: Option<u64>| Some(known.map_or(max, |known| known.min(max)));
    setrlimit(resource, Rlimit { current: lower(known.current), maximum: lower(known.maximum) })?;
    Ok(())
}

/// Limits the CPU time. If the soft limit equals the hard one, the signal is SIGKILL, which does not name the reason.
fn limit_time(seconds: u64) -> io::Result<()> {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let lower = |max: u64| Some(maximum.map_or(max, |known| known.min(max)));
    setrlimit(Resource::Cpu, Rlimit { current: lower(seconds), maximum: lower(seconds + 1) })?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn end_with(parent: u32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before that.
    let has_ended = rustix::process::getppid().is_none_or(|current| current.as_raw_nonzero().get() as u32 != parent);
    if has_ended { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
}

/// Does nothing: without such a signal, a child notices the end of its parent at its next order, or its CPU time ends
/// it.
#[cfg(not(target_os = "linux"))]
fn end_with(_: u32) -> io::Result<()> {
    Ok(())
}

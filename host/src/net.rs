//! Sockets and time, in the forms that tokio and hyper need, and the turns of a worker.

pub mod boxed;
pub mod byte_counter;
pub mod counted_transport;
pub mod deadline;
pub mod happy_eyeballs;
pub mod hyper_io;
pub mod memfd_arena;
mod read_pace;
pub mod tcp;
pub mod turn;
pub mod waiting_bytes;

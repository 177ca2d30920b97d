//! The bindings that wasmtime generates from `wit/`: the imports of the host, and typed calls of each hook.
#![allow(unsafe_code, clippy::all, unused_qualifications, reason = "generated")]

mod imports {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "imports",
        imports: { "plugway:plugin/passwords.verify": async | trappable, default: trappable },
        additional_derives: [PartialEq, Clone],
    });
}

pub use imports::Imports;
pub use imports::plugway::plugin::{endpoints, exchange, log, metrics, passwords, shared, types};

/// The types of `wasi:keyvalue`; its functions are added by `super::key_value`.
pub mod key_value {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue",
        world: "imports",
        imports: { default: trappable },
        with: { "wasi:keyvalue/store.bucket": crate::plugin::key_value_bucket::KeyValueBucket },
    });
}

macro_rules! hook {
    ($module:ident, $world:literal) => {
        hook!($module, $world, "plugway:plugin/types": super::types);
    };
    ($module:ident, $world:literal, $($with:tt)*) => {
        pub mod $module {
            wasmtime::component::bindgen!({
                path: "../wit",
                world: $world,
                ownership: Borrowing { duplicate_if_necessary: false },
                with: { $($with)* },
            });
        }
    };
}

hook!(lifecycle, "lifecycle-hook");
hook!(request_filter, "request-filter-hook");
hook!(response_filter, "response-filter-hook");
hook!(balancer, "balancer-hook");
hook!(cache_policy, "cache-policy-hook",);

hook!(request_body, "request-body-hook");
hook!(response_body, "response-body-hook");
hook!(buffered_request_body, "buffered-request-body-hook");
hook!(buffered_response_body, "buffered-response-body-hook");
hook!(timer, "timer-hook",);

/// Apart, since here records are passed and not only returned.
pub mod observer {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "observer-hook",
        with: { "plugway:plugin/types": super::types },
    });
}

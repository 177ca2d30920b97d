//! The code that `wit-bindgen` generates from `wit/`: the imports once, and one module per hook that a plugin can
//! export.
#![allow(missing_docs, unsafe_code, clippy::all, reason = "generated")]

mod imports {
    wit_bindgen::generate!({
        path: "../wit",
        world: "imports",
        additional_derives: [PartialEq, Clone],
    });
}

pub use imports::plugway::plugin::{endpoints, exchange, log, metrics, passwords, shared, types};

macro_rules! hook {
    ($module:ident, $world:literal) => {
        hook!($module, $world, "plugway:plugin/types@0.1.0": crate::bindings::types);
    };
    ($module:ident, $world:literal, $($with:tt)*) => {
        pub mod $module {
            wit_bindgen::generate!({
                path: "../wit",
                world: $world,
                with: { $($with)* },
                pub_export_macro: true,
                additional_derives: [PartialEq, Clone],
            });
        }
    };
}

hook!(lifecycle, "lifecycle-hook");
hook!(request_filter, "request-filter-hook");
hook!(response_filter, "response-filter-hook");
hook!(request_body, "request-body-hook");
hook!(response_body, "response-body-hook");
hook!(buffered_request_body, "buffered-request-body-hook");
hook!(buffered_response_body, "buffered-response-body-hook");
hook!(balancer, "balancer-hook");
hook!(cache_policy, "cache-policy-hook",);
hook!(observer, "observer-hook");
hook!(timer, "timer-hook",);

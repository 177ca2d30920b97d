//! The macro [`export!`](crate::export), which exports a type that implements the traits as a component.

/// Exports a plugin with the hooks that it implements:
///
/// ```
/// # use plugway_sdk::*;
/// # struct MyFilter;
/// # impl Plugin for MyFilter { type Config = (); fn new(_: (), _: &mut Setup) -> Result<Self, ConfigError> { Ok(MyFilter) } }
/// # impl RequestFilter for MyFilter { fn on_request(&mut self, _: &Values) -> Verdict { Verdict::proceed() } }
/// # impl Timer for MyFilter { fn on_timer(&mut self) {} }
/// export!(MyFilter: RequestFilter, Timer);
/// # fn main() {}
/// ```
///
/// The hooks are `RequestFilter`, `ResponseFilter`, `RequestBody`, `ResponseBody`, `BufferedRequestBody`,
/// `BufferedResponseBody`, `Balancer`, `CachePolicy`, `Observer` and `Timer`. The plugin has the name, version and summary of the crate. Outside wasm the macro expands to
/// a check that the traits are implemented.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($hook:ident),+ $(,)?) => {
        const _: () = {
            fn has_hooks<T: $crate::Plugin $(+ $crate::$hook)+>() {}
            let _ = has_hooks::<$plugin>;
        };

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, reason = "the canonical ABI's exports are raw")]
        mod __plugway {
            use super::*;

            ::std::thread_local! {
                static PLUGIN: ::std::cell::RefCell<Option<$plugin>> = const { ::std::cell::RefCell::new(None) };
            }

            fn with<R>(call: impl FnOnce(&mut $plugin) -> R) -> R {
                PLUGIN.with_borrow_mut(|plugin| call(plugin.as_mut().expect("the host configures before it calls")))
            }

            struct Glue;

            impl $crate::bindings::lifecycle::exports::plugway::plugin::lifecycle::Guest for Glue {
                fn describe() -> $crate::bindings::lifecycle::exports::plugway::plugin::lifecycle::Description {
                    $crate::glue::describe::<$plugin>(
                        env!("CARGO_PKG_NAME"),
                        env!("CARGO_PKG_VERSION"),
                        env!("CARGO_PKG_DESCRIPTION"),
                    )
                }

                fn configure(
                    config: String,
                ) -> Result<
                    $crate::bindings::lifecycle::exports::plugway::plugin::lifecycle::Settings,
                    Vec<$crate::bindings::lifecycle::exports::plugway::plugin::lifecycle::ConfigError>,
                > {
                    let (plugin, settings) = $crate::glue::configure::<$plugin>(&config)?;
                    PLUGIN.set(Some(plugin));
                    Ok(settings)
                }
            }

            $crate::bindings::lifecycle::export!(Glue with_types_in $crate::bindings::lifecycle);
            $($crate::__export_hook!($hook $plugin);)+
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    (RequestFilter $plugin:ty) => {
        impl $crate::bindings::request_filter::exports::plugway::plugin::request_filter::Guest for Glue {
            fn on_request(values: Vec<Option<Vec<u8>>>) -> $crate::bindings::types::Verdict {
                let values = $crate::Values::new(values);
                with(|plugin| $crate::RequestFilter::on_request(plugin, &values)).into_wit()
            }
        }
        $crate::bindings::request_filter::export!(Glue with_types_in $crate::bindings::request_filter);
    };
    (ResponseFilter $plugin:ty) => {
        impl $crate::bindings::response_filter::exports::plugway::plugin::response_filter::Guest for Glue {
            fn on_response(values: Vec<Option<Vec<u8>>>) -> $crate::bindings::types::Verdict {
                let values = $crate::Values::new(values);
                with(|plugin| $crate::ResponseFilter::on_response(plugin, &values)).into_wit()
            }
        }
        $crate::bindings::response_filter::export!(Glue with_types_in $crate::bindings::response_filter);
    };
    (RequestBody $plugin:ty) => {
        $crate::__export_body!(request_body RequestBody $plugin);
    };
    (ResponseBody $plugin:ty) => {
        $crate::__export_body!(response_body ResponseBody $plugin);
    };
    (BufferedRequestBody $plugin:ty) => {
        $crate::__export_buffered_body!(buffered_request_body BufferedRequestBody on_request_body $plugin);
    };
    (BufferedResponseBody $plugin:ty) => {
        $crate::__export_buffered_body!(buffered_response_body BufferedResponseBody on_response_body $plugin);
    };
    (Balancer $plugin:ty) => {
        impl $crate::bindings::balancer::exports::plugway::plugin::balancer::Guest for Glue {
            fn endpoints_changed(endpoints: Vec<$crate::Endpoint>) -> Vec<Vec<$crate::Edit>> {
                let mut plans = $crate::ResponseEdits::default();
                with(|plugin| $crate::Balancer::endpoints_changed(plugin, endpoints, &mut plans));
                plans.into_wit()
            }
            fn pick(values: Vec<Option<Vec<u8>>>, key: Option<u64>, attempt: u32) -> Option<$crate::Choice> {
                let values = $crate::Values::new(values).with_key(key);
                let tried = if attempt == 0 { Vec::new() } else { $crate::bindings::endpoints::tried() };
                let endpoints = $crate::Endpoints::default();
                with(|plugin| $crate::Balancer::pick(plugin, &values, &tried, &endpoints))
            }
        }
        $crate::bindings::balancer::export!(Glue with_types_in $crate::bindings::balancer);
    };
    (CachePolicy $plugin:ty) => {
        impl $crate::bindings::cache_policy::exports::plugway::plugin::cache_policy::Guest for Glue {
            fn on_lookup(values: Vec<Option<Vec<u8>>>) -> $crate::Lookup {
                with(|plugin| $crate::CachePolicy::on_lookup(plugin, &$crate::Values::new(values)))
            }
            fn on_stored(values: Vec<Option<Vec<u8>>>, stored: $crate::StoredResponse) -> $crate::Reuse {
                with(|plugin| $crate::CachePolicy::on_stored(plugin, &$crate::Values::new(values), &stored))
            }
            fn on_fetched(values: Vec<Option<Vec<u8>>>, times: $crate::FetchTimes) -> $crate::StoreDecision {
                with(|plugin| $crate::CachePolicy::on_fetched(plugin, &$crate::Values::new(values), &times))
            }
            fn on_invalidate(values: Vec<Option<Vec<u8>>>) -> Vec<Vec<u8>> {
                with(|plugin| $crate::CachePolicy::on_invalidate(plugin, &$crate::Values::new(values)))
            }
            fn on_upstream_error(
                values: Vec<Option<Vec<u8>>>,
                stored: $crate::StoredResponse,
                status: Option<u16>,
            ) -> bool {
                let values = $crate::Values::new(values);
                with(|plugin| $crate::CachePolicy::on_upstream_error(plugin, &values, &stored, status))
            }
        }
        $crate::bindings::cache_policy::export!(Glue with_types_in $crate::bindings::cache_policy);
    };
    (Observer $plugin:ty) => {
        impl $crate::bindings::observer::exports::plugway::plugin::observer::Guest for Glue {
            fn on_end(values: Vec<Option<Vec<u8>>>, summary: $crate::Summary) {
                with(|plugin| $crate::Observer::on_end(plugin, &$crate::Values::new(values), &summary));
            }
        }
        $crate::bindings::observer::export!(Glue with_types_in $crate::bindings::observer);
    };
    (Timer $plugin:ty) => {
        impl $crate::bindings::timer::exports::plugway::plugin::timer::Guest for Glue {
            fn on_timer() {
                with(|plugin| $crate::Timer::on_timer(plugin));
            }
        }
        $crate::bindings::timer::export!(Glue with_types_in $crate::bindings::timer);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_body {
    ($module:ident $hook:ident $plugin:ty) => {
        mod $module {
            use super::*;

            pub struct Transform(::std::cell::RefCell<<$plugin as $crate::$hook>::Body>);

            impl $crate::bindings::$module::exports::plugway::plugin::$module::GuestTransform for Transform {
                fn new(values: Vec<Option<Vec<u8>>>) -> Self {
                    let values = $crate::Values::new(values);
                    Transform(::std::cell::RefCell::new(with(|plugin| $crate::$hook::$module(plugin, &values))))
                }
                fn push(&self, chunk: Vec<u8>) -> Result<Vec<u8>, String> {
                    $crate::BodyFilter::push(&mut *self.0.borrow_mut(), chunk)
                }
                fn finish(&self) -> Result<Vec<u8>, String> {
                    $crate::BodyFilter::finish(&mut *self.0.borrow_mut())
                }
                fn trailers(&self, received: Vec<(String, Vec<u8>)>) -> Result<Vec<(String, Vec<u8>)>, String> {
                    $crate::BodyFilter::trailers(&mut *self.0.borrow_mut(), received)
                }
            }
        }
        impl $crate::bindings::$module::exports::plugway::plugin::$module::Guest for Glue {
            type Transform = $module::Transform;
        }
        $crate::bindings::$module::export!(Glue with_types_in $crate::bindings::$module);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_buffered_body {
    ($module:ident $hook:ident $method:ident $plugin:ty) => {
        impl $crate::bindings::$module::exports::plugway::plugin::$module::Guest for Glue {
            fn on_body(values: Vec<Option<Vec<u8>>>, content: Vec<u8>) -> $crate::bindings::types::BodyVerdict {
                let values = $crate::Values::new(values);
                with(|plugin| $crate::$hook::$method(plugin, &values, content)).into_wit()
            }
        }
        $crate::bindings::$module::export!(Glue with_types_in $crate::bindings::$module);
    };
}

/// The functions that the expansion of [`export!`](crate::export) calls.
#[doc(hidden)]
pub mod glue {
    use crate::bindings::lifecycle::exports::plugway::plugin::lifecycle::{self, Description, Settings};
    use crate::{ConfigError, Plugin, Setup};

    pub fn describe<P: Plugin>(name: &str, version: &str, summary: &str) -> Description {
        // The unit configuration is written as an empty table, which its schema, `null`, would reject.
        let schema = Some(schemars::schema_for!(P::Config)).filter(|schema| schema.get("type") != Some(&"null".into()));
        Description {
            name: name.into(),
            version: version.into(),
            summary: summary.into(),
            config_schema: schema.and_then(|schema| serde_json::to_string(&schema).ok()),
        }
    }

    pub fn configure<P: Plugin>(config: &str) -> Result<(P, Settings), Vec<lifecycle::ConfigError>> {
        std::panic::set_hook(Box::new(|panic| crate::log::error(&panic.to_string())));
        let refused = |error: ConfigError| lifecycle::ConfigError { path: error.path, message: error.message };
        let config = parse(config).map_err(|error| vec![refused(error)])?;
        let mut setup = Setup::default();
        let created = P::new(config, &mut setup);
        let plugin = setup.outcome(created).map_err(|errors| errors.into_iter().map(refused).collect::<Vec<_>>())?;
        Ok((plugin, setup.into_settings()))
    }

    /// Parses a configuration. An empty table also stands for the unit configuration.
    pub fn parse<C: serde::de::DeserializeOwned>(config: &str) -> Result<C, ConfigError> {
        serde_json::from_str(config)
            .or_else(|error| if config == "{}" { serde_json::from_str("null").map_err(|_| error) } else { Err(error) })
            .map_err(|error| match serde_json::from_str::<C>("null") {
                Ok(_) => ConfigError::at("", "this plugin takes no configuration"),
                Err(_) => ConfigError::at("", error.to_string()),
            })
    }
}

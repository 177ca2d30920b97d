//! The WebAssembly proposals that plugins may use. Everything else is refused when a component is validated: code in the
//! compiler and the runtime that no toolchain needs is only there to be attacked (RUSTSEC-2026-0570 was in casts of
//! function types, which belong to `gc`).

use wasmtime::{Config, WasmFeatures};

/// The proposals that stable Rust, wasi-sdk, Zig, TinyGo, componentize-js and componentize-py emit.
const ALLOWED: [WasmFeatures; 12] = [
    // LLVM's baseline for `wasm32` since version 20 ("lime1"), and with it Rust's, C's, Zig's and TinyGo's.
    WasmFeatures::MUTABLE_GLOBAL,
    WasmFeatures::SATURATING_FLOAT_TO_INT,
    WasmFeatures::SIGN_EXTENSION,
    WasmFeatures::MULTI_VALUE,
    WasmFeatures::EXTENDED_CONST,
    WasmFeatures::BULK_MEMORY_OPT,
    WasmFeatures::CALL_INDIRECT_OVERLONG,
    // Interpreters in components fill tables and memories with it.
    WasmFeatures::BULK_MEMORY,
    // Tables with a number, as linkers write them. Values of the host (`externref`) need `GC_TYPES` and stay off.
    WasmFeatures::REFERENCE_TYPES,
    // Not emitted by default, but `-C target-feature=+simd128` is common; the compiler's part of it is old and well fuzzed.
    WasmFeatures::SIMD,
    // Arithmetic without floating point is for chains that must agree on each bit; plugins compute as they like.
    WasmFeatures::FLOATS,
    // What a plugin is.
    WasmFeatures::COMPONENT_MODEL,
];

/// Sets all proposals of an engine, including those that a later wasmtime adds.
pub fn choose(config: &mut Config) {
    let allowed = ALLOWED.into_iter().collect::<WasmFeatures>();
    config.wasm_features(!allowed, false).wasm_features(allowed, true);
}

#[cfg(test)]
mod tests {
    use wasmtime::Engine;
    use wasmtime::component::Component;

    use super::*;

    fn engine() -> Engine {
        let mut config = Config::new();
        config.concurrency_support(false).epoch_interruption(true);
        choose(&mut config);
        Engine::new(&config).unwrap()
    }

    /// Returns the reason why a component with a core module, or with other items, is rejected.
    fn refusal(engine: &Engine, items: &str) -> Option<String> {
        let bytes = wat::parse_str(format!("(component {items})")).unwrap();
        Component::from_binary(engine, &bytes).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn components_of_toolchains_are_accepted() {
        let engine = engine();
        for module in [
            "(func (param i32) (result i32 i32) local.get 0 local.get 0)",
            "(global (mut i32) (i32.const 0))",
            "(func (drop (i32.extend8_s (i32.const 0))) (drop (i32.trunc_sat_f32_s (f32.const 1))))",
            "(memory 1) (func (memory.copy (i32.const 0) (i32.const 0) (i32.const 0)))",
            "(table 1 funcref) (table 1 funcref) (func (call_indirect 1 (i32.const 0)))",
            "(func (drop (i32x4.splat (i32.const 0))))",
            "(import \"a\" \"b\" (global $g i32)) (global i32 (i32.add (global.get $g) (i32.const 1)))",
        ] {
            assert_eq!(refusal(&engine, &format!("(core module {module})")), None, "{module}");
        }
    }

    /// A component whose core module has a `try` block, for which the text format has no word any more.
    const LEGACY_EXCEPTION: &[u8] = b"\0asm\x0d\0\x01\0\x01\x1b\
        \0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x07\x01\x05\0\x06\x40\x0b\x0b";

    #[test]
    fn every_other_proposal_is_refused() {
        let engine = engine();
        let refused = Component::from_binary(&engine, LEGACY_EXCEPTION).unwrap_err();
        assert!(format!("{refused:#}").contains("legacy_exceptions feature required"), "{refused:#}");
        for (proposal, module) in [
            ("non-final function types", "(type $a (sub (func)))"),
            ("gc: cast", "(func (param funcref) (drop (ref.test (ref func) (local.get 0))))"),
            ("gc: struct", "(type (struct))"),
            ("gc: array", "(type (array i8))"),
            ("gc: i31", "(func (drop (ref.i31 (i32.const 0))))"),
            ("gc: anyref", "(global anyref (ref.null any))"),
            ("gc types: externref", "(table 1 externref)"),
            ("function references", "(type $t (func)) (func (param (ref null $t)) (call_ref $t (local.get 0)))"),
            ("exceptions", "(tag)"),
            ("memory64", "(memory i64 1)"),
            ("memory64: table", "(table i64 1 funcref)"),
            ("multi-memory", "(memory 1) (memory 1)"),
            ("tail calls", "(func (return_call 0))"),
            ("relaxed simd", "(func (drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0))))"),
            ("threads: shared memory", "(memory 1 1 shared)"),
            ("threads: atomics", "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))"),
            ("shared-everything threads", "(global (shared i32) (i32.const 0))"),
            ("stack switching", "(type $f (func)) (type $c (cont $f))"),
            (
                "wide arithmetic",
                "(func (i64.add128 (i64.const 0) (i64.const 0) (i64.const 0) (i64.const 0)) drop drop)",
            ),
            ("custom page sizes", "(memory 1 (pagesize 1))"),
        ] {
            let refused = refusal(&engine, &format!("(core module {module})"));
            assert!(refused.is_some(), "{proposal} is not refused");
        }
        for (proposal, items) in [
            ("component-model async", "(type (future u8))"),
            ("component-model async function", "(type (func async))"),
            ("error context", "(type error-context) (import \"e\" (type (eq 0)))"),
            ("fixed-length lists", "(type (list u8 4))"),
            ("maps", "(type (map string u8))"),
            ("values", "(import \"v\" (value string))"),
        ] {
            assert!(refusal(&engine, items).is_some(), "{proposal} is not refused");
        }
    }
}

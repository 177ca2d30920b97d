//! The excessive results and calls of the hooks.

use plugway_sdk::bindings::types::{Edit, Response, Verdict};
use plugway_sdk::bindings::{exchange, log, metrics, types};
use wasip2::clocks::monotonic_clock;
use wasip2::random::random;

const HUGE: u64 = 1 << 40;

fn proceed() -> Verdict {
    Verdict::Proceed(Vec::new())
}

fn set(name: &str, value: impl Into<Vec<u8>>) -> Verdict {
    Verdict::Proceed(vec![Edit::SetField((name.into(), value.into()))])
}

fn response(fields: Vec<(String, Vec<u8>)>, body: Vec<u8>) -> Verdict {
    Verdict::Respond(Response { status: 200, fields, body })
}

pub fn verdict(what: &str) -> Verdict {
    match what {
        // Plans, by their indices among the declared plans.
        "expand" => Verdict::Proceed(vec![Edit::Plan(0); 256]),
        "fill-up" => Verdict::Proceed(vec![Edit::Plan(0)]),
        "plan-bytes" => Verdict::Plan(1),
        "template" => Verdict::Plan(2),
        "chained" => Verdict::Plan(3),
        "mixed" => Verdict::Proceed(vec![Edit::SetField(("x-mixed".into(), b"1".to_vec())), Edit::Plan(2)]),
        "plan-notes" => Verdict::Plan(4),
        // Edits.
        "renames" => {
            let rename = |n: usize| Edit::RenameField((format!("x-{}", n % 2), format!("x-{}", (n + 1) % 2)));
            Verdict::Proceed((0..256).map(rename).collect())
        }
        "value" => set("x-a", vec![b'x'; 70_000]),
        "name" => set(&"x".repeat(2_000), "1"),
        "path" => Verdict::Proceed(vec![Edit::SetPath([b"/".to_vec(), vec![b'x'; 70_000]].concat())]),
        "authority" => Verdict::Proceed(vec![Edit::SetAuthority("x".repeat(2_000))]),
        "upstream" => Verdict::Proceed(vec![Edit::SetUpstream("x".repeat(1_000_000))]),
        "method" => Verdict::Proceed(vec![Edit::SetMethod("X".repeat(2_000))]),
        "note" => Verdict::Proceed(vec![Edit::SetNote(("x".repeat(2_000), Vec::new()))]),
        "bytes" => Verdict::Proceed(vec![Edit::AppendField(("x-a".into(), vec![b'x'; 50_000])); 3]),
        // Responses.
        "respond-body" => response(Vec::new(), vec![0; (4 << 20) + 1]),
        // Within the bounds of a single response.
        "respond-long" => response(Vec::new(), vec![0; 600_000]),
        "respond-head" => response(vec![("x-long".into(), vec![b'x'; 60_000]); 3], Vec::new()),
        "respond-fields" => response((0..257).map(|n| (format!("x-{n}"), Vec::new())).collect(), Vec::new()),
        "respond-bytes" => response(vec![("x".into(), vec![b'x'; 60_000]); 5], Vec::new()),
        // Empty names cost the plugin next to nothing, but the host a lot.
        "hoard" => Verdict::Proceed(vec![Edit::RemoveField(String::new()); 400_000]),
        "reason" => Verdict::Fail(format!("reason {}", "x".repeat(1_000_000))),
        _ => asked(what),
    }
}

/// Calls functions of the host. If a call returns an error, the field `x-answer` contains it.
fn asked(what: &str) -> Verdict {
    match what {
        "random" => drop(random::get_random_bytes(HUGE)),
        "insecure" => drop(wasip2::random::insecure::get_insecure_random_bytes(HUGE)),
        "zeroes" => drop(wasip2::cli::stdout::get_stdout().write_zeroes(HUGE)),
        "write" => drop(wasip2::cli::stdout::get_stdout().write(&vec![b'x'; 1 << 20])),
        "blocking-write" => drop(wasip2::cli::stderr::get_stderr().blocking_write_and_flush(&vec![b'x'; 5_000])),
        "log" => log::write(log::Level::Info, &"x".repeat(6 << 20)),
        "pollables" => {
            let pollables: Vec<_> = (0..300).map(|_| monotonic_clock::subscribe_duration(1)).collect();
            return set("x-answer", pollables.len().to_string());
        }
        "some-pollables" => {
            let pollables: Vec<_> = (0..100).map(|_| monotonic_clock::subscribe_duration(1)).collect();
            drop(pollables);
        }
        "streams" => {
            let streams: Vec<_> = (0..300).map(|_| wasip2::cli::stdout::get_stdout()).collect();
            return set("x-answer", streams.len().to_string());
        }
        "poll" => {
            let pollable = monotonic_clock::subscribe_duration(1);
            wasip2::io::poll::poll(&vec![&pollable; 1_000]);
        }
        "splice" => {
            let spliced = wasip2::cli::stdout::get_stdout().splice(&wasip2::cli::stdin::get_stdin(), HUGE);
            return set("x-answer", format!("{}", spliced.is_ok()));
        }
        "read" => drop(wasip2::cli::stdin::get_stdin().read(HUGE)),
        "long-value" => {
            let value = exchange::value(&types::ValueName::Cookie("x".repeat(1 << 20)));
            return set("x-answer", format!("{}", value.is_some()));
        }
        "define" => {
            let defined = metrics::define("late", metrics::Kind::Counter, "");
            return set("x-answer", format!("{defined:?}"));
        }
        "fields-loop" => loop {
            std::hint::black_box(exchange::request_fields());
        },
        "random-loop" => loop {
            std::hint::black_box(random::get_random_bytes(64 << 10));
        },
        "write-loop" => loop {
            let _ = wasip2::cli::stdout::get_stdout().write(&[b'\n'; 4096]);
        },
        "log-loop" => loop {
            log::write(log::Level::Trace, &"x".repeat(1 << 20));
        },
        _ => {}
    }
    proceed()
}

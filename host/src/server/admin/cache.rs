//! Caches on the admin listener: their status and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::Admin;
use super::exposition::{family, line, sum};
use crate::context::CacheOutcome;
use crate::store::Store;
use crate::store::disk::{Disk, DiskCounters};
use crate::telemetry::metrics::{CacheMetrics, REFUSALS};

/// A count of files on disk: its name in both documents, and how to read it.
type DiskFigure = (&'static str, fn(&DiskCounters) -> &AtomicU64);

const DISK: [DiskFigure; 4] = [
    ("read", |figures| &figures.reads),
    ("written", |figures| &figures.writes),
    ("skipped", |figures| &figures.skipped),
    ("failed", |figures| &figures.failures),
];

/// Returns the store and its caches for the status document.
pub fn status(admin: &Admin, store: &Store) -> Value {
    let caches = admin.registry.caches();
    let cache = |(name, figures): (&Arc<str>, &Vec<_>)| {
        let requests = CacheOutcome::ALL.iter().map(|outcome| {
            (outcome.word().into(), sum(figures, |figures: &CacheMetrics| figures.requests(*outcome)).into())
        });
        let requests: serde_json::Map<String, Value> = requests.collect();
        json!({ "plugin": &**name, "requests": requests, "stored": sum(figures, |figures| &figures.stored) })
    };
    let disk = |disk: &Arc<Disk>| {
        let count = |(word, one): &DiskFigure| ((*word).into(), one(&disk.figures).load(Ordering::Relaxed).into());
        let counts: serde_json::Map<String, Value> = DISK.iter().map(count).collect();
        json!({
            "path": disk.folder(),
            "size": disk.capacity(),
            "bytes": disk.bytes(),
            "keys": disk.keys(),
            "found": disk.is_found(),
            "files": counts,
        })
    };
    json!({
        "memory": store.capacity(),
        "bytes": store.bytes(),
        "keys": store.keys(),
        "purged": store.purged.load(Ordering::Relaxed),
        "disk": store.disk().map(disk),
        "caches": caches.iter().map(cache).collect::<Vec<_>>(),
    })
}

/// Writes the metrics of the store and its caches for Prometheus.
pub fn metrics(out: &mut String, admin: &Admin, store: &Store) {
    let caches = admin.registry.caches();
    let requests = "plugway_cache_requests_total";
    family(out, requests, "counter", "Requests at a cache, by what became of them.");
    for (name, figures) in &caches {
        for outcome in CacheOutcome::ALL {
            let count = sum(figures, |figures| figures.requests(outcome)) as f64;
            line(out, requests, &[("plugin", name), ("outcome", outcome.word())], count);
        }
    }
    family(out, "plugway_cache_stored_total", "counter", "Responses that were stored or found to hold.");
    for (name, figures) in &caches {
        line(out, "plugway_cache_stored_total", &[("plugin", name)], sum(figures, |f| &f.stored) as f64);
    }
    family(out, "plugway_cache_refused_total", "counter", "Responses that were not stored, by why.");
    for (name, figures) in &caches {
        for (index, why) in REFUSALS.iter().enumerate() {
            let count = sum(figures, |figures| &figures.refused[index]) as f64;
            line(out, "plugway_cache_refused_total", &[("plugin", name), ("why", why)], count);
        }
    }
    let gauges = [
        ("plugway_cache_bytes", "What stored responses take of the memory.", store.bytes()),
        ("plugway_cache_memory_bytes", "What they may take.", store.capacity()),
        (
            "plugway_cache_keys",
            "Keys with stored responses, or with marks of responses that were not stored.",
            store.keys() as u64,
        ),
    ];
    for (name, help, value) in gauges {
        family(out, name, "gauge", help);
        line(out, name, &[], value as f64);
    }
    family(out, "plugway_cache_purged_total", "counter", "Responses that purges and changes took out or made stale.");
    line(out, "plugway_cache_purged_total", &[], store.purged.load(Ordering::Relaxed) as f64);
    let Some(disk) = store.disk() else { return };
    let gauges = [
        ("plugway_cache_disk_bytes", "What stored responses take of the disk.", disk.bytes()),
        ("plugway_cache_disk_size_bytes", "What they may take.", disk.capacity()),
        ("plugway_cache_disk_keys", "Keys under which something is stored on disk.", disk.keys() as u64),
    ];
    for (name, help, value) in gauges {
        family(out, name, "gauge", help);
        line(out, name, &[], value as f64);
    }
    let files = "plugway_cache_disk_files_total";
    family(out, files, "counter", "Files of stored responses, by what was done with them.");
    for (word, one) in DISK {
        line(out, files, &[("outcome", word)], one(&disk.figures).load(Ordering::Relaxed) as f64);
    }
}

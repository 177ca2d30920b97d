//! The command line: its commands and options.
#![expect(clippy::disallowed_methods, reason = "the command line reads the environment and the date")]

mod certificate;
mod check;
pub(crate) mod demo;
mod hash;
mod schema;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::check::ReportForm;
use crate::cli::hash::PasswordHash;
use crate::config::load;
use crate::config::references::Environment;
use crate::config::serde_messages::hint;
use crate::server::admin::client::{self, RunningProxyAddress};

use crate::loading::{About, Component, ConfigVerdict, LoadFailure, Loader, Stop, confined};
use crate::plugin::access::WantedAccess;
use crate::plugin::configured::ConfiguredPlugin;
use crate::plugin::engine::{Plugin, Runtime};
use crate::plugin::plugin_config::PluginConfig;
use crate::plugin::settings::PluginLimits;
use crate::plugin::version::PluginVersions;
use crate::server::{self, Control};
use crate::system::printable::{one_line, record};
use crate::system::supervise::{self, Task, guard};
use crate::telemetry::library_lines::LibraryLines;
use crate::telemetry::output;
use crate::telemetry::process_log;

/// A reverse proxy whose behaviour is a chain of WebAssembly components.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a manifest. SIGHUP reloads it; SIGTERM stops after all exchanges have ended, a second SIGTERM at once.
    Run {
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
    },
    /// Serves without a manifest: forwards all requests to the given endpoints.
    Proxy {
        /// An endpoint, such as 127.0.0.1:8000; may be given several times.
        #[arg(long, required = true)]
        to: Vec<String>,
        /// The address to listen at.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
        /// Threads that serve; as many as there are cores if not given.
        #[arg(long)]
        workers: Option<usize>,
        /// The longest upload that is received before an endpoint is asked, in chunks too; `false` streams all.
        #[arg(long, default_value = "100 MiB")]
        request_buffer: String,
    },
    /// Validates a manifest, loads and configures its plugins, and reports all errors.
    Check {
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
        /// Prints one JSON document with all errors and warnings, for editors and other programs.
        #[arg(long)]
        json: bool,
    },
    /// Serves the stock plugins in front of built-in origins, and prints commands to try.
    Demo {
        /// The address to listen at.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
    },
    /// Reloads the manifest of a running proxy; prints whether the proxy serves it, or its errors.
    Reload {
        #[command(flatten)]
        proxy: RunningProxy,
    },
    /// Stops sending new requests to an endpoint of a running proxy.
    Drain {
        #[command(flatten)]
        endpoint: EndpointArguments,
        #[command(flatten)]
        proxy: RunningProxy,
    },
    /// Sends requests to a drained endpoint again.
    Undrain {
        #[command(flatten)]
        endpoint: EndpointArguments,
        #[command(flatten)]
        proxy: RunningProxy,
    },
    /// Removes stored responses from a running proxy's cache, or makes them stale; prints their number.
    Purge {
        #[command(flatten)]
        what: PurgeWhat,
        /// Makes responses stale instead of removing them: they are served while they are validated, where the policy allows it.
        #[arg(long)]
        soft: bool,
        #[command(flatten)]
        proxy: RunningProxy,
    },
    /// Makes a certificate for development, which no browser trusts: cert.pem and key.pem.
    Cert {
        /// Signs the certificate by its own key; required, since there is no other kind.
        #[arg(long, required = true)]
        self_signed: bool,
        /// Names and addresses that the certificate is for.
        #[arg(default_values = ["localhost", "127.0.0.1", "::1"])]
        names: Vec<String>,
        /// The folder for the two files.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Prints the hash of a password, for the configuration of a plugin. Reads the password from the terminal without an
    /// echo, or from standard input.
    HashPassword {
        /// Makes a bcrypt hash instead of an argon2id hash, for files that other programs read too.
        #[arg(long)]
        bcrypt: bool,
    },
    /// Prints the hash of a key that clients send, such as sha256:…, for the configuration of a plugin. Reads the key from
    /// the terminal without an echo, or from standard input. The hash is fast: use it for random keys, not for passwords.
    HashKey,
    /// Prints the JSON Schema of manifests, with the configurations of the stock plugins, for editors.
    Schema,
    /// Prints completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Writes the manual pages, one for each command.
    Man {
        /// The folder for the pages.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Shows a plugin: its hooks and their inputs, its imports, and the schema of its configuration.
    Inspect {
        /// A component, or the name of a stock plugin.
        file: PathBuf,
        /// A configuration in JSON; the inputs of the hooks may depend on it.
        #[arg(long, default_value = "{}")]
        config: String,
    },
}

/// The options that select the running proxy of a command.
#[derive(clap::Args)]
struct RunningProxy {
    /// The manifest that the proxy serves, by which its admin socket is found; plugway.toml if neither is given.
    manifest: Option<PathBuf>,
    /// The admin listener: an address such as 127.0.0.1:9145, or unix:/path.
    #[arg(long)]
    admin: Option<String>,
    /// A file with the token that changes over TCP need: the token-file of [admin] in the manifest.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

/// The arguments that name an endpoint.
#[derive(clap::Args)]
struct EndpointArguments {
    /// The name of the upstream.
    upstream: String,
    /// The address of the endpoint, as the status document writes it.
    endpoint: String,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct PurgeWhat {
    /// A URI as clients request it, such as https://example.org/a?b.
    #[arg(long)]
    uri: Option<String>,
    /// The beginning of URIs.
    #[arg(long)]
    prefix: Option<String>,
    /// A tag of responses.
    #[arg(long)]
    tag: Option<String>,
    /// All stored responses.
    #[arg(long)]
    all: bool,
}

/// The default log filter, without `PLUGWAY_LOG`. h2 warns about frames, and so as often as clients like.
const FILTER: &str = "info,h2=error";

/// The default log filter of `check`, whose report is the whole output: a check is no event in the life of a process.
const CHECK_FILTER: &str = "warn,h2=error";

/// The commands that serve. Others leave signals at their defaults: a hang-up of the terminal ends them.
const SERVING: [&str; 3] = ["run", "proxy", "demo"];

/// Runs the command line.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == confined::ARGUMENT) {
        return confined::main();
    }
    // Before all else: an earlier signal would end the process.
    let serves = std::env::args_os().nth(1).is_some_and(|argument| SERVING.iter().any(|command| argument == *command));
    let control = serves.then(Control::start);
    let is_check = std::env::args_os().nth(1).is_some_and(|argument| argument == "check");
    start_log(if is_check { CHECK_FILTER } else { FILTER });
    let command = Cli::parse().command;
    let control = move || control.unwrap_or_else(Control::start);
    let done = guard(Task::Other, || run(command, control)).unwrap_or_else(|panicked| Err(panicked.into()));
    match done {
        Ok(code) => {
            process_log::flush(FLUSH);
            code
        }
        Err(error) => {
            process_log::print(&format!("{error:#}"), FLUSH_ERROR);
            ExitCode::FAILURE
        }
    }
}

/// The maximum time that the end of the process waits for the reader of its log.
const FLUSH: Duration = Duration::from_secs(1);

/// The maximum time for the error that a command ends with, which is all that the command says. On a busy machine, a
/// write to a file may take longer than a second.
const FLUSH_ERROR: Duration = Duration::from_secs(5);

/// Sends log lines and panics to the process log, by a filter if the environment names none.
fn start_log(default: &str) {
    let found = std::env::var_os("PLUGWAY_LOG").filter(|text| !text.is_empty());
    let filter = found.as_deref().map(|text| log_filter(text, default));
    let error = filter.as_ref().and_then(|filter| filter.as_ref().err().cloned());
    let filter = filter.and_then(Result::ok).unwrap_or_else(|| default.into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| process_log::LogRecord);
    // The layer would print the lines that it can't write, and a print to a closed pipe panics.
    log.log_internal_errors(false).finish().with(LibraryLines).init();
    supervise::install();
    process_log::start();
    if let Some(error) = error {
        tracing::warn!(?found, error, default, "invalid PLUGWAY_LOG; the default is used");
    }
}

/// Returns the log filter that a text describes, with a default level for modules that it doesn't name; the error says what is
/// wrong and what is expected.
fn log_filter(text: &OsStr, default: &str) -> Result<EnvFilter, String> {
    let expected = "expected a level such as `debug`, or levels of modules such as `info,plugway::upstream=debug`";
    let text = text.to_str().ok_or_else(|| format!("no text in UTF-8; {expected}"))?;
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let is_level =
        |word: &&str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) || word.parse::<u8>().is_ok();
    // The filter would take any other word for the name of a module, and all others would be silent.
    let is_module = |word: &&str| word.contains(['=', '[']) || word.starts_with("plugway");
    if let Some(word) = words.iter().find(|word| !is_level(word) && !is_module(word)) {
        return Err(format!("unknown level `{word}`; {}{expected}", hint(word, &LEVELS)));
    }
    let default = Some(default).filter(|_| !words.iter().any(is_level));
    let directives: Vec<&str> = default.into_iter().chain(words).collect();
    EnvFilter::try_new(directives.join(",")).map_err(|error| format!("{error}; {expected}"))
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn run(command: Command, control: impl FnOnce() -> std::io::Result<Control>) -> anyhow::Result<ExitCode> {
    let (cache, environment) = (cache_folder(std::env::var_os), std::env::vars_os().collect::<Environment>());
    let loads =
        matches!(command, Command::Run { .. } | Command::Proxy { .. } | Command::Demo { .. } | Command::Check { .. });
    if loads && cache.is_none() {
        warn_of_no_cache_folder();
    }
    let done = match command {
        Command::Check { manifest, json } => {
            let form = if json { ReportForm::Json } else { ReportForm::Text };
            return check::check(&manifest, form, &environment, cache.as_deref());
        }
        Command::Reload { proxy } => order(proxy, "/reload"),
        Command::Purge { what, soft, proxy } => order(proxy, &purge(&what, soft)),
        Command::Drain { endpoint, proxy } => order(proxy, &drain("/drain", &endpoint)),
        Command::Undrain { endpoint, proxy } => order(proxy, &drain("/undrain", &endpoint)),
        Command::Cert { self_signed: _, names, out } => print(&certificate::make(&names, &out)?),
        Command::HashPassword { bcrypt } => {
            let hash = if bcrypt { PasswordHash::Bcrypt } else { PasswordHash::Argon2id };
            print(&(hash::password(hash)? + "\n"))
        }
        Command::HashKey => print(&(hash::key()? + "\n")),
        Command::Schema => print(&schema::text(cache.as_deref())?),
        Command::Completions { shell } => {
            let mut completions = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "plugway", &mut completions);
            print(&String::from_utf8_lossy(&completions))
        }
        Command::Man { out } => clap_mangen::generate_to(Cli::command(), &out)
            .with_context(|| format!("cannot write manual pages to `{}`", out.display())),
        Command::Run { manifest } => {
            server::run(control()?, move || load::load(&manifest, &environment), cache.as_deref())
        }
        Command::Proxy { to, listen, workers, request_buffer } => {
            let text = proxy_manifest(&to, &listen, workers, &request_buffer);
            server::run(control()?, move || load::parse("command line", text.clone(), &environment), cache.as_deref())
        }
        Command::Demo { listen } => demo::run(control()?, &listen, cache.as_deref()),
        Command::Inspect { file, config } => inspect(&file, config),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Prints to standard output; the error of a closed pipe or a full disk ends the command.
fn print(text: &str) -> anyhow::Result<()> {
    output::print(text).context("standard output can't be written")
}

/// Returns the path and query of a purge, as the admin listener parses it.
fn purge(what: &PurgeWhat, soft: bool) -> String {
    let PurgeWhat { uri, prefix, tag, all: _ } = what;
    let named = [("uri", uri), ("prefix", prefix), ("tag", tag)];
    let named = named.into_iter().find_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_ref()?))));
    format!("/purge?{}{}", named.unwrap_or("all".into()), if soft { "&soft" } else { "" })
}

/// Returns the path and query that drain or undrain an endpoint.
fn drain(path: &str, EndpointArguments { upstream, endpoint }: &EndpointArguments) -> String {
    format!("{path}?upstream={}&endpoint={}", encoded(upstream), encoded(endpoint))
}

fn encoded(value: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
}

fn order(RunningProxy { manifest, admin, token_file }: RunningProxy, order: &str) -> anyhow::Result<()> {
    // An address alone identifies the proxy.
    let manifest = manifest.or_else(|| admin.is_none().then(|| "plugway.toml".into()));
    let absolute = |path: PathBuf| {
        let named = path.display().to_string();
        std::path::absolute(&path).and_then(|path| path.metadata().map(|_| path)).with_context(|| {
            format!(
                "cannot find the manifest `{named}`; name the manifest that the proxy serves, or its admin listener, such as \
                 `--admin 127.0.0.1:9145`"
            )
        })
    };
    let manifest = manifest.map(absolute).transpose()?;
    let target = RunningProxyAddress { manifest, address: admin, token_file };
    print(&(client::order(&target, order)? + "\n"))
}

fn inspect(file: &Path, config: String) -> anyhow::Result<()> {
    let in_file = || file.display().to_string();
    let stock = plugway_plugins::STOCK.iter().find(|(name, _)| Path::new(name) == file);
    let opened = stock.map_or_else(|| Component::open(file), |(_, bytes)| Ok(Component::stock(bytes)));
    let known: Vec<&str> = plugway_plugins::STOCK.iter().map(|(name, _)| *name).collect();
    let mut component = opened.with_context(|| {
        let meant = hint(&in_file(), &known);
        let stock = known.join(", ");
        format!(
            "cannot read `{}`; {meant}expected a component such as `plugin.wasm`, or a stock plugin ({stock})",
            in_file()
        )
    })?;
    let runtime = Runtime::start(None)?;
    let seal = runtime.seal(&component.digest);
    let loader = Loader::in_children(Stop::default());
    let said = |error: LoadFailure| anyhow::Error::msg(record(&error.to_string()).into_owned());
    let mut examination = loader.start(&mut component, None, seal.clone()).map_err(said).with_context(in_file)?;
    // The configuration may have failed the plugin by then, and its description must still be shown.
    let sealed = examination.sealed().map_err(said).with_context(in_file)?;
    let verdict = examination.check(&config, PluginLimits::default(), &[]);
    let (_, plugin) =
        runtime.unseal(&seal, &sealed).context("its compiled code can't be used").with_context(in_file)?;
    let plugin = Arc::new(plugin);
    let About { name, version, summary, schema } = &examination.about;
    let shown = |text: &str| one_line(text, usize::MAX).into_owned();
    let mut text = format!(
        "{} {}, {} KiB\n{}\nhooks: {}\n",
        shown(name),
        shown(version),
        component.size()? / 1024,
        shown(summary),
        plugin.hooks().join(", ")
    );
    let is_default = config == "{}";
    match verdict.map_err(|failure| failure.to_string()).and_then(|verdict| needs(verdict, plugin.clone(), config)) {
        Ok(needs) => needs.iter().for_each(|line| text += &format!("  {}\n", shown(line))),
        Err(error) => {
            let (error, which) = (record(&error), if is_default { "an empty" } else { "this" });
            text += &format!(
                "  inputs: unknown, because the plugin rejects {which} configuration: {error}\n  \
                 to see the inputs, pass a configuration that fits the schema below: --config 'JSON'\n"
            );
        }
    }
    text += &format!("imports: {}\n", shown(&plugin.imports().join(", ")));
    text += &grants(&plugin);
    text += &format!("schema: {}\n", record(schema.as_deref().unwrap_or("none")));
    print(&text)
}

/// Returns the grants that a component wants, as lines of a manifest.
fn grants(plugin: &Plugin) -> String {
    let lines: Vec<String> =
        WantedAccess::of(plugin.imports()).iter().map(|wanted| format!("  {}\n", wanted.line())).collect();
    match lines.is_empty() {
        true => "grants: none needed\n".into(),
        false => format!(
            "grants: it does not load without these lines in the manifest\n  [plugin.NAME.grants]\n{}",
            lines.concat()
        ),
    }
}

/// Returns the inputs of a plugin's hooks with a configuration that the plugin has accepted.
fn needs(verdict: ConfigVerdict, plugin: Arc<Plugin>, config: String) -> Result<Vec<String>, String> {
    match verdict {
        ConfigVerdict::Accepted => {}
        ConfigVerdict::Failed(message) => return Err(message),
        ConfigVerdict::Refused { complaints, more } => {
            let messages = complaints.into_iter().map(|complaint| complaint.message);
            let more = (more > 0).then(|| format!("and {more} more"));
            return Err(messages.chain(more).collect::<Vec<_>>().join("; "));
        }
    }
    let versions = PluginVersions::start().map_err(|error| error.to_string())?;
    let config = PluginConfig::for_examination(plugin, config, PluginLimits::default(), Vec::new());
    let configured = ConfiguredPlugin::new(&versions, config);
    let configured = configured.map_err(|error| error.to_string())?;
    if configured.asks {
        return Ok(vec!["inputs: unknown, because the plugin asks a service while it is configured".into()]);
    }
    Ok(configured.describe_inputs().iter().map(|(hook, needs)| format!("{hook}: {needs}")).collect())
}

fn proxy_manifest(endpoints: &[String], listen: &str, workers: Option<usize>, request_buffer: &str) -> String {
    let request_buffer = if request_buffer == "false" { request_buffer.into() } else { format!("{request_buffer:?}") };
    let workers = workers.map(|workers| format!("workers = {workers}\n")).unwrap_or_default();
    format!(
        "{workers}[[listener]]\naddress = {listen:?}\n[upstream.app]\nendpoints = {endpoints:?}\n\
         [[route]]\nupstream = \"app\"\nplugins = [{{ use = \"headers\", config = {{ request = {{ set = {{ \
         X-Real-IP = \"{{client.ip}}\", X-Forwarded-For = \"{{forwarded-for}}\", X-Forwarded-Proto = \"{{scheme}}\" \
         }} }} }} }}]\nrequest-buffer = {request_buffer}\n"
    )
}

/// Returns the folder of compiled plugins: in the user's folder for caches (XDG Base Directory Specification, which
/// ignores relative paths), or the one that systemd names for `CacheDirectory=`.
fn cache_folder(variable: impl Fn(&'static str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let managed = || {
        // systemd lists several folders with colons between them.
        let folders = absolute("CACHE_DIRECTORY")?;
        let first = folders.as_os_str().as_bytes().split(|byte| *byte == b':').next()?;
        Some(PathBuf::from(OsStr::from_bytes(first)))
    };
    let home = || absolute("HOME").map(|home| home.join(".cache/plugway"));
    absolute("XDG_CACHE_HOME").map(|base| base.join("plugway")).or_else(managed).or_else(home)
}

fn warn_of_no_cache_folder() {
    let remedy =
        "set XDG_CACHE_HOME, or HOME, to an absolute path; in a unit of systemd, write `CacheDirectory=plugway`";
    tracing::warn!(remedy, "plugins are compiled at each start: no folder for compiled code");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_code_is_kept_in_the_first_absolute_folder() {
        for (variables, wanted) in [
            (&[("XDG_CACHE_HOME", "/x"), ("CACHE_DIRECTORY", "/c"), ("HOME", "/h")][..], Some("/x/plugway")),
            (&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/h/.cache/plugway")),
            (&[("XDG_CACHE_HOME", ""), ("HOME", "/h")], Some("/h/.cache/plugway")),
            (&[("CACHE_DIRECTORY", "/c/plugway:/c/other"), ("HOME", "/")], Some("/c/plugway")),
            (&[("HOME", "/h")], Some("/h/.cache/plugway")),
            (&[("HOME", "h"), ("XDG_CACHE_HOME", "x")], None),
            (&[], None),
        ] {
            let variable = |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            assert_eq!(cache_folder(variable).as_deref(), wanted.map(Path::new), "{variables:?}");
        }
    }
}

//! The commands.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

use crate::assemble::Assembly;
use crate::config::load;
use crate::demo;
use crate::loading::{About, Component, Failure, Loader, Stop, Verdict, confined};
use crate::plugin::binding::{Binding, Isolation, Limits, OnError};
use crate::plugin::engine::{Plugin, Runtime};
use crate::printable::{one_line, printable};
use crate::serve;
use crate::tls;

/// A reverse proxy whose behaviour is a chain of WebAssembly components.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a manifest. SIGHUP reloads it; SIGTERM stops when all exchanges have ended, a second one at once.
    Run {
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
    },
    /// Serves without a manifest: everything goes to the given endpoints.
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
    },
    /// Says what is wrong with a manifest, loading and configuring all its plugins.
    Check {
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
    },
    /// Serves the stock plugins in front of a built-in origin, and says what to try.
    Demo {
        /// The address to listen at.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
    },
    /// Tells a running proxy to read its manifest again, and waits until it serves it or says what is wrong.
    Reload {
        /// The manifest that it serves: says where its admin listener is.
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
        /// The admin listener, in place of a manifest.
        #[arg(long)]
        admin: Option<String>,
    },
    /// Takes stored responses out of a running proxy's cache, or makes them stale; prints how many that were.
    Purge {
        #[command(flatten)]
        what: PurgeWhat,
        /// They stay, as stale: served while they are validated, where the policy allows that.
        #[arg(long)]
        soft: bool,
        /// The manifest that it serves: says where its admin listener is.
        #[arg(default_value = "plugway.toml")]
        manifest: PathBuf,
        /// The admin listener, in place of a manifest.
        #[arg(long)]
        admin: Option<String>,
    },
    /// Makes a certificate for development, that no browser trusts: cert.pem and key.pem.
    Cert {
        /// The only kind there is: signed by itself.
        #[arg(long, required = true)]
        self_signed: bool,
        /// Names and addresses that it is for.
        #[arg(default_values = ["localhost", "127.0.0.1", "::1"])]
        names: Vec<String>,
        /// Where to put the two files.
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Prints completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Shows what a plugin is: its hooks, what they need, its imports, and the schema of its configuration.
    Inspect {
        /// A component, or the name of a stock plugin.
        file: PathBuf,
        /// A configuration, as JSON: what a plugin needs may depend on it.
        #[arg(long, default_value = "{}")]
        config: String,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct PurgeWhat {
    /// A URI as clients ask for it, such as https://example.org/a?b.
    #[arg(long)]
    uri: Option<String>,
    /// All URIs that begin so.
    #[arg(long)]
    prefix: Option<String>,
    /// All responses with a tag.
    #[arg(long)]
    tag: Option<String>,
    #[arg(long)]
    all: bool,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == confined::ARGUMENT) {
        return confined::main();
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("PLUGWAY_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let cache = cache_folder();
    let done = match Cli::parse().command {
        Command::Reload { manifest, admin } => order(&manifest, admin, "/reload"),
        Command::Purge { what, soft, manifest, admin } => order(&manifest, admin, &purge(&what, soft)),
        Command::Cert { self_signed: _, names, out } => certificate(&names, &out),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "plugway", &mut std::io::stdout());
            Ok(())
        }
        Command::Run { manifest } => serve::run(move || load::load(&manifest), cache.as_deref()),
        Command::Proxy { to, listen, workers } => {
            let text = proxy_manifest(&to, &listen, workers);
            serve::run(move || load::parse("command line", text.clone()), cache.as_deref())
        }
        Command::Check { manifest } => check(&manifest, cache.as_deref()),
        Command::Demo { listen } => demo::run(&listen, cache.as_deref()),
        Command::Inspect { file, config } => inspect(&file, config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The order to purge, as the admin listener takes it.
fn purge(what: &PurgeWhat, soft: bool) -> String {
    let PurgeWhat { uri, prefix, tag, all: _ } = what;
    let named = [("uri", uri), ("prefix", prefix), ("tag", tag)];
    let named = named.into_iter().find_map(|(name, value)| {
        let value = percent_encoding::utf8_percent_encode(value.as_ref()?, percent_encoding::NON_ALPHANUMERIC);
        Some(format!("{name}={value}"))
    });
    format!("/purge?{}{}", named.unwrap_or("all".into()), if soft { "&soft" } else { "" })
}

fn order(manifest: &Path, admin: Option<String>, order: &str) -> anyhow::Result<()> {
    let address = match admin {
        Some(address) => address,
        // Never by guess: what listens at the default place may be another proxy.
        None => {
            let files = load::load(manifest).map_err(|problems| anyhow::anyhow!("nothing was done:\n{problems}"))?;
            let named = files.iter().find_map(|(_, file)| file.admin.as_ref());
            let address = named.map_or(crate::admin::DEFAULT_ADDRESS.into(), |admin| admin.address.get_ref().clone());
            let known = address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() != 0);
            anyhow::ensure!(known, "{} doesn't say where: name the address with --admin", manifest.display());
            address
        }
    };
    crate::admin::order(&address, order).map(|answer| println!("{answer}"))
}

fn certificate(names: &[String], folder: &Path) -> anyhow::Result<()> {
    let (chain, key) = tls::self_signed::self_signed(names)?;
    // Never over what may be in use.
    let write = |name: &str, text: &str, mode: u32| {
        let path = folder.join(name);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let written = options.open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("{} can't be written", path.display()))
    };
    write("cert.pem", &chain, 0o644)?;
    write("key.pem", &key, 0o600)?;
    println!("{0}/cert.pem and {0}/key.pem are for {1}", folder.display(), names.join(", "));
    println!("\n[listener.tls]\ncertificates = [{{ chain = \"cert.pem\", key = \"key.pem\" }}]");
    Ok(())
}

fn check(manifest: &Path, cache: Option<&Path>) -> anyhow::Result<()> {
    let files = load::load(manifest)?;
    let loader = Loader::in_children(Stop::default());
    let made = Assembly::for_check(Runtime::start(cache)?, loader)?.assemble(&files)?;
    let (routes, plugins) = (made.generation.routes.len(), made.generation.bindings.len());
    println!("{} is good: {routes} routes, {plugins} configured plugins", manifest.display());
    Ok(())
}

fn inspect(file: &Path, config: String) -> anyhow::Result<()> {
    let in_file = || file.display().to_string();
    let stock = plugway_plugins::STOCK.iter().find(|(name, _)| Path::new(name) == file);
    let opened = stock.map_or_else(|| Component::open(file), |(_, bytes)| Ok(Component::stock(bytes)));
    let mut component = opened.with_context(in_file)?;
    let runtime = Runtime::start(None)?;
    let seal = runtime.seal(&component.digest);
    let loader = Loader::in_children(Stop::default());
    let said = |error: Failure| anyhow::Error::msg(printable(&error.to_string()).into_owned());
    let mut examination = loader.start(&mut component, None, seal.clone()).map_err(said).with_context(in_file)?;
    // By then it may have died of the configuration, and what it is must still be shown.
    let sealed = examination.sealed().map_err(said).with_context(in_file)?;
    let verdict = examination.check(&config, Limits::default());
    let (_, plugin) =
        runtime.unseal(&seal, &sealed).context("its compiled code can't be used").with_context(in_file)?;
    let plugin = Arc::new(plugin);
    let About { name, version, summary, schema } = &examination.about;
    let (name, version, summary) = (one_line(name), one_line(version), one_line(summary));
    println!("{name} {version}, {} KiB\n{summary}", component.size()? / 1024);
    println!("hooks: {}", plugin.hooks().join(", "));
    match verdict.map_err(|failure| failure.to_string()).and_then(|verdict| needs(verdict, plugin.clone(), config)) {
        Ok(needs) => needs.iter().for_each(|line| println!("  {}", one_line(line))),
        Err(error) => {
            let error = printable(&error).into_owned();
            println!("  what they need is known with a configuration that it takes (--config): {error}");
        }
    }
    println!("imports: {}", one_line(&plugin.imports().join(", ")));
    println!("schema: {}", printable(schema.as_deref().unwrap_or("none")));
    Ok(())
}

/// What a plugin's hooks need with a configuration that it has accepted.
fn needs(verdict: Verdict, plugin: Arc<Plugin>, config: String) -> Result<Vec<String>, String> {
    match verdict {
        Verdict::Accepted => {}
        Verdict::Failed(message) => return Err(message),
        Verdict::Refused { complaints, more } => {
            let told = complaints.into_iter().map(|complaint| complaint.message);
            let more = (more > 0).then(|| format!("and {more} more"));
            return Err(told.chain(more).collect::<Vec<_>>().join("; "));
        }
    }
    let (name, limits) = ("inspected".into(), Limits::default());
    let binding = Binding::new(name, plugin, config, limits, OnError::Fail, Isolation::Worker);
    let binding = binding.map_err(|error| error.to_string())?;
    Ok(binding.needs().iter().map(|(hook, needs)| format!("{hook}: {needs}")).collect())
}

fn proxy_manifest(endpoints: &[String], listen: &str, workers: Option<usize>) -> String {
    let workers = workers.map(|workers| format!("workers = {workers}\n")).unwrap_or_default();
    format!(
        "{workers}[[listener]]\naddress = {listen:?}\n[upstream.app]\nendpoints = {endpoints:?}\n\
         [[route]]\nupstream = \"app\"\nplugins = [{{ use = \"headers\", config = {{ request = {{ set = {{ \
         X-Real-IP = \"{{client.ip}}\", X-Forwarded-For = \"{{forwarded-for}}\", X-Forwarded-Proto = \"{{scheme}}\" \
         }} }} }} }}]\n"
    )
}

/// Where compiled plugins are kept.
fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.filter(|base| base.is_absolute()).map(|base| base.join("plugway"))
}

//! The commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::assemble::Assembly;
use crate::config::load;
use crate::demo;
use crate::plugin::binding;
use crate::plugin::engine::Runtime;
use crate::serve;

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
    /// Shows what a plugin is and what it can do.
    Inspect { file: PathBuf },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PLUGWAY_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Cli::parse().command {
        Command::Run { manifest } => serve::run(move || load::load(&manifest)),
        Command::Proxy { to, listen, workers } => {
            let text = proxy_manifest(&to, &listen, workers);
            serve::run(move || load::parse("command line", text.clone()))
        }
        Command::Check { manifest } => check(&manifest),
        Command::Demo { listen } => demo::run(&listen),
        Command::Inspect { file } => inspect(&file),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(manifest: &Path) -> anyhow::Result<()> {
    let files = load::load(manifest)?;
    let made = Assembly::new(Runtime::start()?).assemble(&files)?;
    let (routes, plugins) = (made.generation.routes.len(), made.generation.bindings.len());
    println!("{} is good: {routes} routes, {plugins} configured plugins", manifest.display());
    Ok(())
}

fn inspect(file: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(file).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let in_file = |error: &dyn std::fmt::Display| anyhow::anyhow!("{}: {error}", file.display());
    let runtime = Runtime::start()?;
    let plugin = std::sync::Arc::new(runtime.load(&bytes).map_err(|error| in_file(&error))?);
    let description = binding::describe(&plugin).map_err(|error| in_file(&error))?;
    println!("{} {}, {} KiB\n{}", description.name, description.version, bytes.len() / 1024, description.summary);
    println!("hooks: {}\nimports: {}", plugin.hooks().join(", "), plugin.imports().join(", "));
    println!("schema: {}", description.config_schema.unwrap_or_else(|| "none".into()));
    Ok(())
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

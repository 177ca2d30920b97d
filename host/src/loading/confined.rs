//! The child process of the loader: it loads one component and carries out orders until they end. Everything here
//! happens under the limits of [`super::confinement`], in a process that no other process depends on.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::confinement::confine;
use super::messages::{self, About, ConfigComplaint, ConfigVerdict, FileForm, LoadOrder, Setup, text};
use super::verdict::Schema;
use crate::config::diagnostic::MAX_SHOWN;
use crate::plugin::compiled_cache::{MAX_SEALED_BYTES, Seal};
use crate::plugin::configured::{self, ConfigureError, ConfiguredPlugin};
use crate::plugin::engine::{Plugin, Runtime};
use crate::plugin::plugin_config::PluginConfig;
use crate::plugin::settings::ConfigErrors;
use crate::plugin::settings::PluginLimits;
use crate::plugin::version::PluginVersions;

/// The argument by which the program becomes a child of the loader. No user writes it.
pub const ARGUMENT: &str = "load-component";

/// A component that is loaded.
pub(super) struct Examiner {
    plugin: Arc<Plugin>,
    about: About,
    /// The parsed schema; `None` until a configuration is first checked.
    schema: Option<Schema>,
    seal: Seal,
}

/// The stack of the thread that does all the work, in bytes. Rules that nest too deeply end at its guard page, which
/// names the reason; on the main thread, the program would only crash.
const STACK: usize = 2 << 20;

/// Runs the child: orders come from standard input, answers go to standard output.
pub fn main() -> ExitCode {
    let work = || serve(&mut io::stdin().lock(), &mut io::stdout().lock());
    let thread = std::thread::Builder::new().name("loading".into()).stack_size(STACK).spawn(work);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn serve(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let Some(setup) = messages::read::<Setup>(input)? else { return Ok(()) };
    confine(&setup)?;
    let mut bytes = Vec::new();
    input.take(setup.length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != setup.length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let seal = Seal { key: setup.key, name: setup.name };
    let loaded = match setup.form {
        FileForm::Component => Examiner::compile(seal, &bytes),
        FileForm::Artifact => Examiner::unseal(seal, &bytes),
    };
    drop(bytes);
    let mut examiner = match loaded {
        Ok((examiner, about)) => messages::write(output, &Ok::<_, String>(about)).map(|()| examiner)?,
        Err(message) => return messages::write(output, &Err::<About, _>(message)),
    };
    while let Some(order) = messages::read(input)? {
        match order {
            LoadOrder::Check { config, memory, cpu_us, env } => {
                let limits = PluginLimits {
                    memory: memory as usize,
                    cpu: Duration::from_micros(cpu_us),
                    ..PluginLimits::default()
                };
                messages::write(output, &examiner.check(&config, limits, &env))?;
            }
            LoadOrder::Seal => {
                let sealed = examiner.sealed();
                messages::write(output, &sealed.as_ref().map(|sealed| sealed.len() as u64).map_err(String::clone))?;
                output.write_all(&sealed.unwrap_or_default())?;
                output.flush()?;
            }
        }
    }
    Ok(())
}

impl Examiner {
    /// Compiles a component and asks it for its description.
    pub fn compile(seal: Seal, bytes: &[u8]) -> Result<(Self, About), String> {
        let runtime = Runtime::start_for_loading().map_err(|error| error.to_string())?;
        let plugin = Arc::new(runtime.load(bytes).map_err(|error| text(&error.to_string()))?);
        let said = configured::describe(&plugin);
        let said = said.map_err(|trap| text(&format!("it fails to describe itself: {trap}")))?;
        let (name, version, summary) = (text(&said.name), text(&said.version), text(&said.summary));
        let about = About { name, version, summary, schema: said.config_schema };
        let schema = about.schema.as_deref().map(Schema::new).transpose()?;
        Ok((Examiner { plugin, about: about.clone(), schema, seal }, about))
    }

    /// Opens an artifact that was sealed before.
    fn unseal(seal: Seal, sealed: &[u8]) -> Result<(Self, About), String> {
        let runtime = Runtime::start_for_loading().map_err(|error| error.to_string())?;
        let (about, plugin) =
            runtime.unseal(&seal, sealed).map_err(|error| format!("its compiled code can't be used: {error}"))?;
        let about: About = messages::content(&about).map_err(|error| error.to_string())?;
        Ok((Examiner { plugin: Arc::new(plugin), about: about.clone(), schema: None, seal }, about))
    }

    /// Checks a configuration by the schema, and has a fresh instance take it.
    pub fn check(&mut self, config: &str, limits: PluginLimits, env: &[(String, String)]) -> ConfigVerdict {
        let refusal = self.check_by_schema(config);
        refusal.unwrap_or_else(|| self.configure(config, limits, env))
    }

    /// Returns the compiled code and the description, sealed.
    pub fn sealed(&self) -> Result<Vec<u8>, String> {
        let code = self.plugin.code().ok_or("its code can't be handed over")?;
        let about = postcard::to_stdvec(&self.about).map_err(|error| error.to_string())?;
        let sealed = self.seal.close(&about, &code);
        if sealed.len() > MAX_SEALED_BYTES { Err(too_much_code(sealed.len() as u64)) } else { Ok(sealed) }
    }

    /// Returns the errors that the schema finds in a configuration; `None` if there are none.
    fn check_by_schema(&mut self, config: &str) -> Option<ConfigVerdict> {
        let text = self.about.schema.as_deref()?;
        if self.schema.is_none() {
            match Schema::new(text) {
                Ok(schema) => self.schema = Some(schema),
                Err(message) => return Some(ConfigVerdict::Failed(message)),
            }
        }
        self.schema.as_ref()?.check(config)
    }

    fn configure(&self, config: &str, limits: PluginLimits, env: &[(String, String)]) -> ConfigVerdict {
        let versions = match PluginVersions::start() {
            Ok(versions) => versions,
            Err(error) => return ConfigVerdict::Failed(error.to_string()),
        };
        let examined = PluginConfig::for_examination(self.plugin.clone(), config.into(), limits, env.to_vec());
        match ConfiguredPlugin::new(&versions, examined) {
            Ok(_) => ConfigVerdict::Accepted,
            Err(ConfigureError::Config(ConfigErrors { shown, more })) => {
                let more = (more + shown.len().saturating_sub(MAX_SHOWN)) as u64;
                let complaint = |(pointer, message): (String, String)| ConfigComplaint {
                    pointer: text(&pointer),
                    key: None,
                    message: text(&message),
                    by_schema: false,
                };
                ConfigVerdict::Refused { complaints: shown.into_iter().take(MAX_SHOWN).map(complaint).collect(), more }
            }
            Err(error) => ConfigVerdict::Failed(text(&error.to_string())),
        }
    }
}

/// The error about a component whose artifact is too large.
pub(super) fn too_much_code(bytes: u64) -> String {
    format!("its compiled code has {} MiB; {} MiB are the most", bytes >> 20, MAX_SEALED_BYTES >> 20)
}

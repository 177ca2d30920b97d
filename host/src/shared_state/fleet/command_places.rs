//! The places of commands that are under way to the server. A plugin has a quarter of them at most, and plugins whose
//! commands wait for a place are served in turn, so that no plugin has to wait for all commands of another one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;
use tokio::sync::oneshot;

/// The places of the commands to one server.
///
/// The lock is taken when a command begins and when it is answered, for less than a hundredth of the time in between.
pub(super) struct CommandPlaces {
    limit: CommandLoad,
    commands: Mutex<KnownCommands>,
}

/// The place of a command, until dropped.
pub(super) struct CommandPlace {
    places: Arc<CommandPlaces>,
    /// The beginning of the plugin's keys on the server.
    plugin: Arc<[u8]>,
    bytes: usize,
}

/// A number of commands, and the bytes of them and of their answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CommandLoad {
    pub(super) commands: usize,
    pub(super) bytes: usize,
}

/// The commands that are under way, and those that wait for a place.
#[derive(Default)]
struct KnownCommands {
    under_way: CommandLoad,
    /// The plugins that have commands; the first one that has waited has the next turn.
    plugins: VecDeque<PluginCommands>,
}

/// The commands of one plugin.
struct PluginCommands {
    plugin: Arc<[u8]>,
    under_way: CommandLoad,
    waiting: VecDeque<WaitingCommand>,
}

/// A command that waits for a place.
struct WaitingCommand {
    bytes: usize,
    admission: oneshot::Sender<CommandPlace>,
}

/// A command that has just got a place.
struct AdmittedCommand {
    plugin: Arc<[u8]>,
    command: WaitingCommand,
}

/// The bytes of all commands under way with their answers: a link of 1 Gbit/s carries them in 34 ms, which is far less than
/// the default of `[shared] timeout`.
const MAX_BYTES: usize = 4 << 20;

/// The part of all places that one plugin has at most.
const PLUGIN_PART: usize = 4;

/// The most bytes of a plugin's commands that are under way, unless it is one command.
pub(super) const MAX_PLUGIN_BYTES: usize = MAX_BYTES / PLUGIN_PART;

impl CommandPlaces {
    /// Returns places for so many commands.
    pub(super) fn new(commands: usize) -> Self {
        CommandPlaces { limit: CommandLoad { commands, bytes: MAX_BYTES }, commands: Mutex::default() }
    }

    /// Returns the commands that are under way.
    pub(super) fn under_way(&self) -> CommandLoad {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).under_way
    }

    /// Waits until a command of a plugin has a place. `bytes` is the length of the command and of its answer.
    pub(super) async fn admit(self: &Arc<Self>, plugin: &Arc<[u8]>, bytes: usize) -> Option<CommandPlace> {
        let (admission, place) = oneshot::channel();
        self.change(|commands| commands.of(plugin).waiting.push_back(WaitingCommand { bytes, admission }));
        place.await.ok()
    }

    /// Changes what is known of the commands, and admits those that have room then.
    fn change(self: &Arc<Self>, change: impl FnOnce(&mut KnownCommands)) {
        let mut admitted: SmallVec<[AdmittedCommand; 1]> = SmallVec::new();
        let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut commands);
        while let Some(next) = commands.next(self.limit) {
            admitted.push(next);
        }
        drop(commands);
        for AdmittedCommand { plugin, command } in admitted {
            let place = CommandPlace { places: self.clone(), plugin, bytes: command.bytes };
            // A command that was given up meanwhile returns its place at once.
            let _ = command.admission.send(place);
        }
    }
}

impl Drop for CommandPlace {
    fn drop(&mut self) {
        let CommandPlace { places, plugin, bytes } = self;
        places.change(|commands| {
            commands.under_way.remove(*bytes);
            commands.of(plugin).under_way.remove(*bytes);
        });
    }
}

impl CommandLoad {
    /// Whether there is room for one more command. A command alone always has room.
    fn admits(self, bytes: usize, limit: CommandLoad) -> bool {
        self.commands == 0 || self.commands < limit.commands && self.bytes + bytes <= limit.bytes
    }

    fn add(&mut self, bytes: usize) {
        self.commands += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.commands = self.commands.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl KnownCommands {
    /// Returns the commands of a plugin.
    fn of(&mut self, plugin: &Arc<[u8]>) -> &mut PluginCommands {
        let known = self.plugins.iter().position(|known| known.plugin == *plugin);
        let at = known.unwrap_or_else(|| {
            let (under_way, waiting) = (CommandLoad::default(), VecDeque::new());
            self.plugins.push_back(PluginCommands { plugin: plugin.clone(), under_way, waiting });
            self.plugins.len() - 1
        });
        &mut self.plugins[at]
    }

    /// Admits the next command of the plugin whose turn it is; `None` if there is no room, or none waits that has room in
    /// its plugin's part.
    fn next(&mut self, limit: CommandLoad) -> Option<AdmittedCommand> {
        let part = CommandLoad { commands: limit.commands / PLUGIN_PART, bytes: limit.bytes / PLUGIN_PART };
        for _ in 0..self.plugins.len() {
            let mut plugin = self.plugins.pop_front()?;
            if let Some(bytes) = plugin.next_bytes(part) {
                if !self.under_way.admits(bytes, limit) {
                    // The plugin keeps its turn, so that long commands are not passed by short ones for ever.
                    self.plugins.push_front(plugin);
                    return None;
                }
                let command = plugin.waiting.pop_front()?;
                self.under_way.add(bytes);
                plugin.under_way.add(bytes);
                let admitted = AdmittedCommand { plugin: plugin.plugin.clone(), command };
                self.plugins.push_back(plugin);
                return Some(admitted);
            }
            if plugin.under_way.commands > 0 || !plugin.waiting.is_empty() {
                self.plugins.push_back(plugin);
            }
        }
        None
    }
}

impl PluginCommands {
    /// Returns the bytes of the next command that waits, if the plugin's part has room for it. Commands that were given up
    /// are forgotten.
    fn next_bytes(&mut self, part: CommandLoad) -> Option<usize> {
        while self.waiting.front().is_some_and(|command| command.admission.is_closed()) {
            self.waiting.pop_front();
        }
        self.waiting.front().map(|command| command.bytes).filter(|bytes| self.under_way.admits(*bytes, part))
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Admission<'a> = std::pin::Pin<Box<dyn Future<Output = Option<CommandPlace>> + 'a>>;

    fn plugin(name: &str) -> Arc<[u8]> {
        name.as_bytes().into()
    }

    /// Returns the place of a command if it has one by now.
    fn place(admission: &mut Admission<'_>) -> Option<CommandPlace> {
        match admission.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => place,
            Poll::Pending => None,
        }
    }

    /// Begins so many commands, and returns the places of those that have one, with the others.
    fn begin<'a>(
        places: &'a Arc<CommandPlaces>,
        plugin: &'a Arc<[u8]>,
        count: usize,
        bytes: usize,
    ) -> (Vec<CommandPlace>, Vec<Admission<'a>>) {
        let (mut taken, mut waiting) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let mut admission: Admission<'a> = Box::pin(places.admit(plugin, bytes));
            match place(&mut admission) {
                Some(place) => taken.push(place),
                None => waiting.push(admission),
            }
        }
        (taken, waiting)
    }

    #[test]
    fn a_plugin_has_a_quarter_of_the_places() {
        let (places, [evil, honest]) = (Arc::new(CommandPlaces::new(256)), ["evil", "honest"].map(plugin));
        let (mut taken, mut waiting) = begin(&places, &evil, 200, 10);
        assert_eq!((taken.len(), waiting.len()), (64, 136));
        assert_eq!(begin(&places, &honest, 64, 10).0.len(), 64);
        // A place that is returned is that of the command which has waited the longest.
        taken.pop();
        assert!(place(&mut waiting[1]).is_none() && place(&mut waiting[0]).is_some());
        for few in 1..4 {
            let places = Arc::new(CommandPlaces::new(few));
            let (taken, _waiting) = begin(&places, &evil, 10, 10);
            assert_eq!(taken.len(), 1, "{few}");
        }
    }

    #[test]
    fn bytes_under_way_are_bounded_for_each_plugin_and_in_all() {
        let places = Arc::new(CommandPlaces::new(10_000));
        let plugins: Vec<Arc<[u8]>> = (0..6).map(|number| plugin(&number.to_string())).collect();
        let begun: Vec<_> = plugins.iter().map(|plugin| begin(&places, plugin, 100, 128 << 10)).collect();
        assert_eq!(begun.iter().map(|(taken, _)| taken.len()).collect::<Vec<_>>(), [8, 8, 8, 8, 0, 0]);
        // A command that is longer than a plugin's part goes alone.
        let places = Arc::new(CommandPlaces::new(256));
        let (taken, _waiting) = begin(&places, &plugins[0], 3, MAX_PLUGIN_BYTES + 1);
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn plugins_that_wait_are_served_in_turn() {
        let (places, names) = (Arc::new(CommandPlaces::new(8)), ["a", "b", "c", "d", "evil", "honest"].map(plugin));
        let [a, b, c, d, evil, honest] = &names;
        let mut full: Vec<_> = [a, b, c, d].map(|plugin| begin(&places, plugin, 2, 10).0).into();
        assert!(full.iter().all(|taken| taken.len() == 2));
        let (_, mut of_evil) = begin(&places, evil, 100, 10);
        let (_, mut of_honest) = begin(&places, honest, 2, 10);
        full.pop();
        let first = (place(&mut of_evil[0]), place(&mut of_honest[0]));
        assert!(first.0.is_some() && first.1.is_some(), "a hundred commands of one plugin wait behind its first one");
        assert!(place(&mut of_evil[1]).is_none() && place(&mut of_honest[1]).is_none());
        drop(first);
        assert!(place(&mut of_evil[1]).is_some() && place(&mut of_honest[1]).is_some());
    }

    #[test]
    fn commands_that_are_given_up_take_no_place() {
        let (places, evil) = (Arc::new(CommandPlaces::new(4)), plugin("evil"));
        let (taken, mut waiting) = begin(&places, &evil, 100, 10);
        assert_eq!(taken.len(), 1);
        let last = waiting.pop();
        drop(waiting);
        drop(taken);
        let place = last.and_then(|mut last| place(&mut last));
        assert!(place.is_some());
        // The last one was admitted and never asked for its place.
        let (_, unasked) = begin(&places, &evil, 1, 10);
        drop(place);
        drop(unasked);
        let commands = places.commands.lock().unwrap();
        assert_eq!((commands.under_way.commands, commands.under_way.bytes, commands.plugins.len()), (0, 0, 0));
    }
}

//! The state of content on its way through body hooks, as a request carries it until its hooks have begun. The hooks are begun
//! by [`super::body_hooks`].

use smallvec::SmallVec;

use crate::context::body_mode::BodyMode;
use crate::context::edit_check::MessageSide;
use crate::generation::ids::PluginId;
use crate::plugin::body_filter::BodyFilter;
use crate::protocol::coded_content::CodingList;
use crate::protocol::transformed_content::ContentRules;

/// The way of content through the body hooks that are due for its message.
pub struct BodyPassage<B> {
    pub(super) hooks: PassageHooks,
    pub(super) content: B,
}

/// The body hooks of a passage.
pub(super) struct PassageHooks {
    pub(super) side: MessageSide,
    /// The hooks, in the order in which the content passes them.
    pub(super) due: SmallVec<[DueHook; 4]>,
    /// The place in `due` of the next one that is to begin.
    pub(super) next: usize,
    /// The hooks that have begun.
    pub(super) stages: Vec<BodyFilter>,
    /// The plugins of those hooks.
    pub(super) begun: Vec<PluginId>,
}

/// A body hook that is due for a message.
#[derive(Clone, Copy)]
pub(super) struct DueHook {
    /// The place of the plugin in the chain.
    pub(super) place: usize,
    pub(super) plugin_id: PluginId,
    pub(super) mode: BodyMode,
    /// The longest body that the plugin decides about as a whole, in bytes; `None` if the plugin transforms the body.
    pub(super) gathered: Option<u64>,
    pub(super) rules: ContentRules,
    /// The codings that the content has before this plugin and is decoded from for it; `None` if it is plain by then.
    pub(super) codings: Option<CodingList>,
}

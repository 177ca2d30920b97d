//! The indices of the routes, upstreams and plugins of a generation: each a type of its own, so that none is taken for
//! another.

use std::marker::PhantomData;
use std::ops::{Deref, Index};

/// An index into one table of a generation.
pub trait Id: Copy {
    fn new(index: usize) -> Self;
    fn index(self) -> usize;
}

/// A table that is indexed by the ids `I`.
pub struct ById<I, T> {
    items: Vec<T>,
    ids: PhantomData<I>,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(usize);

        impl Id for $name {
            fn new(index: usize) -> Self {
                $name(index)
            }

            fn index(self) -> usize {
                self.0
            }
        }
    )*};
}

ids! {
    /// The index of a route.
    RouteId,
    /// The index of an upstream.
    UpstreamId,
    /// The index of a configured plugin.
    PluginId
}

impl<I: Id, T> ById<I, T> {
    /// Returns the items with their ids.
    pub fn with_ids(&self) -> impl Iterator<Item = (I, &T)> {
        self.items.iter().enumerate().map(|(index, item)| (I::new(index), item))
    }

    /// Returns the ids of all items.
    pub fn ids(&self) -> impl Iterator<Item = I> + use<I, T> {
        (0..self.items.len()).map(I::new)
    }

    /// Replaces an item.
    pub fn replace(&mut self, id: I, item: T) {
        self.items[id.index()] = item;
    }

    /// Returns the items, to change them in place.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.items.iter_mut()
    }

    /// Adds an item, and returns its id.
    pub fn push(&mut self, item: T) -> I {
        self.items.push(item);
        I::new(self.items.len() - 1)
    }
}

impl<I: Id, T> Index<I> for ById<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.items[id.index()]
    }
}

impl<I, T> Deref for ById<I, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<I, T> From<Vec<T>> for ById<I, T> {
    fn from(items: Vec<T>) -> Self {
        ById { items, ids: PhantomData }
    }
}

impl<I, T> Default for ById<I, T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<I, T> FromIterator<T> for ById<I, T> {
    fn from_iter<C: IntoIterator<Item = T>>(items: C) -> Self {
        items.into_iter().collect::<Vec<T>>().into()
    }
}

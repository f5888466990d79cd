//! Keeping a rental's home folder: captured while everything in the sandbox stands still, or after its end.
//!
//! Files move, processes do not. A capture is a [`Tree`](tree::Tree) of names and, in numbered blobs beside it, the bytes of
//! the files ([`blobs`]). What did not change since the capture before is not read again, so that those who work inside
//! stand still for as long as it takes to look at every file and to copy what changed a moment ago ([`take`]): what changed
//! before that is copied while they still run. The tree and the blobs are staged as any checkpoint is, and blobs that the
//! vault has do not travel. [`restore`] makes the folder again, at any site, before anybody works in it.

mod blobs;
mod capture;
pub(crate) mod restore;
mod still;
mod take;
pub(crate) mod tree;

#[cfg(test)]
mod tests;

pub(super) use capture::{HOME, HomeKeeper, Next};

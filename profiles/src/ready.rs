//! Profiles that come with pct-vmi: of kernels whose own BTF has no types of modules. Made by
//! `cargo lab profiles` from Debian's debug packages, never by hand.

use crate::profile::Profile;

const READY: [&str; 0] = [];

/// All of them.
pub fn all() -> impl Iterator<Item = Profile> {
    READY
        .iter()
        .filter_map(|json| Profile::parse(json.as_bytes()).ok())
}

/// The profile of a kernel build, where it is one of these.
pub fn find(build_id: &str) -> Option<Profile> {
    all().find(|profile| profile.kernel.build_id.as_deref() == Some(build_id))
}

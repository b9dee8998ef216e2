//! Profiles that come with pct-vmi: of kernels whose own BTF has no types of modules. Made from
//! Debian's debug packages (profiles/README.md), never by hand.

use crate::profile::Profile;

const READY: [&str; 4] = [
    include_str!("../ready/linux-5.10.0-32-amd64.json"),
    include_str!("../ready/linux-5.10.0-32-cloud-amd64.json"),
    include_str!("../ready/linux-5.10.0-43-cloud-amd64.json"),
    include_str!("../ready/linux-5.10.0-46-amd64.json"),
];

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

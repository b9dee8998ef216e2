//! What a kernel looks like: struct layouts from BTF, symbol addresses from kallsyms, and the text
//! of VMCOREINFO. Everything works on byte slices that came out of a guest: nothing here reads
//! memory, trusts a length, or asks for a kernel's version.

pub mod btf;
pub mod image;
pub mod isf;
pub mod kallsyms;
pub mod layout;
pub mod profile;
pub mod ready;
pub mod source;
pub mod store;
pub mod types;
pub mod vmcoreinfo;

pub use btf::{Btf, BtfError};
pub use image::Image;
pub use kallsyms::{Kallsyms, KallsymsError};
pub use layout::{Layouts, MissingFields};
pub use profile::{Identity, Profile, ProfileError};
pub use store::{Store, StoreError};
pub use types::{Field, Layers, Types};
pub use vmcoreinfo::Vmcoreinfo;

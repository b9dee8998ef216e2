//! Why a cached page is not restorable from disk. A closed set: each page that is left out is
//! counted under exactly one of these, and nothing is left out without one.

/// In the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The file system is not one whose blocks can be derived.
    Filesystem,
    /// Neither the guest's memory nor a profile has the types of the file system's module.
    NoTypes,
    /// A directory, a symbolic link, or a file system's own inode.
    NotRegular,
    /// Cache of a block device that a file system, or someone else, has claimed.
    DeviceHeld,
    /// The file system is not on a disk of the machine, or not directly.
    NotOnDisk,
    /// On a device mapper target other than linear; with the text that says so.
    DmTarget(&'static str),
    /// A swap or quota file: the kernel writes it past its page cache.
    PastCache,
    Dax,
    Encrypted,
    Verity,
    InlineData,
    JournalledData,
    /// The data is on XFS's realtime device.
    Realtime,
    /// A page of the file could not be written once: which of them the disk has is not known.
    WritebackFailed,
    NotUptodate,
    /// Someone is reading, writing or giving up the page.
    Locked,
    Dirty,
    Writeback,
    PageError,
    Hwpoison,
    BeyondSize,
    /// The last page of a file that was cut short on btrfs: the disk still has what was behind.
    CutShort,
    Hole,
    Unwritten,
    /// Written, but without a place on disk yet.
    DelayedAllocation,
    Compressed,
    /// A chunk of btrfs that is not in one piece on one device.
    ChunkProfile,
    /// The page's blocks do not lie behind each other, or do not fill it.
    SplitBlocks,
    /// A block of the extent tree is neither in the guest's cache nor could be read from disk.
    ExtentBlockUnread,
    /// The extent tree makes no sense.
    BadExtents,
    BeyondDevice,
    /// The guest was stopped while it changed the file's extents.
    Changing,
    /// Read while it changed, or wrong in the guest: the structures contradict each other.
    Torn,
}

/// Documentation/admin-guide/device-mapper/
const DM_TARGETS: [&str; 20] = [
    "device mapper target cache",
    "device mapper target clone",
    "device mapper target crypt",
    "device mapper target delay",
    "device mapper target era",
    "device mapper target error",
    "device mapper target flakey",
    "device mapper target integrity",
    "device mapper target mirror",
    "device mapper target multipath",
    "device mapper target raid",
    "device mapper target snapshot",
    "device mapper target snapshot-merge",
    "device mapper target snapshot-origin",
    "device mapper target striped",
    "device mapper target thin",
    "device mapper target vdo",
    "device mapper target verity",
    "device mapper target writecache",
    "device mapper target zero",
];

impl Reason {
    /// For a device mapper target of this kind.
    pub(crate) fn of_dm_target(kind: &str) -> Reason {
        let known = DM_TARGETS
            .into_iter()
            .find(|text| text.strip_prefix("device mapper target ") == Some(kind));
        Reason::DmTarget(known.unwrap_or("another device mapper target"))
    }

    /// Short name, in the kernel's words where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Filesystem => "file system not supported",
            Reason::NoTypes => "no types for the file system",
            Reason::NotRegular => "not S_ISREG",
            Reason::DeviceHeld => "block device in use",
            Reason::NotOnDisk => "not on a PCI disk",
            Reason::DmTarget(text) => text,
            Reason::PastCache => "swap or quota file",
            Reason::Dax => "DAX",
            Reason::Encrypted => "encrypted",
            Reason::Verity => "verity",
            Reason::InlineData => "inline data",
            Reason::JournalledData => "journalled data",
            Reason::Realtime => "realtime device",
            Reason::WritebackFailed => "writeback failed",
            Reason::NotUptodate => "not PG_uptodate",
            Reason::Locked => "PG_locked",
            Reason::Dirty => "PG_dirty",
            Reason::Writeback => "PG_writeback",
            Reason::PageError => "PG_error",
            Reason::Hwpoison => "PG_hwpoison",
            Reason::BeyondSize => "beyond i_size",
            Reason::CutShort => "cut short",
            Reason::Hole => "hole",
            Reason::Unwritten => "unwritten extent",
            Reason::DelayedAllocation => "delayed allocation",
            Reason::Compressed => "compressed",
            Reason::ChunkProfile => "RAID profile",
            Reason::SplitBlocks => "blocks not adjacent",
            Reason::ExtentBlockUnread => "extent block unread",
            Reason::BadExtents => "bad extents",
            Reason::BeyondDevice => "beyond the device",
            Reason::Changing => "extents being changed",
            Reason::Torn => "torn",
        }
    }
}

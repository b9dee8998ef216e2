//! Super blocks, inodes and dentries of the hand-made guest.

use profiles::layout::{Dentry, FileSystemType, Inode, Qstr, SuperBlock};

use super::{MockGuest, field};
use crate::address::Gva;

pub(super) const S_IFREG: u64 = 0o100_644;
pub(super) const S_IFBLK: u64 = 0o060_600;

impl MockGuest {
    pub(crate) fn super_block(&mut self, fs: &str, id: &str, block_bytes: u64, bdev: Gva) -> Gva {
        let layout = self.layouts.super_block;
        let kind = self.alloc(self.layouts.file_system_type.size);
        let name = self.text(fs);
        self.put(kind, self.layouts.file_system_type.name, name);
        let sb = self.alloc(layout.size);
        self.put(sb, layout.s_type, kind.0);
        self.put(sb, layout.s_blocksize, block_bytes);
        self.put(sb, layout.s_bdev, bdev.0);
        self.write(
            Self::gpa(sb.offset(layout.s_id.offset.into())),
            id.as_bytes(),
        );
        if fs.starts_with("ext") {
            let sb_info = self.layouts.ext4.as_ref().unwrap().sb_info;
            let info = self.alloc(sb_info.size);
            self.put(info, sb_info.s_sb, sb.0);
            self.put(sb, layout.s_fs_info, info.0);
        }
        self.init_list(sb.offset(layout.s_inodes.offset.into()));
        self.list_add(sb.offset(layout.s_list.offset.into()), self.super_blocks);
        sb
    }

    /// An inode at `inode` with a mapping of its own.
    pub(super) fn inode_at(&mut self, inode: Gva, sb: Gva, mode: u64, size_bytes: u64) {
        let layout = self.layouts.inode;
        let mapping = self.alloc(self.layouts.address_space.size);
        self.put(mapping, self.layouts.address_space.host, inode.0);
        self.put(inode, layout.i_mapping, mapping.0);
        self.put(inode, layout.i_mode, mode);
        self.put(inode, layout.i_size, size_bytes);
        self.put(inode, layout.i_ino, inode.0 & 0xffff);
        let head = sb.offset(self.layouts.super_block.s_inodes.offset.into());
        self.list_add(inode.offset(layout.i_sb_list.offset.into()), head);
    }

    pub(crate) fn set_mode(&mut self, inode: Gva, mode: u64) {
        self.put(inode, self.layouts.inode.i_mode, mode);
    }

    pub(crate) fn mapping(&self, inode: Gva) -> Gva {
        Gva(self.get(inode, self.layouts.inode.i_mapping))
    }

    /// The struct that the file system keeps of its own for a mount.
    pub(crate) fn fs_info(&self, sb: Gva) -> Gva {
        Gva(self.get(sb, self.layouts.super_block.s_fs_info))
    }

    /// A dentry, its own parent where none is given.
    pub(crate) fn dentry(&mut self, parent: Option<Gva>, name: &str) -> Gva {
        let layout = self.layouts.dentry;
        let dentry = self.alloc(layout.size);
        self.put(dentry, layout.d_parent, parent.unwrap_or(dentry).0);
        let text = self.text(name);
        let qstr = dentry.offset(layout.d_name.offset.into());
        self.put(qstr, self.layouts.qstr.len, name.len() as u64);
        self.put(qstr, self.layouts.qstr.name, text);
        dentry
    }
}

pub(super) const SUPER_BLOCK: SuperBlock = SuperBlock {
    size: 256,
    s_list: field(32, 16),
    s_blocksize: field(56, 8),
    s_type: field(64, 8),
    s_bdev: field(88, 8),
    s_inodes: field(104, 16),
    s_id: field(128, 32),
    s_fs_info: field(168, 8),
};

pub(super) const FILE_SYSTEM_TYPE: FileSystemType = FileSystemType {
    size: 64,
    name: field(16, 8),
};

pub(super) const INODE: Inode = Inode {
    size: 256,
    i_mode: field(8, 2),
    i_flags: field(12, 4),
    i_mapping: field(24, 8),
    i_ino: field(40, 8),
    i_size: field(56, 8),
    i_sb_list: field(72, 16),
    i_dentry: field(96, 8),
};

pub(super) const DENTRY: Dentry = Dentry {
    size: 192,
    d_parent: field(24, 8),
    d_name: field(32, 16),
    d_u: field(128, 16),
};

pub(super) const QSTR: Qstr = Qstr {
    size: 16,
    name: field(8, 8),
    len: field(4, 4),
};

//! The text of VMCOREINFO (Documentation/admin-guide/kdump/vmcoreinfo.rst): lines of KEY=VALUE
//! that a running kernel keeps in one page for kexec and crash tools. It never guesses: a value
//! that is absent or does not parse is None.

use std::collections::HashMap;

/// The values of one VMCOREINFO text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmcoreinfo {
    values: HashMap<String, String>,
}

impl Vmcoreinfo {
    /// Reads the text; lines without `=` are passed over.
    pub fn parse(text: &str) -> Vmcoreinfo {
        let values = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        Vmcoreinfo {
            values: values.collect(),
        }
    }

    /// A value as it stands, such as `OSRELEASE` or `BUILD-ID`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// `SYMBOL(name)`: a virtual address.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.text(&format!("SYMBOL({name})"))?, 16).ok()
    }

    /// `NUMBER(name)`: decimal, may be negative.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(&format!("NUMBER({name})"))?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_their_own_bases() {
        let info = Vmcoreinfo::parse(
            "OSRELEASE=6.1.0-cloud\nSYMBOL(_stext)=ffffffff81000000\n\
             NUMBER(phys_base)=-2097152\nnoise\nKERNELOFFSET=1f600000\n",
        );
        assert_eq!(info.text("OSRELEASE"), Some("6.1.0-cloud"));
        assert_eq!(info.symbol("_stext"), Some(0xffff_ffff_8100_0000));
        assert_eq!(info.number("phys_base"), Some(-0x20_0000));
        assert_eq!(info.symbol("absent"), None);
        assert_eq!(info.number("_stext"), None);
    }
}

//! NBD's handshake: fixed newstyle, structured replies where the server has them, NBD_OPT_GO. Bounded
//! in everything but time, which is the stream's matter.

use std::io::{Read, Write};

use zerocopy::FromBytes;

use super::NbdError;
use super::wire::{
    BlockSizes, CAN_MULTI_CONN, ExportInfo, FIXED_NEWSTYLE, Greeting, HAS_FLAGS, INFO_BLOCK_SIZE,
    INFO_EXPORT, MAGIC_INIT, MAGIC_OPTION, NO_ZEROES, OPT_GO, OPT_STRUCTURED_REPLY, OptionReply,
    go, option, read_struct,
};

/// A server has one piece of information of each kind; there are five kinds.
const INFOS_MAX: usize = 16;

/// What a client may assume of a server that tells no block sizes (doc/proto.md).
const BLOCK_MIN: u32 = 512;
const BLOCK_MAX: u32 = 32 << 20;
/// The largest that proto.md allows as minimum.
const BLOCK_MIN_MAX: u32 = 64 << 10;

/// Larger is no disk: offsets must fit what the kernel has for them.
const SIZE_MAX: u64 = i64::MAX as u64;

const NBD_REP_ERR_POLICY: u32 = 1 << 31 | 2;
const NBD_REP_ERR_TLS_REQD: u32 = 1 << 31 | 5;
const NBD_REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
const NBD_REP_ERR_SHUTDOWN: u32 = 1 << 31 | 7;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Bytes.
    pub(super) size: u64,
    pub(super) structured: bool,
    pub(super) can_multi_conn: bool,
    /// Offsets and lengths are multiples of it: a power of two up to 64 KiB.
    pub(super) block_min: u32,
    /// The longest read; a multiple of `block_min`.
    pub(super) block_max: u32,
}

/// Opens `export` on a fresh connection.
pub(super) fn negotiate(
    stream: &mut (impl Read + Write),
    export: &str,
) -> Result<Agreed, NbdError> {
    let greeting: Greeting = read_struct(stream)?;
    let flags = greeting.flags.get();
    let newstyle = greeting.style == MAGIC_OPTION && flags & FIXED_NEWSTYLE != 0;
    if greeting.magic != MAGIC_INIT || !newstyle {
        return Err(NbdError::NotNbd);
    }
    let ours = u32::from(FIXED_NEWSTYLE | flags & NO_ZEROES);
    stream.write_all(&ours.to_be_bytes())?;
    stream.write_all(&option(OPT_STRUCTURED_REPLY, &[]))?;
    let structured = match OptionReply::read(stream, OPT_STRUCTURED_REPLY)? {
        OptionReply::Ack => true,
        OptionReply::Refused(NBD_REP_ERR_TLS_REQD, _) => return Err(NbdError::Tls),
        OptionReply::Refused(..) => false,
        OptionReply::Info(..) => {
            return Err(NbdError::Protocol("it informs where it should agree"));
        }
    };
    stream.write_all(&option(OPT_GO, &go(export)))?;
    let mut agreed = Agreed {
        size: 0,
        structured,
        can_multi_conn: false,
        block_min: BLOCK_MIN,
        block_max: BLOCK_MAX,
    };
    let mut known = false;
    for _ in 0..INFOS_MAX {
        match OptionReply::read(stream, OPT_GO)? {
            OptionReply::Ack if known => return Ok(agreed),
            OptionReply::Ack => return Err(NbdError::Protocol("it tells no size of the export")),
            OptionReply::Info(INFO_EXPORT, data) => {
                known = true;
                agreed.take_export(&data)?;
            }
            OptionReply::Info(INFO_BLOCK_SIZE, data) => agreed.take_block_sizes(&data)?,
            OptionReply::Info(..) => {}
            OptionReply::Refused(kind, said) => return Err(refused(kind, export, said)),
        }
    }
    Err(NbdError::Protocol("it informs without end"))
}

impl Agreed {
    fn take_export(&mut self, data: &[u8]) -> Result<(), NbdError> {
        let info = ExportInfo::read_from_bytes(data)
            .map_err(|_| NbdError::Protocol("NBD_INFO_EXPORT has a wrong length"))?;
        let flags = info.flags.get();
        self.size = info.size.get();
        self.can_multi_conn = flags & CAN_MULTI_CONN != 0;
        if flags & HAS_FLAGS == 0 || !(1..=SIZE_MAX).contains(&self.size) {
            return Err(NbdError::Protocol(
                "its export has an absurd size or no flags",
            ));
        }
        Ok(())
    }

    fn take_block_sizes(&mut self, data: &[u8]) -> Result<(), NbdError> {
        let sizes = BlockSizes::read_from_bytes(data)
            .map_err(|_| NbdError::Protocol("NBD_INFO_BLOCK_SIZE has a wrong length"))?;
        let min = sizes.min.get();
        if !min.is_power_of_two() || min > BLOCK_MIN_MAX || sizes.max.get() < min {
            return Err(NbdError::Protocol("its block sizes make no sense"));
        }
        self.block_min = min;
        // More than our own bound is never asked for in one read.
        self.block_max = sizes.max.get().min(BLOCK_MAX) & !(min - 1);
        Ok(())
    }
}

fn refused(kind: u32, export: &str, said: String) -> NbdError {
    let export = export.to_owned();
    match kind {
        NBD_REP_ERR_TLS_REQD => NbdError::Tls,
        NBD_REP_ERR_UNKNOWN => NbdError::NoSuchExport { export, said },
        NBD_REP_ERR_POLICY | NBD_REP_ERR_SHUTDOWN => NbdError::Refused { export, said },
        // NBD_REP_ERR_UNSUP is what servers before 2017 say.
        _ => NbdError::NoGo { said },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// A stream whose server has said everything already.
    pub(crate) struct Said {
        bytes: Cursor<Vec<u8>>,
        pub(crate) heard: Vec<u8>,
    }

    impl Said {
        pub(crate) fn new(bytes: Vec<u8>) -> Self {
            let (bytes, heard) = (Cursor::new(bytes), Vec::new());
            Self { bytes, heard }
        }
    }

    impl Read for Said {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.bytes.read(buf)
        }
    }

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.heard.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn export_info(size: u64, flags: u16) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(size.to_be_bytes());
        body.extend(flags.to_be_bytes());
        reply(OPT_GO, 3, &body)
    }

    fn block_sizes(min: u32, max: u32) -> Vec<u8> {
        let sizes = [min, 4096, max].map(u32::to_be_bytes).concat();
        reply(OPT_GO, 3, &[&[0, 3], &sizes[..]].concat())
    }

    fn greeting() -> Vec<u8> {
        b"NBDMAGICIHAVEOPT\0\x03".to_vec()
    }

    fn run(said: &[Vec<u8>]) -> Result<Agreed, NbdError> {
        negotiate(&mut Said::new(said.concat()), "vm")
    }

    #[test]
    fn a_modern_server_is_agreed_with() {
        let said = [
            greeting(),
            reply(OPT_STRUCTURED_REPLY, 1, &[]),
            export_info(1 << 30, HAS_FLAGS | CAN_MULTI_CONN),
            block_sizes(4096, 1 << 20),
            reply(OPT_GO, 1, &[]),
        ];
        let agreed = Agreed {
            size: 1 << 30,
            structured: true,
            can_multi_conn: true,
            block_min: 4096,
            block_max: 1 << 20,
        };
        let mut stream = Said::new(said.concat());
        assert_eq!(negotiate(&mut stream, "vm").unwrap(), agreed);
        let asked = [
            &3u32.to_be_bytes()[..],
            b"IHAVEOPT\0\0\0\x08\0\0\0\0",
            b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02vm\0\x01\0\x03",
        ];
        assert_eq!(stream.heard, asked.concat());
    }

    #[test]
    fn an_old_server_is_read_with_simple_replies_and_the_default_sizes() {
        let agreed = run(&[
            greeting(),
            reply(OPT_STRUCTURED_REPLY, 1 << 31 | 1, b"what?"),
            export_info(4096, HAS_FLAGS),
            reply(OPT_GO, 1, &[]),
        ]);
        let agreed = agreed.unwrap();
        assert!(!agreed.structured && !agreed.can_multi_conn);
        assert_eq!((agreed.block_min, agreed.block_max), (512, 32 << 20));
    }

    #[test]
    fn what_a_server_refuses_is_said_with_its_words() {
        for (kind, words) in [
            (NBD_REP_ERR_UNKNOWN, "no export \"vm\""),
            (NBD_REP_ERR_TLS_REQD, "TLS"),
            (NBD_REP_ERR_POLICY, "refuses"),
            (1 << 31 | 1, "NBD_OPT_GO"),
        ] {
            let said = [
                greeting(),
                reply(OPT_STRUCTURED_REPLY, 1, &[]),
                reply(OPT_GO, kind, b"because\x1b[31m"),
            ];
            let error = run(&said).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(!error.contains('\x1b'), "{error}");
        }
        let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0".to_vec();
        assert!(matches!(run(&[oldstyle]), Err(NbdError::NotNbd)));
        let ssh = b"SSH-2.0-OpenSSH_9.2p1 Debian".to_vec();
        assert!(matches!(run(&[ssh]), Err(NbdError::NotNbd)));
    }

    #[test]
    fn absurd_answers_are_refused() {
        let with = |more: &[Vec<u8>]| {
            let begin = [greeting(), reply(OPT_STRUCTURED_REPLY, 1, &[])];
            run(&[&begin[..], more, &[reply(OPT_GO, 1, &[])]].concat())
        };
        let info = export_info(4096, HAS_FLAGS);
        assert!(with(std::slice::from_ref(&info)).is_ok());
        for absurd in [
            vec![],
            vec![export_info(0, HAS_FLAGS)],
            vec![export_info(u64::MAX, HAS_FLAGS)],
            vec![export_info(4096, 0)],
            vec![info.clone(), block_sizes(0, 4096)],
            vec![info.clone(), block_sizes(3, 4096)],
            vec![info.clone(), block_sizes(1 << 17, 1 << 20)],
            vec![info.clone(), block_sizes(4096, 512)],
            vec![info.clone(), reply(OPT_STRUCTURED_REPLY, 1, &[])],
            vec![info.clone(), reply(OPT_GO, 2, b"list")],
            vec![info; INFOS_MAX],
        ] {
            let error = with(&absurd);
            assert!(matches!(error, Err(NbdError::Protocol(_))), "{error:?}");
        }
        let mut long = reply(OPT_STRUCTURED_REPLY, 1, &[]);
        long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            run(&[greeting(), long]),
            Err(NbdError::Protocol(_))
        ));
    }

    proptest! {
        #[test]
        fn nothing_panics(
            kinds in prop::collection::vec((0..4u32, prop::bool::ANY), 0..6),
            noise in prop::collection::vec(any::<u8>(), 0..64),
            flip in any::<prop::sample::Index>(),
            bits in any::<u8>(),
        ) {
            let mut said = [greeting(), reply(OPT_STRUCTURED_REPLY, 1, &[])].concat();
            for (kind, is_error) in kinds {
                let kind = kind | u32::from(is_error) << 31;
                said.extend(reply(OPT_GO, kind, &noise));
            }
            said.extend(&noise);
            let at = flip.index(said.len());
            said[at] ^= bits;
            let _ = negotiate(&mut Said::new(said), "vm");
        }
    }
}

//! Frames out of the bytes of a connection, as they come: cut anywhere, many at a time. Bodies stay where they were read
//! to. It reads nothing by itself, and never makes room for more than the longest frame or [`READ_BYTES`].

use bytes::{Bytes, BytesMut};

use super::{HEADER_BYTES, Kind, WireError, parse_header};

/// Room for bytes from the connection, where a frame needs no more.
pub const READ_BYTES: usize = 256 << 10;

/// What was read of a connection and not yet taken out of it.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Where to read to; [`Frames::take`] has made room.
    pub fn room(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Whether all frames were taken and nothing of another has come.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole frame: its kind and its body. Where there is none, there is room for the rest of it.
    pub fn take(&mut self) -> Result<Option<(Kind, Bytes)>, WireError> {
        let mut whole = HEADER_BYTES;
        if let Some(header) = self.buffer.first_chunk() {
            let (kind, len) = parse_header(header)?;
            whole += len;
            if self.buffer.len() >= whole {
                let frame = self.buffer.split_to(whole).freeze();
                return Ok(Some((kind, frame.slice(HEADER_BYTES..))));
            }
        }
        if self.buffer.capacity() < whole {
            let room = whole.max(READ_BYTES) - self.buffer.len();
            self.buffer.reserve(room);
        }
        Ok(None)
    }
}

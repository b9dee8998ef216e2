//! Bytes to be written, in pieces: what is small is gathered, what is large stays where it was read to. A
//! page's content is so passed from socket to socket without a copy of ours. It never waits and never writes.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

#[derive(Debug)]
enum Piece {
    /// Of `Pieces::small`.
    Small(Range<usize>),
    Shared(Bytes),
}

/// Bytes in order.
#[derive(Debug, Default)]
pub struct Pieces {
    small: Vec<u8>,
    pieces: Vec<Piece>,
    len: usize,
}

impl Pieces {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a copy of `bytes`.
    pub fn copy(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.small.len();
        self.small.extend_from_slice(bytes);
        let end = self.small.len();
        self.len += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Small(last)) => last.end = end,
            _ => self.pieces.push(Piece::Small(start..end)),
        }
    }

    /// Adds `bytes` themselves.
    pub fn share(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.pieces.push(Piece::Shared(bytes));
        }
    }

    /// Where the next copied bytes will be, for [`Pieces::copied`].
    pub fn mark(&self) -> usize {
        self.small.len()
    }

    /// The bytes copied since a mark, to be changed.
    pub fn copied(&mut self, mark: usize) -> &mut [u8] {
        &mut self.small[mark..]
    }

    /// Adds all of `other` behind these.
    pub fn append(&mut self, other: Pieces) {
        if self.is_empty() {
            *self = other;
            return;
        }
        let Pieces { small, pieces, .. } = other;
        for piece in pieces {
            match piece {
                Piece::Small(range) => self.copy(&small[range]),
                Piece::Shared(bytes) => self.share(bytes),
            }
        }
    }

    /// All of it, for vectored writes.
    pub fn slices(&self) -> Vec<IoSlice<'_>> {
        let bytes = self.pieces.iter().map(|piece| match piece {
            Piece::Small(range) => &self.small[range.clone()],
            Piece::Shared(bytes) => bytes,
        });
        bytes.map(IoSlice::new).collect()
    }

    /// All of it in one piece.
    pub fn concat(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        self.slices()
            .iter()
            .for_each(|slice| all.extend_from_slice(slice));
        all
    }
}

impl From<Vec<u8>> for Pieces {
    fn from(bytes: Vec<u8>) -> Pieces {
        let mut pieces = Pieces::default();
        pieces.share(bytes.into());
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_order() {
        let mut pieces = Pieces::default();
        pieces.copy(b"ab");
        let mark = pieces.mark();
        pieces.copy(b"cd");
        pieces.copied(mark)[0] = b'C';
        pieces.share(Bytes::from_static(b"efg"));
        pieces.copy(b"h");
        let mut all = Pieces::default();
        all.append(pieces);
        all.append(Pieces::from(b"ij".to_vec()));
        let mut last = Pieces::default();
        last.copy(b"k");
        all.append(last);
        assert_eq!((all.concat(), all.len()), (b"abCdefghijk".to_vec(), 11));
        assert_eq!(all.slices().len(), 5);
    }
}

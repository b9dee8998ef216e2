//! Messages that the destination QEMU sends back (migration/migration.c): u16 type, u16 length, data. All pass
//! but the one that would let the source QEMU end before every claim is met.

/// The destination QEMU is ready to be switched to; held back while claims are outstanding.
const SWITCHOVER_ACK: u16 = 7;
/// Types are small numbers and lengths at most a bitmap's; more is not a return path.
const LENGTH_MAX: usize = 1 << 15;

/// Splits a return path into messages and holds back the switchover's acknowledgement.
#[derive(Debug, Default)]
pub struct Gate {
    pending: Vec<u8>,
    held: Vec<u8>,
    released: bool,
}

impl Gate {
    /// Takes bytes of the return path; whole messages that may pass are added to `out`.
    /// The error is the length of a message that cannot be.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), usize> {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(head) = self.pending[at..].first_chunk::<4>() {
            let kind = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            if length > LENGTH_MAX {
                return Err(length);
            }
            let Some(message) = self.pending.get(at..at + 4 + length) else {
                break;
            };
            if kind == SWITCHOVER_ACK && !self.released {
                self.held.extend_from_slice(message);
            } else {
                out.extend_from_slice(message);
            }
            at += 4 + length;
        }
        self.pending.drain(..at);
        Ok(())
    }

    /// Lets everything pass from now on; what was held is added to `out`.
    pub fn release(&mut self, out: &mut Vec<u8>) {
        self.released = true;
        out.append(&mut self.held);
    }
}

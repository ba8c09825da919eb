//! Little-endian cursors over a message, and the error of every decoder.
//!
//! The writer cannot fail: every message has a fixed largest size below the buffer's, asserted where the
//! message is defined. The reader is total: it returns [`Malformed`] where bytes are missing, and
//! [`Reader::end`] where bytes are left.

use core::fmt;

use crate::Buffer;

/// Why a packet was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The packet ends before its last field.
    Short,
    /// The packet goes on after its last field.
    Long,
    /// No message of this direction has this number.
    Kind(u32),
    /// The other side speaks another version of the protocol.
    Version(u32),
    /// The named field holds a value that no honest peer sends.
    Field(&'static str),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Short => f.write_str("the message is cut short"),
            Malformed::Long => f.write_str("the message is longer than its kind allows"),
            Malformed::Kind(kind) => write!(f, "unknown message kind {kind:#x}"),
            Malformed::Version(version) => {
                write!(f, "the agent speaks protocol version {version}, the pager {}", crate::VERSION)
            }
            Malformed::Field(name) => write!(f, "impossible value in the field \"{name}\""),
        }
    }
}

impl core::error::Error for Malformed {}

/// Appends fields to a buffer.
pub(crate) struct Writer<'b> {
    buffer: &'b mut Buffer,
    at: usize,
}

impl<'b> Writer<'b> {
    pub(crate) fn new(buffer: &'b mut Buffer, kind: u32) -> Writer<'b> {
        let mut writer = Writer { buffer, at: 0 };
        writer.u32(kind);
        writer
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for (to, from) in self.buffer.iter_mut().skip(self.at).zip(bytes) {
            *to = *from;
        }
        self.at += bytes.len();
        debug_assert!(self.at <= self.buffer.len());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    pub(crate) fn finish(self) -> &'b [u8] {
        self.buffer.get(..self.at).unwrap_or(&[])
    }
}

/// Takes fields off the front of a packet.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn bool(&mut self, name: &'static str) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::Field(name)),
        }
    }

    /// Everything that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Refuses a packet with bytes left over.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Long) }
    }
}

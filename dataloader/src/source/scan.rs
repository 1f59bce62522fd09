//! Reading a shard from its start to its end, for its headers.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};

use super::Source;
use crate::error::{Error, Result};

/// A tar's headers for one member, long names included, are never more than this.
const MOST_BEFORE_A_MEMBER: u64 = 1 << 20;

/// A cursor over a [`Source`] that reads a block ahead, so that headers that lie together take one read (and one
/// request, of an object). `&ScanReader` is what reads.
pub(crate) struct ScanReader<'a> {
    source: &'a Source,
    state: RefCell<State>,
}

struct State {
    position: u64,
    block: Vec<u8>,
    block_start: u64,
    /// Bytes read since [`ScanReader::next_member`].
    read: u64,
    /// The source's own error, which says more than an `io::Error` may.
    failed: Option<Error>,
}

impl<'a> ScanReader<'a> {
    pub(crate) fn new(source: &'a Source) -> ScanReader<'a> {
        let state = State { position: 0, block: Vec::new(), block_start: 0, read: 0, failed: None };
        ScanReader { source, state: RefCell::new(state) }
    }

    /// A member has been met: what describes the next one is counted anew.
    pub(crate) fn next_member(&self) {
        self.state.borrow_mut().read = 0;
    }

    /// Why reading failed, where it was the source that failed.
    pub(crate) fn take_error(&self) -> Option<Error> {
        self.state.borrow_mut().failed.take()
    }

    /// The bytes at `offset`, by way of the block where they are in it.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let state = self.state.borrow();
        let held = offset.checked_sub(state.block_start).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            state.block.get(start..start.checked_add(bytes.len())?)
        });
        match held {
            Some(held) => bytes.copy_from_slice(held),
            None => self.source.read_exact_at(&mut [], bytes, offset)?,
        }
        Ok(())
    }
}

impl State {
    /// The rest of the block at the position, which is read where the position has left it; empty at the end.
    fn available(&mut self, source: &Source) -> Result<&[u8]> {
        let end = self.block_start + self.block.len() as u64;
        if !(self.block_start..end).contains(&self.position) {
            let left = source.size().saturating_sub(self.position);
            self.block_start = self.position;
            self.block.resize((source.scan_block() as u64).min(left) as usize, 0);
            source.read_exact_at(&mut [], &mut self.block, self.position)?;
        }
        Ok(&self.block[(self.position - self.block_start) as usize..])
    }
}

impl Read for &ScanReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        let bytes = match state.available(self.source) {
            Ok(available) => {
                let bytes = available.len().min(out.len());
                out[..bytes].copy_from_slice(&available[..bytes]);
                bytes
            }
            Err(error) => {
                let message = error.to_string();
                state.block.clear();
                state.failed = Some(error);
                return Err(io::Error::other(message));
            }
        };
        state.position += bytes as u64;
        state.read += bytes as u64;
        if state.read > MOST_BEFORE_A_MEMBER {
            return Err(io::Error::other("over 1 MiB of headers for one member"));
        }
        Ok(bytes)
    }
}

impl Seek for &ScanReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let state = &mut *self.state.borrow_mut();
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => state.position.checked_add_signed(by),
            SeekFrom::End(by) => self.source.size().checked_add_signed(by),
        };
        state.position = position.ok_or_else(|| io::Error::other("a member ends outside the file"))?;
        Ok(state.position)
    }
}

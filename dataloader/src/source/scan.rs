//! Reads a shard's headers from its start to its end.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};

use super::Source;
use crate::error::{Error, Result};

/// A cursor over a [`Source`] that reads a block ahead. So adjacent headers take one read, or one request to a store.
/// `&ScanReader` implements `Read` and `Seek`.
pub(crate) struct ScanReader<'a> {
    source: &'a Source,
    state: RefCell<ReadAhead>,
}

struct ReadAhead {
    position: u64,
    block: Vec<u8>,
    block_start: u64,
    /// The source's own error, which has more details than the `io::Error`.
    failed: Option<Error>,
}

impl<'a> ScanReader<'a> {
    pub(crate) fn new(source: &'a Source) -> ScanReader<'a> {
        let state = ReadAhead { position: 0, block: Vec::new(), block_start: 0, failed: None };
        ScanReader { source, state: RefCell::new(state) }
    }

    /// The source's error, if the source failed.
    pub(crate) fn take_error(&self) -> Option<Error> {
        self.state.borrow_mut().failed.take()
    }

    /// Reads the bytes at `offset`, from the block where it holds them.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let state = self.state.borrow();
        let held = offset.checked_sub(state.block_start).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            state.block.get(start..start.checked_add(bytes.len())?)
        });
        match held {
            Some(held) => bytes.copy_from_slice(held),
            None => self.source.read_for_scan(bytes, offset)?,
        }
        Ok(())
    }
}

impl ReadAhead {
    /// The rest of the block from the position on. Reads the next block where the position has left it; empty at the end.
    fn fill_block(&mut self, source: &Source) -> Result<&[u8]> {
        let end = self.block_start + self.block.len() as u64;
        if !(self.block_start..end).contains(&self.position) {
            let left = source.size().saturating_sub(self.position);
            self.block_start = self.position;
            self.block.resize((source.scan_block() as u64).min(left) as usize, 0);
            source.read_for_scan(&mut self.block, self.position)?;
        }
        Ok(&self.block[(self.position - self.block_start) as usize..])
    }
}

impl Read for &ScanReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state.borrow_mut();
        let bytes = match state.fill_block(self.source) {
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

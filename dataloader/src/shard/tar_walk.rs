//! Walks over the members of a tar archive: shards, and archives that are imported.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use crate::error::Error;

/// Limit of the headers of one member in bytes, long names included. The tar crate holds them in memory.
const MAX_HEADER_BYTES: u64 = 1 << 20;

const BLOCK: u64 = 512;

/// A member of an archive.
pub(crate) struct TarMember {
    /// Its path.
    pub(crate) name: String,
    pub(crate) kind: MemberKind,
    /// Where its contents begin, in bytes from the archive's start.
    pub(crate) offset: u64,
    /// Bytes of its contents.
    pub(crate) length: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// A file, or a hard link to one in the archive, which has the contents of its target.
    File,
    Folder,
    SymbolicLink,
    /// A device, a pipe and so on.
    Special,
}

/// Why a walk ended early.
pub(crate) enum WalkError {
    /// The archive is damaged; copying it again may help.
    Damaged(String),
    /// The archive can't be read as it is; the message says how to fix that.
    Unsupported(String),
    /// The caller's error.
    Visit(Error),
}

impl From<Error> for WalkError {
    fn from(error: Error) -> WalkError {
        WalkError::Visit(error)
    }
}

/// Calls `visit` with every member of the archive of `size` bytes in `reader`. Only headers are read.
///
/// # Errors
/// A compressed archive, one that is cut short or damaged, sparse members, hard links to missing members, data behind
/// the end marker; errors of `visit`.
pub(crate) fn walk_members<R: Read + Seek>(
    reader: R,
    size: u64,
    mut visit: impl FnMut(TarMember) -> Result<(), Error>,
) -> Result<(), WalkError> {
    let reader = HeaderReader { inner: RefCell::new(reader), since_seek: Cell::new(0) };
    refuse_compressed(&reader, size)?;
    let mut archive = tar::Archive::new(&reader);
    let mut end = 0; // of the last member, padding included
    let mut link_targets = None; // collected at the first hard link
    for member in archive.entries_with_seek().map_err(describe_damage)? {
        let mut member = member.map_err(describe_damage)?;
        let entry_type = member.header().entry_type();
        let name = String::from_utf8(member.path_bytes().into_owned())
            .map_err(|error| describe_damage(io::Error::other(error)))?;
        let mut offset = member.raw_file_position();
        let mut length = member.size();
        end = offset.saturating_add(length).saturating_add(BLOCK - 1) / BLOCK * BLOCK;
        if end > size {
            return Err(WalkError::Damaged(format!("cut short inside '{name}'")));
        }
        if is_sparse(&mut member).map_err(describe_damage)? {
            let what = format!("'{name}' is stored sparsely; write the tar without --sparse");
            return Err(WalkError::Unsupported(what));
        }
        let kind = if entry_type.is_file() || entry_type.is_contiguous() {
            MemberKind::File
        } else if entry_type.is_dir() {
            MemberKind::Folder
        } else if entry_type.is_hard_link() {
            let target = member.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target);
            let targets = match &mut link_targets {
                Some(targets) => targets,
                None => link_targets.insert(locate_files(&reader)?),
            };
            (offset, length) = *targets.get(plain_path(&target)).ok_or_else(|| {
                let what = format!(
                    "'{name}' is a hard link to '{target}', which isn't in the tar; write it with --hard-dereference"
                );
                WalkError::Unsupported(what)
            })?;
            targets.insert(plain_path(&name).to_owned(), (offset, length));
            MemberKind::File
        } else if entry_type.is_symlink() {
            MemberKind::SymbolicLink
        } else if entry_type.is_pax_global_extensions() {
            continue;
        } else {
            MemberKind::Special
        };
        visit(TarMember { name, kind, offset, length })?;
    }
    // Cut exactly between two members, a tar looks complete but for its end marker, a block of zeros.
    if end + BLOCK > size {
        return Err(WalkError::Damaged("cut short: the tar's end marker is missing".to_owned()));
    }
    refuse_trailing_data(&reader, end + BLOCK)
}

/// The offset and length of every file in the archive, by path. The reader stays where it is.
fn locate_files<R: Read + Seek>(reader: &HeaderReader<R>) -> Result<HashMap<String, (u64, u64)>, WalkError> {
    let mut reader = reader;
    let position = reader.stream_position().map_err(describe_damage)?;
    reader.seek(SeekFrom::Start(0)).map_err(describe_damage)?;
    let mut files = HashMap::new();
    for member in tar::Archive::new(reader).entries_with_seek().map_err(describe_damage)? {
        let member = member.map_err(describe_damage)?;
        if member.header().entry_type().is_file() {
            let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
            files.insert(plain_path(&name).to_owned(), (member.raw_file_position(), member.size()));
        }
    }
    reader.seek(SeekFrom::Start(position)).map_err(describe_damage)?;
    Ok(files)
}

fn plain_path(path: &str) -> &str {
    path.strip_prefix("./").unwrap_or(path)
}

/// Refuses what other programs name `.tar` although it is compressed, or is another kind of archive.
fn refuse_compressed<R: Read + Seek>(reader: &HeaderReader<R>, size: u64) -> Result<(), WalkError> {
    // A tar begins with the name of its first member, in which none of these bytes are likely.
    const KINDS: [(usize, &[u8], &str); 5] = [
        (0, b"\x1F\x8B", "is gzip-compressed; decompress it with gunzip"),
        (0, b"\x28\xB5\x2F\xFD", "is zstd-compressed; decompress it with unzstd"),
        (0, b"\xFD7zXZ\0", "is xz-compressed; decompress it with unxz"),
        (4, b"1AY&SY", "is bzip2-compressed; decompress it with bunzip2"),
        (0, b"PK\x03\x04", "is a zip archive; unpack it, and write a tar"),
    ];
    let mut start = [0; 10];
    let length = size.min(start.len() as u64) as usize;
    let start = &mut start[..length];
    let mut reader = reader;
    reader.read_exact(start).and_then(|()| reader.seek(SeekFrom::Start(0))).map_err(describe_damage)?;
    match KINDS.iter().find(|(at, magic, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic))) {
        Some((.., what)) => Err(WalkError::Unsupported((*what).to_owned())),
        None => Ok(()),
    }
}

/// Refuses data behind the end marker: samples there would be lost.
fn refuse_trailing_data<R: Read + Seek>(reader: &HeaderReader<R>, from: u64) -> Result<(), WalkError> {
    let mut reader = reader;
    let mut position = from;
    let mut block = [0; 8192];
    loop {
        reader.seek(SeekFrom::Start(position)).map_err(describe_damage)?;
        let read = reader.read(&mut block).map_err(describe_damage)?;
        if read == 0 {
            return Ok(());
        }
        if let Some(at) = block[..read].iter().position(|&byte| byte != 0) {
            let what = format!(
                "data follows the tar's end marker, at byte {} (were tars joined by cat?), and its samples would be \
                 lost; unpack it with tar --ignore-zeros -xf, and write the tar again",
                position + at as u64
            );
            return Err(WalkError::Unsupported(what));
        }
        position += read as u64;
    }
}

/// Whether a member's contents have holes that the tar leaves out: in GNU's format, or in pax headers.
fn is_sparse<R: Read>(member: &mut tar::Entry<'_, R>) -> io::Result<bool> {
    if member.header().entry_type().is_gnu_sparse() {
        return Ok(true);
    }
    let Some(extensions) = member.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The tar crate's messages quote the archive's bytes; those that can't be printed are left out.
fn describe_damage(cause: io::Error) -> WalkError {
    let cause = cause.to_string();
    let printable =
        cause.len() < 200 && cause.chars().all(|c| !c.is_control() && c != char::REPLACEMENT_CHARACTER);
    WalkError::Damaged(if printable {
        format!("not a readable tar archive ({cause})")
    } else {
        "not a readable tar archive".to_owned()
    })
}

/// Limits how many bytes are read between two seeks: the tar crate seeks over contents, and reads headers.
struct HeaderReader<R> {
    inner: RefCell<R>,
    since_seek: Cell<u64>,
}

impl<R: Read> Read for &HeaderReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.borrow_mut().read(bytes)?;
        self.since_seek.set(self.since_seek.get() + read as u64);
        if self.since_seek.get() > MAX_HEADER_BYTES {
            return Err(io::Error::other("over 1 MiB of headers for one member"));
        }
        Ok(read)
    }
}

impl<R: Seek> Seek for &HeaderReader<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.since_seek.set(0);
        self.inner.borrow_mut().seek(to)
    }
}

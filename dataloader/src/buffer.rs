//! Buffers that are reused from image to image. The memory of a very large image is given back after it.

/// Larger buffers are given back.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// Empties `buffer` before it gets `len` bytes. A very large buffer is given back if `len` needs less than half of it.
pub(crate) fn clear(buffer: &mut Vec<u8>, len: usize) {
    buffer.clear();
    if buffer.capacity() > MAX_KEPT_BYTES && len < buffer.capacity() / 2 {
        *buffer = Vec::new();
    }
    buffer.reserve(len);
}

/// Makes `buffer` `len` bytes long, as [`clear`] does. Bytes may be those of an earlier image: the caller overwrites all.
pub(crate) fn resize(buffer: &mut Vec<u8>, len: usize) {
    if buffer.capacity() > MAX_KEPT_BYTES {
        clear(buffer, len);
    }
    buffer.resize(len, 0);
}

/// Gives a very large buffer back, whose contents are no longer needed.
pub(crate) fn release(buffer: &mut Vec<u8>) {
    if buffer.capacity() > MAX_KEPT_BYTES {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffer_is_given_back_for_a_small_image() {
        let mut buffer = Vec::new();
        resize(&mut buffer, 1000);
        let address = buffer.as_ptr();
        resize(&mut buffer, 500);
        assert_eq!((buffer.as_ptr(), buffer.len()), (address, 500), "a small one is kept");
        resize(&mut buffer, MAX_KEPT_BYTES + 1);
        resize(&mut buffer, MAX_KEPT_BYTES);
        assert!(buffer.capacity() > MAX_KEPT_BYTES, "the next image is as large");
        resize(&mut buffer, 1000);
        assert!(buffer.len() == 1000 && buffer.capacity() < MAX_KEPT_BYTES);
        resize(&mut buffer, MAX_KEPT_BYTES + 1);
        clear(&mut buffer, 10);
        assert!(buffer.is_empty() && buffer.capacity() < MAX_KEPT_BYTES);
        resize(&mut buffer, MAX_KEPT_BYTES + 1);
        release(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
    }
}

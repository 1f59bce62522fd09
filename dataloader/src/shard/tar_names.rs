//! What a shard's member is, by its name: see [`shard`](crate::shard) for the convention.

/// Splits a member's path into the sample's key and the extension, at the first dot of the file name:
/// `train/n01440764_18.JPEG` is (`train/n01440764_18`, `JPEG`). The extension is empty where there is no dot.
pub fn key_and_extension(name: &str) -> (&str, &str) {
    let file_name_at = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file_name_at..].find('.') {
        Some(dot) => (&name[..file_name_at + dot], &name[file_name_at + dot + 1..]),
        None => (name, ""),
    }
}

/// Whether a member with this extension is a sample's image.
pub fn is_image(extension: &str) -> bool {
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Whether a member with this extension is a sample's label.
pub fn is_label(extension: &str) -> bool {
    extension.eq_ignore_ascii_case("cls")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_file_name() {
        assert_eq!(key_and_extension("a.jpg"), ("a", "jpg"));
        assert_eq!(key_and_extension("v1.0/b_2.seg.png"), ("v1.0/b_2", "seg.png"));
        assert_eq!(key_and_extension("dir.d/none"), ("dir.d/none", ""));
    }
}

//! The names of a shard's members; [`shard`](crate::shard) has the convention.

/// Splits a member's path into the sample's key and the extension, at the first dot of the file name:
/// `train/n01440764_18.JPEG` is (`train/n01440764_18`, `JPEG`). The extension is empty without a dot.
pub fn split_key(name: &str) -> (&str, &str) {
    let file_name_at = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[file_name_at..].find('.') {
        Some(dot) => (&name[..file_name_at + dot], &name[file_name_at + dot + 1..]),
        None => (name, ""),
    }
}

/// The extension after the last dot of the file name; empty without a dot.
pub fn last_extension(name: &str) -> &str {
    let file_name = name.rsplit('/').next().unwrap_or_default();
    file_name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// Whether this is the extension of an image.
pub fn is_image(extension: &str) -> bool {
    ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Whether this is the extension of a label.
pub fn is_label(extension: &str) -> bool {
    extension.eq_ignore_ascii_case("cls")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_at_the_first_dot_of_the_file_name() {
        assert_eq!(split_key("a.jpg"), ("a", "jpg"));
        assert_eq!(split_key("v1.0/b_2.seg.png"), ("v1.0/b_2", "seg.png"));
        assert_eq!(split_key("dir.d/none"), ("dir.d/none", ""));
        assert_eq!(["v1.0/b_2.seg.png", "dir.d/none"].map(last_extension), ["png", ""]);
    }
}

//! A scale of colours that remains even in print and with colour blindness.

/// Cividis (Nuñez et al., PLoS ONE 2018) at eighths: its lightness rises evenly, from blue to yellow.
const CIVIDIS: [[u8; 3]; 9] = [
    [0x00, 0x20, 0x51],
    [0x0d, 0x34, 0x6b],
    [0x33, 0x48, 0x6e],
    [0x57, 0x5c, 0x6e],
    [0x73, 0x70, 0x73],
    [0x8e, 0x85, 0x76],
    [0xae, 0x9c, 0x6c],
    [0xd2, 0xb5, 0x58],
    [0xfd, 0xea, 0x45],
];

/// The colour of `share`, 0 (dark blue) to 1 (yellow).
pub fn cividis(share: f64) -> [u8; 3] {
    let position = share.clamp(0.0, 1.0) * (CIVIDIS.len() - 1) as f64;
    let low = (position as usize).min(CIVIDIS.len() - 2);
    let fraction = position - low as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + fraction * (f64::from(b) - f64::from(a))).round() as u8;
    std::array::from_fn(|c| mix(CIVIDIS[low][c], CIVIDIS[low + 1][c]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_lightness_increases() {
        let lightness = |share: f64| {
            let [r, g, b] = cividis(share).map(f64::from);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let steps: Vec<f64> = (0..=32).map(|i| lightness(f64::from(i) / 32.0)).collect();
        assert!(steps.windows(2).all(|pair| pair[1] > pair[0]), "{steps:?}");
        assert_eq!((cividis(-1.0), cividis(2.0)), (CIVIDIS[0], CIVIDIS[8]));
    }
}

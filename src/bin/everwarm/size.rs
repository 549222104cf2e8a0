//! Sizes in human-readable form, such as `64MiB`.

pub(crate) use everwarm::parse_size as parse_bytes;

/// Flash capacity: a size in bytes, or a multiple of the workload's footprint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flash {
    Bytes(u64),
    Footprints(f64),
}

impl Flash {
    /// Parses a size as [`parse_bytes`] does, or a multiple such as `0.5x`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(factor) = text.trim().strip_suffix(['x', 'X']) else {
            return parse_bytes(text).map(Self::Bytes);
        };
        match factor.parse::<f64>() {
            Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(Self::Footprints(factor)),
            _ => Err(format!("`{text}` is not a positive multiple such as 0.5x")),
        }
    }

    /// The capacity in bytes for a workload with this footprint.
    pub(crate) fn bytes(self, footprint: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Footprints(factor) => (footprint as f64 * factor) as u64,
        }
    }
}

/// Formats `bytes` in the largest unit of which it has at least one.
pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("7b", 7), ("64MiB", 64 << 20), ("2G", 2 << 30), ("512 k", 512 << 10), ("1tb", 1 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn malformed_sizes_are_refused() {
        for text in ["", "M", "-1", "1.5G", "3 parsecs", "99999999999999999999", "17179869184G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flash_may_be_a_multiple_of_the_footprint() {
        assert_eq!(Flash::parse("0.5x").map(|flash| flash.bytes(100)), Ok(50));
        assert_eq!(Flash::parse("2X").map(|flash| flash.bytes(100)), Ok(200));
        assert_eq!(Flash::parse("1k").map(|flash| flash.bytes(100)), Ok(1024));
        assert!(Flash::parse("x").is_err());
        assert!(Flash::parse("-1x").is_err());
        assert!(Flash::parse("infx").is_err());
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(show_bytes(1023), "1023 B");
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(3 << 30), "3.0 GiB");
    }
}
